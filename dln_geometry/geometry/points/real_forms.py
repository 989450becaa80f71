"""Real forms of complex points: ``[[A, -B], [B, A]]`` for ``A + i B``.

They are the fixed points of an isometry of the real matrices of twice the size, and so totally
geodesic: geodesics, transport and curvature of complex points are those of their real forms, whose
inner products are twice as large.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dln_geometry.geometry.points.end_to_end import EndToEnd


def real_form(z: Tensor) -> Tensor:
    """Return the real form (..., 2m, 2n) of complex matrices (..., m, n)."""
    re, im = z.real, z.imag
    return torch.cat((torch.cat((re, -im), -1), torch.cat((im, re), -1)), -2)


def quaternion_form(a: Tensor, b: Tensor) -> Tensor:
    """Return the complex representation ``[[A, B], [-B^-, A^-]]`` of quaternions ``A + B j``."""
    return torch.cat((torch.cat((a, b), -1), torch.cat((-b.conj(), a.conj()), -1)), -2)


def complex_form(x: Tensor) -> Tensor:
    """Return the complex matrices (..., m, n) nearest to real ones of twice the size."""
    m, n = (d // 2 for d in x.shape[-2:])
    a, b = x[..., :m, :n], x[..., :m, n:]
    c, d = x[..., m:, :n], x[..., m:, n:]
    return torch.complex(0.5 * (a + d), 0.5 * (c - b))


def real_point(p: EndToEnd) -> EndToEnd:
    """Return the real form of a complex point, with the derivatives of its matrix if any."""
    x = real_form(p.differentiable_matrix)
    return EndToEnd.of(x, p.depth, rank=2 * p.rank, normalized=p.normalized)


def complex_point(q: EndToEnd) -> EndToEnd:
    """Return the complex point of a real form, with the derivatives of its matrix if any."""
    x = complex_form(q.differentiable_matrix)
    return EndToEnd.of(x, q.depth, rank=q.rank // 2, normalized=q.normalized)
