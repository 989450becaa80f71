"""Horizontal and vertical tangent spaces of the balanced manifold over ``phi: W -> X``.

At a balanced point of rank r, ``W_p = Q_p Lam Q_{p-1}^T`` with ``Q_N = U`` and ``Q_0 = V``. In
these frames the horizontal space is spanned by ``(lam_i^{N-p} lam_j^{p-1})_p`` for every (i, j),
and the vertical space (hidden rotations) splits into one Jacobi matrix for every pair: both are
known in closed form, and no matrix is inverted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points import (
    balanced_network,
    by_power_of_two,
    exponent_of,
    is_ordinary,
    over_units,
)
from dln_geometry.geometry.submersion.frames import (
    complement,
    cores_of,
    dyads,
    from_cores,
    horizontal_weights,
    jacobi_angles,
    transform,
)
from dln_geometry.support import as_covector, as_factors, common_batch


def pushforward(factors: Sequence[Any], v: Sequence[Any]) -> Tensor:
    """Return the differential of the product, ``sum_p W_N..W_{p+1} v_p W_{p-1}..W_1``, (..., m, n).

    `factors` are layers ``(W_1, ..., W_N)``, balanced or not, W_p of shape (..., d_p, d_{p-1}), and
    `v` holds one matrix of the same shape for every layer; its leading dimensions may broadcast.

    Examples
    --------
    >>> dln.pushforward(([[2.0]], [[3.0]]), ([[1.0]], [[10.0]]))
    tensor([[23.]])
    """
    layers = as_factors(factors, complex=True)
    v = as_ambient(v, layers)
    if is_ordinary(layers) and is_ordinary(v):
        return push_layers(layers, v)
    small, own = over_units(layers)
    moves, sizes = over_units(v)
    # Every term is the product of all units, times that of a move over that of its layer.
    gaps = [size - e for size, e in zip(sizes, own, strict=True)]
    most = torch.stack(torch.broadcast_tensors(*gaps)).amax(0)
    moves = [by_power_of_two(a, gap - most) for a, gap in zip(moves, gaps, strict=True)]
    return by_power_of_two(push_layers(small, moves), sum(own, most))


def push_layers(layers: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
    """Return `pushforward` of layers and moves that are known to match, without checks."""
    value, moved = layers[0], v[0]
    for w, dw in zip(layers[1:], v[1:], strict=True):
        value, moved = w @ value, w @ moved + dw @ value
    return moved


def lift(factors: Sequence[Any], z: Any) -> tuple[Tensor, ...]:
    """Return the adjoint of `pushforward`, ``((W_N..W_{p+1})^T z (W_{p-1}..W_1)^T)_p``.

    With ``z = -E'(X)``, shape (..., d_N, d_0), it is the velocity of the gradient flow of the
    layers. Layers as in `pushforward`.

    References
    ----------
    Menon, arXiv 2411.09004.

    Examples
    --------
    >>> dln.lift(([[2.0]], [[3.0]]), [[1.0]])
    (tensor([[3.]]), tensor([[2.]]))
    """
    layers = as_factors(factors, complex=True)
    shape = layers[-1].shape[-2], layers[0].shape[-1]
    z = as_covector(z, layers[0], shape, "z", layers[0].shape[:-2])
    if is_ordinary(layers) and is_ordinary((z,)):
        return lift_layers(layers, z)
    small, own = over_units(layers)
    size = exponent_of(z)
    parts = lift_layers(small, by_power_of_two(z, -size))
    return tuple(by_power_of_two(a, sum(own, size) - e) for a, e in zip(parts, own, strict=True))


def lift_layers(layers: Sequence[Tensor], g: Tensor) -> tuple[Tensor, ...]:
    """Return `lift` of a covector that is known to match the layers, without checks."""
    before = list(accumulate(layers[:-1], lambda x, w: w @ x))
    parts: list[Tensor] = []
    for p in range(len(layers) - 1, 0, -1):
        parts.append(g @ before[p - 1].mH)
        g = layers[p].mH @ g
    return (g, *reversed(parts))


def horizontal(factors: Sequence[Any], v: Sequence[Any]) -> tuple[Tensor, ...]:
    """Project orthogonally on the horizontal space, ``lift(A^{-1} dphi v)``.

    In the frames, with ``w_p = lam_i^{N-p} lam_j^{p-1} / sqrt(a_ij)`` and
    ``c_p = Q_p^T v_p Q_{p-1}``, it is ``w_p sum_q w_q c_q`` for every entry (i, j); outside the
    range (corange) of X it keeps ``v_N Q_{N-1}`` (``Q_1^T v_1``).

    `v` is any vector, as in `pushforward`.

    Raises
    ------
    ValueError
        If the layers are not balanced, vanish, or a batch mixes ranks.

    References
    ----------
    Menon, arXiv 2411.09004; Menon, Yu, arXiv 2509.09088.

    Examples
    --------
    >>> dln.horizontal(([[2.0]], [[2.0]]), ([[1.0]], [[5.0]]))
    (tensor([[3.0000]]), tensor([[3.0000]]))
    """
    network = balanced_network(factors, complex=True)
    return horizontal_part(*network.balanced_parts(), as_ambient(v, network))


def vertical(factors: Sequence[Any], v: Sequence[Any]) -> tuple[Tensor, ...]:
    r"""Project orthogonally on the vertical space, the tangent space of the orbit of X.

    It is spanned by the hidden rotations ``W_p -> a_p W_p - W_p a_{p-1}``, ``a_p``
    antisymmetric. For a pair (i, j) within the rank their Gram matrix is the Jacobi matrix of
    size N - 1 with diagonal ``2 (lam_i^2 + lam_j^2)`` and off-diagonal ``-2 lam_i lam_j``, whose
    eigenvectors ``sin(k p pi/N)`` give the orthonormal vectors of `vertical_frame`. Hidden
    layers wider than the rank add the directions that turn ``Q_p`` out of its range.

    Parameters, errors and references as in `horizontal`.

    Examples
    --------
    >>> eye = torch.eye(2)
    >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> dln.vertical((eye, eye), (turn, -turn))  # a rotation of the hidden layer
    (tensor([[ 0.0000, -1.0000],
            [ 1.0000,  0.0000]]), tensor([[ 0.0000,  1.0000],
            [-1.0000,  0.0000]]))
    """
    network = balanced_network(factors, complex=True)
    return vertical_part(*network.balanced_parts(), as_ambient(v, network))


def tangent(factors: Sequence[Any], v: Sequence[Any]) -> tuple[Tensor, ...]:
    """Project on the tangent space of the balanced manifold: `horizontal` plus `vertical`.

    Parameters and errors as there.

    Examples
    --------
    >>> dln.tangent(([[1.0]], [[1.0]]), ([[1.0]], [[0.0]]))
    (tensor([[0.5000]]), tensor([[0.5000]]))
    """
    network = balanced_network(factors, complex=True)
    parts, moves = network.balanced_parts(), as_ambient(v, network)
    across, along = horizontal_part(*parts, moves), vertical_part(*parts, moves)
    return tuple(a + b for a, b in zip(across, along, strict=True))


def horizontal_frame(factors: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return an orthonormal frame of the horizontal space.

    ``lift(u_i v_j^T) / sqrt(a_ij)`` for i, j within the rank (first r^2 vectors, j fastest),
    then i beyond it (r (m - r) vectors), then j beyond it (r (n - r)), where the kernel is
    ``s^{2-2/N}``. Returns, for every layer, the components of the ``K = r (m + n - r)`` vectors,
    (..., K, d_p, d_{p-1}); of complex layers 2 K, the second half i times the first. Parameters,
    errors and references as in `horizontal`.

    Examples
    --------
    >>> factors = dln.random_balanced((3, 3, 2), generator=0)
    >>> frame = dln.horizontal_frame(factors)
    >>> [w.shape for w in frame]  # r (m + n - r) = 6 vectors
    [torch.Size([6, 3, 3]), torch.Size([6, 2, 3])]
    """
    frames, lam = balanced_network(factors, complex=True).balanced_parts()
    depth = len(frames) - 1
    weights = horizontal_weights(lam, depth)
    left, right = complement(frames[-1]), complement(frames[0])
    parts = []
    for p, (before, after) in enumerate(pairwise(frames), start=1):
        inside = weights[..., p - 1, :, :, None, None] * dyads(after, before)
        # Only the last layer reaches beyond the range of X, only the first beyond its corange.
        above = left if p == depth else left.new_zeros((*after.shape[:-1], left.shape[-1]))
        below = right if p == 1 else right.new_zeros((*before.shape[:-1], right.shape[-1]))
        blocks = (inside, dyads(above, before), dyads(after, below))
        parts.append(torch.cat([b.flatten(-4, -3) for b in blocks], -3))
    # Over the real numbers, i times a vector of a complex frame is another one.
    return tuple(torch.cat((w, 1j * w), -3) if w.is_complex() else w for w in parts)


def vertical_frame(factors: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return an orthonormal frame of the vertical space.

    First, for every pair ``i < j`` within the rank, k = 1..N-1 (k fastest), the normalised
    eigenvectors of the Jacobi matrix of `vertical`: with ``phi_p = (2p - 1) k pi/2N`` and
    ``tan psi = tan(k pi/2N) (lam_i + lam_j)/(lam_j - lam_i)`` the entries (i, j) and (j, i) of
    ``Q_p^T v_p Q_{p-1}`` are ``sin(phi_p + psi)/sqrt N`` and ``sin(phi_p - psi)/sqrt N``. Then for
    every hidden layer p, f beyond and j within the rank (j fastest), the rotation of q_j towards
    q_f: ``q_f q_j^T / sqrt 2`` in W_p and ``q_j q_f^T / sqrt 2`` in W_{p+1}.

    Returns, for every layer, the components of the ``K = sum_p (d_p r - r (r+1)/2)`` vectors (the
    sum over hidden layers), (..., K, d_p, d_{p-1}). Of complex layers follow K rotations with an
    imaginary generator, in the same order, and for every i and k the phases of the i-th columns,
    ``i sqrt(2/N) cos(phi_p)`` at (i, i). Parameters and errors as in `horizontal`.

    Examples
    --------
    >>> factors = dln.random_balanced((2, 2, 2, 2), generator=0)
    >>> [w.shape for w in dln.vertical_frame(factors)]  # one rotation for each hidden layer
    [torch.Size([2, 2, 2]), torch.Size([2, 2, 2]), torch.Size([2, 2, 2])]
    """
    frames, lam = balanced_network(factors, complex=True).balanced_parts()
    depth, r = len(frames) - 1, lam.shape[-1]
    i, j = torch.triu_indices(r, r, 1, device=lam.device)
    sine, cosine, cos_psi, sin_psi = jacobi_angles(lam, depth)
    # Shape (..., pairs, N - 1) against the angles (N - 1,) of one layer.
    cos_psi, sin_psi = cos_psi[..., i, j].mH, sin_psi[..., i, j].mH
    beyond = [complement(q) for q in frames[1:-1]]
    outside = [q.shape[-1] * r for q in beyond]
    parts = []
    for p, (before, after) in enumerate(pairwise(frames), start=1):
        rising = cos_psi * sine[:, p - 1] / math.sqrt(depth)
        falling = sin_psi * cosine[:, p - 1] / math.sqrt(depth)
        inner = dyads(after, before)
        upper = inner[..., i, j, None, :, :] * (rising + falling)[..., None, None]
        lower = inner[..., j, i, None, :, :] * (rising - falling)[..., None, None]
        inside = (upper + lower).flatten(-4, -3)
        tail = [inside.new_zeros((*inside.shape[:-3], k, *inside.shape[-2:])) for k in outside]
        if p < depth:
            tail[p - 1] = math.sqrt(0.5) * dyads(beyond[p - 1], before).flatten(-4, -3)
        if p > 1:
            block = dyads(after, beyond[p - 2]).transpose(-4, -3).flatten(-4, -3)
            tail[p - 2] = math.sqrt(0.5) * block
        if not inside.is_complex():
            parts.append(torch.cat((inside, *tail), -3))
            continue
        # An anti-Hermitian generator has c_ji = i where c_ij = i.
        turned = [1j * (upper - lower).flatten(-4, -3), *(1j * block for block in tail)]
        if p > 1:
            turned[p - 1] = -turned[p - 1]
        own = inner.diagonal(dim1=-4, dim2=-3).movedim(-1, -3)[..., :, None, :, :]
        angle = math.sqrt(2.0 / depth) * cosine[:, p - 1, None, None]
        phase = (1j * angle * own).flatten(-4, -3)
        parts.append(torch.cat((inside, *tail, *turned, phase), -3))
    return tuple(parts)


def as_ambient(v: Sequence[Any], layers: Sequence[Tensor], name: str = "v") -> list[Tensor]:
    """Convert a vector of the ambient space: one matrix for every layer, of its shape.

    Their leading dimensions broadcast with one another and with those of the layers.
    """
    if isinstance(v, torch.nn.ParameterList):
        v = tuple(v)
    if isinstance(v, Tensor | str | bytes | bytearray) or not isinstance(v, Sequence):
        raise TypeError(f"{name} must be a sequence of matrices, got {type(v).__name__}")
    if (count := len(layers)) != len(v):
        raise ValueError(f"{name} must hold one matrix for each of {count} layers, got {len(v)}")
    parts = [
        as_covector(a, w, (w.shape[-2], w.shape[-1]), f"{name}[{p}]", w.shape[:-2])
        for p, (a, w) in enumerate(zip(v, layers, strict=True))
    ]
    if len({a.shape[:-2] for a in parts}) > 1:
        batch = common_batch(**{f"{name}[{p}]": a.shape[:-2] for p, a in enumerate(parts)})
        parts = [a.expand(*batch, *a.shape[-2:]) for a in parts]
    return parts


def as_ambient_pair(v: Any, w: Any, layers: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Convert two vectors of the ambient space; their leading dimensions broadcast."""
    one, two = as_ambient(v, layers), as_ambient(w, layers, "w")
    batches = {"factors": layers[0].shape[:-2], "v": one[0].shape[:-2], "w": two[0].shape[:-2]}
    common_batch(**batches)
    return one, two


def horizontal_part(frames: list[Tensor], lam: Tensor, v: list[Tensor]) -> tuple[Tensor, ...]:
    """Return `horizontal` from the frames of balanced layers, without checks."""
    cores, weights = cores_of(frames, v), horizontal_weights(lam, len(v))
    parts = from_cores(frames, weights * (weights * cores).sum(-3, keepdim=True))
    above = v[-1] @ frames[-2] - frames[-1] @ cores[..., -1, :, :]
    parts[-1] = parts[-1] + above @ frames[-2].mH
    below = frames[1].mH @ v[0] - cores[..., 0, :, :] @ frames[0].mH
    parts[0] = parts[0] + frames[1] @ below
    return tuple(parts)


def vertical_part(frames: list[Tensor], lam: Tensor, v: list[Tensor]) -> tuple[Tensor, ...]:
    """Return `vertical` from the frames of balanced layers, without checks."""
    depth, cores = len(v), cores_of(frames, v)
    sine, cosine, cos_psi, sin_psi = jacobi_angles(lam, depth)
    # Antisymmetric in (i, j), as are both terms: the pair (j, i) is the pair (i, j) reversed.
    along = cos_psi * transform(sine, cores + cores.mH)
    along = along + sin_psi * transform(cosine, cores - cores.mH)
    moved = transform(sine.mH, cos_psi * along) + transform(cosine.mH, sin_psi * along)
    parts = from_cores(frames, moved / depth)
    for p in range(1, depth):
        before, q, after = frames[p - 1 : p + 2]
        turn = 0.5 * (v[p - 1] @ before + v[p].mH @ after)
        turn = turn - q @ (q.mH @ turn)
        parts[p - 1] = parts[p - 1] + turn @ before.mH
        parts[p] = parts[p] + after @ turn.mH
    return tuple(parts)
