"""Tangent vectors of the matrices of one rank, and the rounding errors outside the tangent space.

geomstats adds and averages tangent vectors. Where long ones cancel, as near a mean, their sum may
be as small as their rounding errors, which lie outside the tangent space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dln_geometry.geometry.points import EndToEnd


def widened(p: EndToEnd) -> EndToEnd:
    """Return the point with one more leading dimension, for a basis of vectors."""
    return p.replace(u=p.u.unsqueeze(-3), s=p.s.unsqueeze(-2), vh=p.vh.unsqueeze(-3), check=False)


def tangent_part(p: EndToEnd, v: Tensor) -> Tensor:
    """Project orthogonally on the tangent space, ``V - (1 - U U^T) V (1 - V V^T)``."""
    if p.rank == min(p.shape):
        return v
    left = v - p.u @ (p.u.mT @ v)
    return v - left + (left @ p.vh.mT) @ p.vh


def rounding_size(p: EndToEnd) -> Tensor:
    """Return the size of rounding errors of vectors no longer than the point, shape (...)."""
    return 1000.0 * torch.finfo(p.s.dtype).eps * p.s.norm(dim=-1)


def without_roundings(p: EndToEnd, v: Tensor) -> Tensor:
    """Drop the part of V outside the tangent space if it is as small as rounding errors."""
    if p.rank == min(p.shape):
        return v
    inside = tangent_part(p, v)
    small = torch.linalg.matrix_norm(v - inside) <= rounding_size(p)
    return torch.where(small[..., None, None], inside, v)
