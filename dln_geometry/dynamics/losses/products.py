"""Products of a gradient, dense or sparse, with thin factors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.dynamics.entries import in_coordinates


def products(gradient: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(G R, G^T L)`` for a dense or sparse gradient; transposes are conjugate."""
    if gradient.layout == torch.strided:
        # (L^T G)^T is faster than G^T L: its large factor is not transposed.
        return gradient @ right, (left.mH @ gradient).mH
    batch, (m, n), r = gradient.shape[:-2], gradient.shape[-2:], left.shape[-1]
    if gradient.layout != torch.sparse_coo:
        gradient = gradient.to_sparse_coo()
    if batch:
        gradient = _block_diagonal(gradient.coalesce())
        left, right = (t.expand(*batch, -1, -1) for t in (left, right))
    gr, gl = gradient @ right.reshape(-1, r), gradient.mT @ left.conj().reshape(-1, r)
    return gr.reshape(*batch, m, r), gl.conj().reshape(*batch, n, r)


def _block_diagonal(g: Tensor) -> Tensor:
    """Return the matrices of a sparse batch (..., m, n) as the blocks of one sparse matrix."""
    batch, (m, n), index = g.shape[:-2], g.shape[-2:], g.indices()
    block = torch.zeros_like(index[0])
    for size, i in zip(batch, index[:-2], strict=True):
        block = block * size + i
    count = math.prod(batch)
    places = torch.stack((block * m + index[-2], block * n + index[-1]))
    return in_coordinates(places, g.values(), (count * m, count * n))
