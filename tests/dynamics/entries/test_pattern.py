"""Patterns by the kernels of torch."""

from __future__ import annotations

import torch

from dln_geometry.dynamics.entries import Pattern, has_compressed_kernels
from dln_geometry.support import entries_of_product
from dln_geometry.testing import assert_close


def test_kernels_that_do_not_exist_are_not_used():
    assert not has_compressed_kernels(torch.float16, "cpu")


def test_entries_are_gathered_in_pieces(generator):
    rows, cols = torch.arange(900).unsqueeze(-1), torch.arange(2)
    places = rows.expand(-1, 2).flatten(), cols.repeat(900)
    left, right = (torch.randn(k, 200, generator=generator, dtype=torch.float64) for k in (900, 2))
    x = (left @ right.mT).flatten()
    assert_close(entries_of_product(left, right, *places), x, scale=200)
    if has_compressed_kernels(x.dtype, "cpu"):
        pattern = Pattern(*places, (900, 2))
        assert_close(pattern.residual(pattern.matrix(0 * x), left, right), x, scale=200)
    batch = torch.stack((left, 2.0 * left))
    assert_close(entries_of_product(batch, right, *places)[1], 2.0 * x, scale=400)
