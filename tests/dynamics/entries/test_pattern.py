"""Patterns by the kernels of torch."""

from __future__ import annotations

import torch

from dln_geometry.dynamics.entries import Pattern, has_compressed_kernels
from dln_geometry.testing import assert_close


def test_kernels_that_do_not_exist_are_not_used():
    assert not has_compressed_kernels(torch.float16, "cpu")


def test_entries_are_gathered_in_pieces(generator):
    rows, cols = torch.arange(900).unsqueeze(-1), torch.arange(2)
    places = Pattern(rows.expand(-1, 2).flatten(), cols.repeat(900), (900, 2))
    left, right = (torch.randn(k, 200, generator=generator, dtype=torch.float64) for k in (900, 2))
    got = places.entries(left, right)
    assert_close(got, (left @ right.mT).flatten(), scale=200)
