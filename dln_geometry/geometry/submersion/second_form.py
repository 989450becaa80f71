"""How the balanced manifold bends in the space of layers, and how its horizontal spaces turn.

Both are closed forms in the frames ``W_p = Q_p Lam Q_{p-1}^T``: the normal space splits, as the
vertical one does, into one Jacobi matrix for every pair (i, j), so that equal singular values are
no exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.metric import metric
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.geometry.submersion.frames import jacobi_solve, split
from dln_geometry.geometry.submersion.projections import as_ambient, horizontal_part, vertical_part

__all__ = ["horizontal_lift", "integrability", "second_fundamental_form"]

_Layers = Sequence[Tensor]


def second_fundamental_form(
    factors: Sequence[Any], v: Sequence[Any], w: Sequence[Any]
) -> tuple[Tensor, ...]:
    """Return the normal part ``II(v, w)`` of the derivative of w along v, for tangent v and w.

    The geodesics of the balanced manifold are ``W'' = II(W', W')``. It is the normal vector on
    which the differentials of the defining equations (the moments, and rank r) take the values
    of minus their second derivatives. With ``n_p = lam_i mu_{p-1} - lam_j mu_p`` the moments
    within the rank become the Jacobi matrix with diagonal ``2 (lam_i^2 + lam_j^2)`` and
    off-diagonal ``-2 lam_i lam_j``, diagonal in the sines ``sin(k p pi/N)``.

    Parameters
    ----------
    factors : sequence of array_like
        Balanced layers ``(W_1, ..., W_N)``; all of a batch must have the same rank.
    v, w : sequence of array_like
        Tangent vectors: one matrix of the same shape for every layer.

    Returns
    -------
    tuple of Tensor

    Raises
    ------
    TypeError
        If an argument is no sequence of real matrices.
    ValueError
        If the layers do not chain, are not balanced, vanish, or a batch mixes ranks; if `v` or
        `w` does not match them.

    References
    ----------
    Menon, arXiv 2411.09004 (the balanced manifold); O'Neill, Semi-Riemannian geometry, chapter 4.
    """
    layers, frames, lam = split(factors)
    return _normal(frames, lam, as_ambient(v, layers), as_ambient(w, layers))


def horizontal_lift(factors: Sequence[Any], z: Any) -> tuple[Tensor, ...]:
    """Return the horizontal vector over a tangent vector of the end-to-end matrices.

    ``lift(A^{-1} z)``, the metric taken in the frames of the layers.

    Parameters
    ----------
    factors : sequence of array_like
        Balanced layers ``(W_1, ..., W_N)``.
    z : array_like, shape (..., d_N, d_0)
        Tangent vector of the matrices of the same rank.

    Raises
    ------
    TypeError
        If `factors` is no sequence of real matrices.
    ValueError
        If the layers are not balanced, or `z` is not tangent or has the wrong shape.

    Examples
    --------
    >>> horizontal_lift(([[2.0]], [[2.0]]), [[4.0]])
    (tensor([[1.]]), tensor([[1.]]))
    """
    layers, frames, lam = split(factors)
    return _lifted(layers, metric(_point(frames, lam), z))


def integrability(factors: Sequence[Any], v: Sequence[Any], w: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return O'Neill's tensor ``A_v w = ver D_{hor v} (hor w) + hor D_{hor v} (ver w)``.

    The horizontal part of w is ``lift(W; P)`` for one covector P, which extends it by a
    horizontal field: the first term is the vertical part of its derivative. The second is the
    adjoint of the first, ``-horizontal_lift(D^2 phi(hor v, ver w))``.

    Parameters and errors as in `second_fundamental_form`.

    References
    ----------
    O'Neill, The fundamental equations of a submersion, 1966.
    """
    layers, frames, lam = split(factors)
    v, w = as_ambient(v, layers), as_ambient(w, layers)
    p = _point(frames, lam)
    across = list(horizontal_part(frames, lam, v))
    along = list(vertical_part(frames, lam, w))
    level = list(horizontal_part(frames, lam, w))
    covector = metric(p, _tangent(p, _push(layers, level)))
    turned = vertical_part(frames, lam, _lift_derivative(layers, across, covector))
    back = _lifted(layers, metric(p, _tangent(p, _second_push(layers, across, along))))
    return tuple(a - b for a, b in zip(turned, back, strict=True))


def _symmetric(a: Tensor) -> Tensor:
    return a + a.mT


def _point(frames: list[Tensor], lam: Tensor) -> EndToEnd:
    """Return the end-to-end matrix, from the frames: its product may have lost small values."""
    depth = len(frames) - 1
    return EndToEnd(frames[-1], lam**depth, frames[0].mT, depth, False)


def _tangent(p: EndToEnd, z: Tensor) -> Tensor:
    """Drop what leaves the tangent space of the matrices of rank r."""
    left = z - p.u @ (p.u.mT @ z)
    return z - left + (left @ p.vh.mT) @ p.vh


def _normal(frames: list[Tensor], lam: Tensor, v: _Layers, w: _Layers) -> tuple[Tensor, ...]:
    depth = len(frames) - 1
    normal = _beyond_rank(frames, lam, v, w)
    if depth == 1:
        return tuple(normal)
    # Minus the second derivatives of the moments.
    bends = [
        _symmetric(v[p] @ w[p].mT) - _symmetric(v[p + 1].mT @ w[p + 1]) for p in range(depth - 1)
    ]
    cores = [q.mT @ e @ q for q, e in zip(frames[1:-1], bends, strict=True)]
    mu = jacobi_solve(torch.stack(cores, -3), lam, depth)
    rim = mu.new_zeros((*mu.shape[:-3], 1, *mu.shape[-2:]))
    before, after = torch.cat((rim, mu), -3), torch.cat((mu, rim), -3)
    inside = lam[..., None, :, None] * before - lam[..., None, None, :] * after
    for p, (q_in, q_out) in enumerate(pairwise(frames)):
        normal[p] = normal[p] + q_out @ inside[..., p, :, :] @ q_in.mT
    for p in range(1, depth):
        q = frames[p]
        turn = bends[p - 1] @ q
        # One half for each of the two layers that meet here.
        turn = -0.5 * (turn - q @ (q.mT @ turn)) / lam.unsqueeze(-2)
        normal[p - 1] = normal[p - 1] + turn @ frames[p - 1].mT
        normal[p] = normal[p] - frames[p + 1] @ turn.mT
    return tuple(normal)


def _beyond_rank(frames: list[Tensor], lam: Tensor, v: _Layers, w: _Layers) -> list[Tensor]:
    """Return ``(1 - Q_p Q_p^T) (v W^+ w + w W^+ v) (1 - Q_{p-1} Q_{p-1}^T)`` for every layer."""
    parts = []
    for (q_in, q_out), a, b in zip(pairwise(frames), v, w, strict=True):
        inverse = (q_in / lam.unsqueeze(-2)) @ q_out.mT
        bend = a @ inverse @ b + b @ inverse @ a
        bend = bend - q_out @ (q_out.mT @ bend)
        parts.append(bend - (bend @ q_in) @ q_in.mT)
    return parts


def _push(layers: _Layers, v: _Layers) -> Tensor:
    value, moved = layers[0], v[0]
    for a, da in zip(layers[1:], v[1:], strict=True):
        value, moved = a @ value, a @ moved + da @ value
    return moved


def _second_push(layers: _Layers, v: _Layers, w: _Layers) -> Tensor:
    """Return the second derivative of the product, ``D^2 phi(v, w)``."""
    value, by_v, by_w = layers[0], v[0], w[0]
    both = torch.zeros_like(v[0] + w[0])
    for a, da, db in zip(layers[1:], v[1:], w[1:], strict=True):
        both = a @ both + da @ by_w + db @ by_v
        value, by_v, by_w = a @ value, a @ by_v + da @ value, a @ by_w + db @ value
    return both


def _products(layers: _Layers, v: _Layers) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Return ``W_{p-1}..W_1`` for every layer (`None` is the identity), and its derivative."""
    value: list[Tensor | None] = [None]
    moved: list[Tensor | None] = [None]
    for a, da in zip(layers[:-1], v[:-1], strict=True):
        x, dx = value[-1], moved[-1]
        value.append(a if x is None else a @ x)
        moved.append(da if x is None else da @ x + (0.0 if dx is None else a @ dx))
    return value, moved


def _lifted(layers: _Layers, covector: Tensor) -> tuple[Tensor, ...]:
    value, _ = _products(layers, layers)
    parts: list[Tensor] = []
    back = covector
    for p in range(len(layers) - 1, -1, -1):
        x = value[p]
        parts.append(back if x is None else back @ x.mT)
        back = layers[p].mT @ back
    return tuple(reversed(parts))


def _lift_derivative(layers: _Layers, v: _Layers, covector: Tensor) -> list[Tensor]:
    """Return the derivative along v of ``lift(W; P)``, P held fixed."""
    value, moved = _products(layers, v)
    parts: list[Tensor] = []
    back, turned = covector, torch.zeros_like(covector)
    for p in range(len(layers) - 1, -1, -1):
        x, dx = value[p], moved[p]
        part = turned if x is None else turned @ x.mT
        parts.append(part if dx is None else part + back @ dx.mT)
        back, turned = layers[p].mT @ back, v[p].mT @ back + layers[p].mT @ turned
    return list(reversed(parts))
