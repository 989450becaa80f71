"""Zeros among the singular values against thin blocks."""

from __future__ import annotations

import math

import pytest
import torch

from dln_geometry.geometry.kernel import Differences
from dln_geometry.geometry.metric import Blocks, pull, push
from dln_geometry.testing import assert_close


@pytest.mark.parametrize("mode", ["sums", "table", "slices"])
@pytest.mark.parametrize("depth", [1.0, 1.5, 2.0, 3.0, 7.0, math.inf])
@pytest.mark.parametrize("normalized", [True, False])
def test_zeros_among_the_values_are_zeros_beyond_them(
    depth, normalized, mode, generator, monkeypatch
):
    """A 4 x 4 matrix of rank 2: all in the core with zeros in s, or in thin blocks."""
    if math.isinf(depth) and not normalized:
        normalized = True
    if mode != "sums":
        monkeypatch.setattr("dln_geometry.geometry.kernel.differences.MOST_TERMS", 0)
    if mode == "slices":
        monkeypatch.setattr("dln_geometry.geometry.kernel.differences._MOST_ENTRIES", 1)
    s = torch.tensor([1.4, 0.0, 0.6, 0.0], dtype=torch.float64).expand(2, 4)
    alive, dead = [0, 2], [1, 3]
    whole = Differences(s, depth, normalized)
    thin = Differences(s[:, alive], depth, normalized)
    y, g, h = (torch.randn((2, 4, 4), generator=generator, dtype=s.dtype) for _ in range(3))
    if math.isinf(depth):
        # The kernel of a positive value and a zero is 0: no covector there.
        g[:, dead], g[..., dead], h[:, dead], h[..., dead] = 0.0, 0.0, 0.0, 0.0

    def thinned(z):
        left, right = torch.zeros(2, 4, 2).to(z), torch.zeros(2, 2, 4).to(z)
        left[:, dead] = z[:, dead][..., alive]
        right[..., dead] = z[..., dead][:, alive]
        return Blocks(z[:, alive][..., alive], left, right)

    def beyond(z):
        found = torch.zeros_like(z)
        for i in dead:
            found[:, i, dead] = z[:, i, dead]
        return found

    yt, gt, ht = (thinned(z) for z in (y, g, h))
    across = (beyond(g) @ yt.right.mT, yt.left.mT @ beyond(g))
    expected = push(thin, yt, gt, across)
    actual = thinned(push(whole, Blocks(y, None, None), Blocks(g, None, None)).core)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, ops=300, scale=float(e.abs().max()) + 1e-30)
    across = (
        beyond(g) @ ht.right.mT + beyond(h) @ gt.right.mT,
        ht.left.mT @ beyond(g) + gt.left.mT @ beyond(h),
    )
    expected = pull(thin, ht, gt, across)
    actual = thinned(pull(whole, Blocks(h, None, None), Blocks(g, None, None)).core)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, ops=300, scale=float(e.abs().max()) + 1e-30)
