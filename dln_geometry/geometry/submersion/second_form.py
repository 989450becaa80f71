"""The second fundamental form of the balanced manifold, and O'Neill's tensor of the submersion.

Both are closed forms in the frames ``W_p = Q_p Lam Q_{p-1}^T``, equal singular values included: the
normal space splits, as the vertical one does, into one Jacobi matrix for every pair (i, j).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.metric import blocks_of, metric, tangent_matrix
from dln_geometry.geometry.points import EndToEnd, Network, at_unit_size, balanced_network
from dln_geometry.geometry.submersion.frames import jacobi_solve
from dln_geometry.geometry.submersion.projections import (
    as_ambient_pair,
    horizontal_part,
    lift_layers,
    push_layers,
    vertical_part,
)
from dln_geometry.support import as_covector

_Layers = Sequence[Tensor]


def second_fundamental_form(
    factors: Sequence[Any], v: Sequence[Any], w: Sequence[Any]
) -> tuple[Tensor, ...]:
    """Return the normal part ``II(v, w)`` of the derivative of w along v, for tangent v and w.

    The geodesics of the balanced manifold are ``W'' = II(W', W')``. On this normal vector the
    differentials of the defining equations (the moments, and rank r) equal minus their second
    derivatives along v and w. With ``n_p = lam_i mu_{p-1} - lam_j mu_p`` the moments
    within the rank become the Jacobi matrix with diagonal ``2 (lam_i^2 + lam_j^2)`` and
    off-diagonal ``-2 lam_i lam_j``, diagonal in the sines ``sin(k p pi/N)``.

    Parameters and errors as in `horizontal`.

    References
    ----------
    Menon, arXiv 2411.09004 (the balanced manifold); O'Neill, Semi-Riemannian geometry, chapter 4.

    Examples
    --------
    >>> factors = ([[1.0]], [[1.0]])
    >>> v = ([[1.0]], [[1.0]])
    >>> dln.second_fundamental_form(factors, v, v)  # the balanced line is straight
    (tensor([[0.]]), tensor([[0.]]))
    """
    network = balanced_network(factors, complex=True)
    v, w = as_ambient_pair(v, w, network)

    def normal(network: _Layers, v: _Layers, w: _Layers) -> tuple[Tensor, ...]:
        return _normal(*Network(network).balanced_parts(), v, w)

    return at_unit_size(normal, -1.0, network, v, w)


def horizontal_lift(factors: Sequence[Any], z: Any) -> tuple[Tensor, ...]:
    """Return the horizontal vector over a tangent vector of the end-to-end matrices.

    ``lift(A^{-1} z)`` of balanced layers. Errors as in `horizontal` and `metric`.

    Examples
    --------
    >>> dln.horizontal_lift(([[2.0]], [[2.0]]), [[4.0]])
    (tensor([[1.]]), tensor([[1.]]))
    """
    network = balanced_network(factors, complex=True)
    z = as_covector(z, network[0], network.shape, "z", network.batch_shape)

    def lifted(layers: _Layers, z: _Layers) -> tuple[Tensor, ...]:
        return lift_layers(layers, metric(Network(layers).point(), z[0]))

    return at_unit_size(lifted, 1.0 - len(network), network, (z,))


def integrability(factors: Sequence[Any], v: Sequence[Any], w: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return O'Neill's tensor ``A_v w = ver D_{hor v} (hor w) + hor D_{hor v} (ver w)``.

    The covector P with ``hor w = lift(W; P)`` extends ``hor w`` to a horizontal field, and the
    first term is the vertical part of its derivative. The second is the adjoint of the first,
    ``-horizontal_lift(D^2 phi(hor v, ver w))``.

    Parameters and errors as in `horizontal`.

    References
    ----------
    O'Neill, The fundamental equations of a submersion, 1966.

    Examples
    --------
    >>> factors = dln.random_balanced((2, 2, 2), generator=0, dtype=torch.float64)
    >>> first, second = dln.horizontal_frame(factors)
    >>> v, w = (first[0], second[0]), (first[1], second[1])
    >>> [a.abs().max() > 0.01 for a in dln.integrability(factors, v, w)]
    [tensor(True), tensor(True)]
    """
    network = balanced_network(factors, complex=True)
    v, w = as_ambient_pair(v, w, network)
    return at_unit_size(_integrability, -1.0, network, v, w)


def _integrability(layers: _Layers, v: list[Tensor], w: list[Tensor]) -> tuple[Tensor, ...]:
    """Return `integrability` of balanced layers, without checks."""
    network = Network(layers)
    parts, p = network.balanced_parts(), network.point()
    across, level = horizontal_part(*parts, v), horizontal_part(*parts, w)
    along = vertical_part(*parts, w)
    covector = metric(p, _tangent(p, push_layers(network, level)))
    turned = vertical_part(*parts, _lift_derivative(network, across, covector))
    back = lift_layers(network, metric(p, _tangent(p, _second_push(network, across, along))))
    return tuple(a - b for a, b in zip(turned, back, strict=True))


def _tangent(p: EndToEnd, z: Tensor) -> Tensor:
    """Project a matrix on the tangent space of the matrices of rank r."""
    return tangent_matrix(p.u, p.vh, blocks_of(p.u, p.vh, z))


def _symmetric(a: Tensor) -> Tensor:
    return a + a.mH


def _normal(frames: list[Tensor], lam: Tensor, v: _Layers, w: _Layers) -> tuple[Tensor, ...]:
    """Return `second_fundamental_form` from the frames of balanced layers."""
    depth = len(frames) - 1
    normal = _beyond_rank(frames, lam, v, w)
    if depth == 1:
        return tuple(normal)
    # Minus the second derivatives of the moments.
    ends = pairwise(zip(v, w, strict=True))
    bends = [_symmetric(a @ b.mH) - _symmetric(c.mH @ d) for (a, b), (c, d) in ends]
    cores = [q.mH @ e @ q for q, e in zip(frames[1:-1], bends, strict=True)]
    mu = jacobi_solve(torch.stack(cores, -3), lam, depth)
    rim = mu.new_zeros((*mu.shape[:-3], 1, *mu.shape[-2:]))
    before, after = torch.cat((rim, mu), -3), torch.cat((mu, rim), -3)
    inside = lam[..., None, :, None] * before - lam[..., None, None, :] * after
    for p, (q_in, q_out) in enumerate(pairwise(frames)):
        normal[p] = normal[p] + q_out @ inside[..., p, :, :] @ q_in.mH
    for p in range(1, depth):
        q = frames[p]
        turn = bends[p - 1] @ q
        # One half for each of the two layers that meet here.
        turn = -0.5 * (turn - q @ (q.mH @ turn)) / lam.unsqueeze(-2)
        normal[p - 1] = normal[p - 1] + turn @ frames[p - 1].mH
        normal[p] = normal[p] - frames[p + 1] @ turn.mH
    return tuple(normal)


def _beyond_rank(frames: list[Tensor], lam: Tensor, v: _Layers, w: _Layers) -> list[Tensor]:
    """Return ``(1 - Q_p Q_p^T) (v W^+ w + w W^+ v) (1 - Q_{p-1} Q_{p-1}^T)`` for every layer."""
    parts = []
    for (q_in, q_out), a, b in zip(pairwise(frames), v, w, strict=True):
        inverse = (q_in / lam.unsqueeze(-2)) @ q_out.mH
        bend = a @ inverse @ b + b @ inverse @ a
        bend = bend - q_out @ (q_out.mH @ bend)
        parts.append(bend - (bend @ q_in) @ q_in.mH)
    return parts


def _second_push(layers: _Layers, v: _Layers, w: _Layers) -> Tensor:
    """Return the second derivative of the product, ``D^2 phi(v, w)``."""
    value, by_v, by_w = layers[0], v[0], w[0]
    both = torch.zeros_like(v[0] + w[0])
    for a, da, db in zip(layers[1:], v[1:], w[1:], strict=True):
        both = a @ both + da @ by_w + db @ by_v
        value, by_v, by_w = a @ value, a @ by_v + da @ value, a @ by_w + db @ value
    return both


def _lift_derivative(layers: _Layers, v: _Layers, g: Tensor) -> list[Tensor]:
    """Return the derivative along v of ``lift(W; G)``, G held fixed."""
    before, moved = [layers[0]], [v[0]]
    for a, da in zip(layers[1:-1], v[1:-1], strict=True):
        moved.append(da @ before[-1] + a @ moved[-1])
        before.append(a @ before[-1])
    parts: list[Tensor] = []
    turned = torch.zeros_like(g)
    for p in range(len(layers) - 1, 0, -1):
        parts.append(turned @ before[p - 1].mH + g @ moved[p - 1].mH)
        g, turned = layers[p].mH @ g, v[p].mH @ g + layers[p].mH @ turned
    return [turned, *reversed(parts)]
