r"""Sectional curvatures of the planes of singular vectors, in closed form, and their sum.

With ``e_ij = sqrt(a_ij) u_i v_j^T`` (an orthonormal basis), ``T_ijk = p[l_i, l_j, l_k]`` and
``Q_ijkl`` of third order, the planes that are not flat have, for distinct a, b, c,

``K(e_ab, e_ac) = [(s_b^2 + s_c^2 - s_a^2) (Q_aabc - T_abc^2/a_bc - T_aab T_aac/a_aa)
+ (a_ab^2 T_aac + a_ac^2 T_aab)/a_aa] / (a_ab a_ac) - T_abc/a_bc``,

``K(e_ab, e_ca) = s_a^2 (Q_aabc - T_aab T_aac/a_aa) / (a_ab a_ac)``,

``K(e_aa, e_ab) = (s_a^2 + s_b^2) (Q_aaab - T_aaa T_aab/a_aa) / (a_aa a_ab) + a_ab T_aaa/a_aa^2
- s_b^2 T_aab^2 / (a_aa a_ab^2)``,

``K(e_ab, e_ba) = [(s_a^2 + s_b^2) Q_aabb - s_a^2 T_aab^2/a_aa - s_b^2 T_abb^2/a_bb] / a_ab^2``,

and the same transposed. The indices run over zeros too, ``a_00`` being a limit there.

Over the complex numbers ``i e_ab`` belong to the basis. Phases of singular vectors are isometries
that turn the planes of three indices into one another, and ``e_ab`` beside ``e_aa``: four and two
of each have the same curvature. ``K(i e_aa, e_ab)``, ``K(e_ab, i e_ab)`` and ``K(e_ab, i e_ba)``
come of real forms of 2 x 2 matrices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.geometry.curvature.frames import (
    CurvatureFrames,
    multiplied_by_powers,
    realified,
    unit_point,
)
from dln_geometry.geometry.kernel import Differences, second_difference, third_difference
from dln_geometry.geometry.points import EndToEnd


def sum_of_planes(p: EndToEnd) -> Tensor:
    """Return the scalar curvature at a point with positive singular values, shape (...)."""
    if p.depth == 1.0:
        return torch.zeros_like(p.s[..., 0])
    q, unit = unit_point(p)
    k = Differences(q.s, p.depth, p.normalized)
    f = 1 + p.dtype.is_complex
    total = _planes_inside(k, f)
    rows, columns = (size - p.rank for size in p.shape)
    # At infinite depth range and corange do not move.
    outside = rows + columns and not p.depth.infinite
    total = total + _planes_outside(k, rows, columns, f) if outside else total
    return multiplied_by_powers(total, (unit, -2.0 / p.depth)).to(p.s.dtype)


def _planes_inside(k: Differences, f: int) -> Tensor:
    """Sum over the planes of singular vectors of positive values."""
    r, x = k.s.shape[-1], k.x
    xa, xb, xc = x[..., :, None, None], x[..., None, :, None], x[..., None, None, :]
    kernel, second = k.kernel, _second(k, xa, xb, xc)
    third = _third(k, xa, xa, xb, xc)
    p = k.s.square()
    own = kernel.diagonal(dim1=-2, dim2=-1)
    # T_aab, and the same against T_aac over a_aa.
    twice = second.diagonal(dim1=-3, dim2=-2).mT
    pair = twice.unsqueeze(-1) * twice.unsqueeze(-2) / own[..., None, None]
    area = kernel.unsqueeze(-1) * kernel.unsqueeze(-2)
    far = kernel.unsqueeze(-3)
    pa, pb, pc = p[..., :, None, None], p[..., None, :, None], p[..., None, None, :]
    bent = kernel.square().unsqueeze(-1) * twice.unsqueeze(-2)
    # Symmetric in b and c; twice, since both orders are summed.
    bent = (bent + bent.mT) / own[..., None, None]
    spread = (pb + pc - pa) * (third - second.square() / far - pair) + bent
    triples = spread / area - second / far + pa * (third - pair) / area
    apart = ~torch.eye(r, dtype=torch.bool, device=x.device)
    distinct = apart[:, :, None] & apart[:, None, :] & apart[None]
    total = 2.0 * torch.where(distinct, triples, 0.0).sum((-3, -2, -1))

    # Q_aaab and Q_aabb.
    thrice = third.diagonal(dim1=-3, dim2=-2).mT
    double = third.diagonal(dim1=-2, dim2=-1)
    cube = twice.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    own, both = own.unsqueeze(-1), p.unsqueeze(-1) + p.unsqueeze(-2)
    radial = both * (thrice - cube * twice / own) / (own * kernel)
    radial = radial + kernel * cube / own.square()
    radial = radial - p.unsqueeze(-2) * twice.square() / (own * kernel.square())
    turned = p.unsqueeze(-1) * twice.square() / own
    opposite = (both * double - turned - turned.mT) / kernel.square()
    pairs = f * torch.where(apart, 4.0 * radial + opposite, 0.0).sum((-2, -1))
    total = f * f * total + pairs
    if f == 1 or r == 1:
        return total
    i, j = torch.triu_indices(r, r, 1, device=x.device)
    both = torch.stack((k.s[..., i], k.s[..., j]), -1)
    return total + _phases(Differences(both, k.depth, k.normalized)).sum(-1)


def _phases(k: Differences) -> Tensor:
    """Sum over the planes of pairs of complex values, (..., 2), that real matrices have not.

    Of one value beside zero, (..., 1), those of the two on one side.
    """
    r, kernel = k.s.shape[-1], k.kernel
    size = kernel[..., 0, 0] * 0.0
    one, other = kernel[..., 0, 0], kernel[..., -1, -1]
    across = kernel[..., 0, 1] if r == 2 else k.mixed[..., 0]

    def e(i: int, j: int, unit: complex, square: Tensor) -> Tensor:
        z = size.new_zeros(*size.shape, 2, 2)
        z[..., i, j] = square.sqrt()
        return realified(unit * z, r)

    ab, ba = (1.0 + 0j, across), (1j, across)
    planes = [(e(0, 0, 1j, one), e(0, 1, *ab), 8.0), (e(0, 1, *ab), e(0, 1, *ba), 4.0)]
    if r == 2:
        planes.append((e(1, 1, 1j, other), e(0, 1, *ab), 8.0))
        planes.append((e(0, 1, *ab), e(1, 0, *ba), 4.0))
    else:
        planes = [(z, w, 0.5 * weight) for z, w, weight in planes]
    both = Differences(torch.cat((k.s, k.s), -1), k.depth, k.normalized)
    frames = CurvatureFrames(both, 2, 2, [], [1, 1], True)
    # Numerators of real forms are twice those of complex ones.
    return sum((0.5 * weight * frames.numerator(z, w) for z, w, weight in planes), size)


def _planes_outside(k: Differences, rows: int, columns: int, f: int) -> Tensor:
    """Sum over the planes with directions outside range (`rows`) or corange (`columns`)."""
    x, p, mixed, kernel = k.x, k.s.square(), k.mixed, k.kernel
    zero = torch.full_like(x, -math.inf)
    xa, xb = x.unsqueeze(-1), x.unsqueeze(-2)
    own = kernel.diagonal(dim1=-2, dim2=-1)
    cube, single, double = (_second(k, x, *y) for y in ((x, x), (x, zero), (zero, zero)))
    twice = _second(k, xa, xa, xb)
    pair = _second(k, xa, xb, zero.unsqueeze(-1))
    roots = k.s ** (2.0 / k.depth) / k.unit
    apart = ~torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)

    # K(e_aa, e_a0).
    radial = p * (_third(k, x, x, x, zero) - cube * single / own) / (own * mixed)
    radial = 2.0 * (rows + columns) * (radial + mixed * cube / own.square()).sum(-1)

    # K(e_ab, e_a0) and K(e_ab, e_0a), a and b in all orders.
    a, b = own.unsqueeze(-1), mixed.unsqueeze(-2)
    pa, pb, one = p.unsqueeze(-1), p.unsqueeze(-2), single.unsqueeze(-1)
    third = _third(k, xa, xa, xb, zero.unsqueeze(-1))
    area = kernel * mixed.unsqueeze(-1)
    bent = (kernel.square() * one + mixed.square().unsqueeze(-1) * twice) / a
    value = (pb - pa) * (third - pair.square() / b - twice * one / a) + bent
    value = value / area - pair / b + pa * (third - twice * one / a) / area
    # K(e_0a, e_0b), where a_00 is a limit.
    third = _third(k, zero.unsqueeze(-1), zero.unsqueeze(-1), xa, xb)
    bent = double.unsqueeze(-2) * (p / roots).unsqueeze(-1)
    shared = (pa + pb) * (third - pair.square() / kernel) + bent + bent.mT
    shared = shared / (mixed.unsqueeze(-1) * b) - pair / kernel
    value = 2.0 * value + shared
    total = (rows + columns) * torch.where(apart, value, 0.0).sum((-2, -1))

    # K(e_a0, e_a0') of two zeros on one side, and K(e_a0, e_0a) of zeros on both.
    third = _third(k, x, x, zero, zero)
    flat = third - single.square() / own
    same = 2.0 * mixed.square() * single / own - p * flat
    same = same / mixed.square() - double * p / (mixed.square() * roots)
    across = p * flat / mixed.square()
    total = total + rows * columns * 2.0 * across.sum(-1)
    total = total + (rows * (rows - 1) + columns * (columns - 1)) * same.sum(-1)
    total = f * f * total + f * radial
    if f == 1:
        return total
    own = Differences(k.s.unsqueeze(-1), k.depth, k.normalized)
    return total + (rows + columns) * _phases(own).sum(-1)


def _second(k: Differences, *nodes: Tensor) -> Tensor:
    return second_difference(nodes, k.depth, k.normalized)


def _third(k: Differences, *nodes: Tensor) -> Tensor:
    return third_difference(nodes, k.depth, k.normalized)
