r"""Steps on the matrices of rank r: the product step in thin form, of second order at every depth.

With ``l = s^{1/q}`` the canonical balanced factors move along a horizontal line,
``F_b = diag(l) + w_b o M``, ``w_b,ij = l_i^{q-b} l_j^{b-1} / a_ij``, and are multiplied (see
`dln_geometry.geometry.metric`; here in numpy, since at r x r the calls cost more than the work). At
integer depth q = N. Otherwise each factor stands for N/q layers: its diagonal moves as
``|y|^{N/q}`` with y the flat coordinate, and the velocity corrects the error of second order.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from dln_geometry.geometry.metric import thin_svd
from manifolds._convert import to_torch
from manifolds._pymanopt.frame import Frame
from manifolds._pymanopt.vectors import FixedRankPoint, FixedRankTangent


def retract(frame: Frame, z: FixedRankTangent) -> FixedRankPoint:
    """Return the point reached by a step; see `EndToEndManifold.retraction`."""
    (u, s, vt), r = frame.point, len(frame.point.s)
    up, core, vp = z
    left = right = None
    above = below = core[:0]
    if not frame.depth.infinite:
        left, above = _move_basis(u, up)
        right, below = _move_basis(vt.T, vp)
    if frame.depth == 1.0:
        corner = np.zeros((len(above), len(below)), s.dtype)
        moved = np.block([[np.diag(s) + core, below.T], [above, corner]])
        turned, s, turned_t = np.linalg.svd(moved, full_matrices=False)
        turned, s, turned_t = turned[:, :r], s[:r], turned_t[:r]
    else:
        above, core, below = _corrected(frame, above, core, below)
        (first, *hidden, last), outside = _step_factors(frame, core)
        last = np.concatenate((last, above * outside))
        first = np.concatenate((first, (below * outside).T), 1)
        for factor in hidden:
            first = factor @ first
        parts = thin_svd(torch.from_numpy(last), torch.from_numpy(first), r)
        turned, s, turned_t = (part.numpy() for part in parts)
    return FixedRankPoint(_in_whole(u, left, turned), s, _in_whole(vt.T, right, turned_t.T).T)


def _step_factors(frame: Frame, core: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the factors of a step, first factor first, and the weights of moves outwards."""
    s, depth, q = frame.point.s, float(frame.depth), frame.layers
    factors = list(frame.step_weights * core)
    k = np.arange(len(s))
    if frame.depth.infinite:
        diagonal, outside = s ** (1 / q) * np.exp(core.diagonal() / (q * s)), np.zeros_like(s)
    else:
        growth = 1 + core.diagonal() / (depth * s)
        outside = s ** (1 / depth - 1)
        if depth == q:
            diagonal = s ** (1 / depth) * growth
        else:
            # For depth < q the power would be infinite where the diagonal meets zero.
            size = np.maximum(np.abs(growth), np.finfo(s.dtype).tiny)
            diagonal = np.sign(growth) * s ** (1 / q) * size ** (depth / q)
            outside = s ** (1 / q - 1) * size ** (depth / q - 1)
    # An even number of signs would cancel: then only the first factor takes the sign.
    once = q % 2 == 0 and depth != q and depth % 2 != 0
    for b, factor in enumerate(factors):
        factor[k, k] = np.abs(diagonal) if once and b > 0 else diagonal
    return factors, outside


def _move_basis(q: np.ndarray, move: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Return Q, `None` for square q, and R with ``move = Q R`` and ``q^T Q = 0 = q^T move``."""
    size, r = q.shape
    if size == r:
        return None, move[:0]
    if size <= 2 * r:
        more = np.linalg.qr(q, mode="complete")[0][:, r:]
        return more, more.T @ move
    basis, upper = torch.linalg.qr(to_torch(move))
    return basis.numpy(), upper.numpy()


def _in_whole(q: np.ndarray, more: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """Return the columns of x, which are given in the basis (q, more)."""
    r = q.shape[1]
    return q @ x if more is None else q @ x[:r] + more @ x[r:]


def _corrected(
    frame: Frame, above: np.ndarray, core: np.ndarray, below: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add the second-order error of the factors to the blocks of Z, never more than Z itself."""
    if frame.step_correction is None:
        return above, core, below
    inside, outside = frame.step_correction
    more = (core[:, None, :] @ (inside * core))[:, 0, :]
    bent = above @ (outside * core), below @ (outside * core.T)
    unit, outer_unit = frame.roots
    length, size = _sum_of_squares(core / unit), _sum_of_squares(more / unit)
    if len(above) + len(below) > 0:
        length += _sum_of_squares(above / outer_unit) + _sum_of_squares(below / outer_unit)
        size += _sum_of_squares(bent[0] / outer_unit) + _sum_of_squares(bent[1] / outer_unit)
    part = math.sqrt(length / (length + size)) if size > 0 else 0.0
    return above + part * bent[0], core + part * more, below + part * bent[1]


def _sum_of_squares(x: np.ndarray) -> float:
    return float(np.vdot(x, x))
