"""Products of a gradient, dense or sparse, with thin factors; squares of residuals."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dln_geometry.dynamics.entries import in_coordinates
from dln_geometry.geometry.kernel import quick_product
from dln_geometry.support import absolute_square


class Thin(NamedTuple):
    """The factors of a matrix ``X = left right^T``."""

    left: Tensor
    right: Tensor

    @property
    def dense(self) -> Tensor:
        """The matrix itself, shape (..., m, n)."""
        return self.left @ self.right.mH


def half_square(residual: Tensor, ndim: int) -> Tensor:
    """Return ``1/2 |residual|^2`` over the last `ndim` dimensions."""
    if torch.is_grad_enabled() and residual.requires_grad:
        return 0.5 * absolute_square(residual).sum(tuple(range(-ndim, 0)))
    flat = residual.flatten(-ndim)
    if flat.ndim == 1:
        return 0.5 * (torch.vdot(flat, flat).real if flat.is_complex() else torch.dot(flat, flat))
    # One pass without a temporary: of a batch, only `vector_norm` reduces so.
    return 0.5 * torch.linalg.vector_norm(flat, dim=-1).square()


def products(gradient: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(G R, G^T L)`` for a dense or sparse gradient; transposes are conjugate."""
    if gradient.layout == torch.strided:
        # (L^T G)^T is faster than G^T L: its large factor is not transposed.
        return quick_product(gradient, right), quick_product(left.mH, gradient).mH
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
