"""Tangent vectors of the matrices of one rank, and what roundings leave of them outside.

geomstats adds and averages tangent vectors. What remains of long ones that cancel, as where a mean
is reached, may be small against roundings that are none of its own, and then no longer passes for
tangent by its own size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dln_geometry.geometry.points import EndToEnd

__all__ = ["rounding_size", "tangent_part", "widened", "without_roundings"]


def widened(p: EndToEnd) -> EndToEnd:
    """Return the point with one more leading dimension, for a basis of vectors."""
    u, s, vh = p.u.unsqueeze(-3), p.s.unsqueeze(-2), p.vh.unsqueeze(-3)
    return EndToEnd(u, s, vh, p.depth, p.normalized)


def tangent_part(p: EndToEnd, v: Tensor) -> Tensor:
    """Return ``V - (1 - U U^T) V (1 - V V^T)``, the orthogonal projection on the tangent space.

    Parameters
    ----------
    p : EndToEnd
        A point X of shape (..., m, n) and rank r.
    v : Tensor, shape (..., m, n)
    """
    if p.rank == min(p.shape):
        return v
    left = v - p.u @ (p.u.mT @ v)
    return v - left + (left @ p.vh.mT) @ p.vh


def rounding_size(p: EndToEnd) -> Tensor:
    """Return the norm below which a part of a tangent vector is roundings of others, shape (...).

    The others are taken to be no longer than the point itself.
    """
    return 1000.0 * torch.finfo(p.s.dtype).eps * p.s.norm(dim=-1)


def without_roundings(p: EndToEnd, v: Tensor) -> Tensor:
    """Return a tangent vector without roundings outside the tangent space, others as they are.

    Parameters
    ----------
    p : EndToEnd
        A point X of shape (..., m, n) and rank r.
    v : Tensor, shape (..., m, n)
    """
    if p.rank == min(p.shape):
        return v
    inside = tangent_part(p, v)
    small = torch.linalg.matrix_norm(v - inside) <= rounding_size(p)
    return torch.where(small[..., None, None], inside, v)
