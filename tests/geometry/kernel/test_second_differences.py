"""Ratios of divided differences against high precision, and with zeros against thin blocks."""

from __future__ import annotations

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch

from dln_geometry.geometry.kernel import (
    Differences,
    mixed_ratios,
    outer_ratios,
    ratios,
    slice_of_ratios,
)
from dln_geometry.geometry.metric import Blocks, pull, push
from dln_geometry.testing import assert_close

SPECTRUM = (0.9, 2.3, 0.9 + 1e-9, 0.31, 0.9, 1e-4)
depths = pytest.mark.parametrize("depth", [1.0, 1.3, 2.0, 2.7, 3.0, 7.0, 16.0, 40.0, math.inf])
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def difference(nodes, depth):
    """Return the divided difference of p(l) at singular values, the metric divided by N.

    Zeros are far below the others, equal values moved apart: both by powers of the precision.
    """
    nodes = sorted(nodes)
    for k in range(1, len(nodes)):
        nodes[k] = max(nodes[k], nodes[k - 1] * (1 + mpmath.mpf(10) ** -30))
    infinite = math.isinf(depth)
    places = [2 * mpmath.log(s) if infinite else depth * s ** (2 / depth) for s in nodes]
    table = [s**2 for s in nodes]
    for order in range(1, len(nodes)):
        table = [
            (table[i + 1] - table[i]) / (places[i + order] - places[i])
            for i in range(len(table) - 1)
        ]
    return table[0]


@depths
@dtypes
def test_ratios_meet_high_precision(depth, dtype):
    s = torch.tensor(SPECTRUM, dtype=dtype)
    x = s.log()
    r = len(s)
    with mpmath.workdps(120):
        nodes = [mpmath.exp(mpmath.mpf(float(value))) for value in x]
        n = depth if math.isinf(depth) else mpmath.mpf(depth)
        expected = [
            [
                [float(difference([a, b, c], n) / difference([a, b], n)) for c in nodes]
                for b in nodes
            ]
            for a in nodes
        ]
    expected = torch.tensor(expected, dtype=torch.float64)
    assert expected.shape == (r, r, r)
    actual = ratios(x, depth)
    # Up to 4 logarithms of size |x| go into an exponential.
    size = 10.0 * expected.clamp_min(1e-30)
    assert actual.dtype == dtype
    assert_close((actual.double() - expected) / size, torch.zeros_like(expected).to(dtype),
                 ops=100, scale=1.0)  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):
        assert_close(ratios(x.numpy(), depth), actual)
    for i in range(r):
        assert_close((slice_of_ratios(x, i, depth) - actual[i]) / size[i],
                     torch.zeros_like(actual[i]), ops=100, scale=1.0)  # fmt: skip


@pytest.mark.parametrize("depth", [1.0, 1.3, 2.0, 2.7, 3.0, 16.0, 40.0])
@dtypes
def test_ratios_against_zeros_meet_high_precision(depth, dtype):
    x = torch.tensor(SPECTRUM, dtype=dtype).log()
    with mpmath.workdps(400):
        nodes = [mpmath.exp(mpmath.mpf(float(value))) for value in x]
        # s^{2/N} of what stands for zero is below every rounding.
        zero, n = mpmath.mpf(10) ** (-25 * max(int(depth), 2)), mpmath.mpf(depth)
        third = [difference([a, b, zero], n) for a in nodes for b in nodes]
        over = (
            [difference([a, b], n) for a in nodes for b in nodes],
            [difference([a, zero], n) for a in nodes for _ in nodes],
        )
        mixed, outer = (
            torch.tensor(
                [float(a / b) for a, b in zip(third, lower, strict=True)], dtype=torch.float64
            ).view(6, 6)
            for lower in over
        )
    for actual, expected in ((mixed_ratios(x, depth), mixed), (outer_ratios(x, depth), outer)):
        size = 10.0 * expected.clamp_min(1e-30)
        assert_close((actual.double() - expected) / size, torch.zeros_like(expected).to(dtype),
                     ops=100, scale=1.0)  # fmt: skip


def test_outer_ratios_have_a_limit_at_infinite_depth():
    x = torch.tensor(SPECTRUM, dtype=torch.float64).log()
    depths, limit = [1e3, 1e4, 1e5], outer_ratios(x, math.inf)
    errors = [float(((outer_ratios(x, n) - limit) / limit).abs().max()) for n in depths]
    assert errors[0] < 0.05
    for one, two in pairwise(errors):
        assert one / two == pytest.approx(10.0, rel=0.05)
    assert bool((mixed_ratios(x, math.inf) == 0).all())


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
        # Thin blocks lack what the kernel of a positive value and a zero would divide by.
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
