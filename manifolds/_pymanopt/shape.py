r"""The second-order geometry of the balanced manifold in the space of all layers.

At ``W_p = Q_p Lam Q_{p-1}^T`` the normal vectors are the gradients of the moments,
``W_p sigma_{p-1} - sigma_p W_p`` with symmetric ``sigma_p`` (``sigma_0 = sigma_N = 0``), and, below
full rank, the matrices outside both ``Q_p`` and ``Q_{p-1}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dln_geometry.geometry.points import balanced_frames, chain_from_frames, chain_svd, polar
from dln_geometry.geometry.submersion import cores_of, horizontal_part, vertical_part


def tangent_layers(frames: list[Tensor], lam: Tensor, v: list[Tensor]) -> list[Tensor]:
    """Project on the tangent space as `dln_geometry.tangent` does, without its checks."""
    across, along = horizontal_part(frames, lam, v), vertical_part(frames, lam, v)
    return [a + b for a, b in zip(across, along, strict=True)]


def normal_derivative(
    frames: list[Tensor], lam: Tensor, normal: list[Tensor], z: list[Tensor]
) -> list[Tensor]:
    r"""Return the derivative along z of a field of normal vectors.

    The field keeps the multipliers ``sigma_p`` and the part outside the frames. The cores
    ``lam_i sigma_{p-1} - sigma_p lam_j`` of the normal vector give the multipliers layer by layer;
    each division is by the larger value of a pair.
    """
    multipliers = _multipliers(frames, lam, normal)
    turns = _turns(frames, lam, z)
    parts = []
    for p, ((before, after), n, v) in enumerate(zip(pairwise(frames), normal, z, strict=True)):
        moved = torch.zeros_like(v)
        if p > 0:
            moved = moved + _multiplied(multipliers[p - 1], before, v.mT).mT
        if p < len(z) - 1:
            moved = moved - _multiplied(multipliers[p], after, v)
        beyond = _off_span(before, _off_span(after, n).mT).mT
        moved = moved - after @ (turns[p + 1].mT @ beyond) - (beyond @ turns[p]) @ before.mT
        parts.append(moved)
    return parts


def nearest_balanced(moved: Sequence[Tensor], rank: int) -> tuple[Tensor, ...]:
    """Return balanced factors of the product of the layers, cut to rank r, near the layers.

    Hidden frames follow the layers from the input side on; two Newton steps make the difference
    orthogonal to the orbit.
    """
    try:
        u, s, vh = chain_svd(moved, keep=True)
    except torch.linalg.LinAlgError:
        raise ValueError(
            "point and tangent_vector must have layers whose product is in the range of "
            f"{moved[0].dtype}, got layers up to {max(float(w.abs().max()) for w in moved):.3g}"
        ) from None
    u, s, vh = u[..., :rank], s[..., :rank], vh[..., :rank, :]
    lam = s ** (1.0 / len(moved))
    frames = [vh.mT]
    for w in moved[:-1]:
        frames.append(polar(w @ (frames[-1] * lam)))
    frames.append(u)
    for _ in range(2 if len(moved) > 1 and bool((s > 0).all()) else 0):
        layers = chain_from_frames(frames, s)
        gap = [w - layer for w, layer in zip(moved, layers, strict=True)]
        along = list(vertical_part(frames, lam, gap))
        turns = _turns(frames, lam, along)
        rotation = torch.zeros_like(lam.diag())
        for p, core in enumerate(cores_of(frames, along)[:-1], start=1):
            # The orbit moves by a_p W_p - W_p a_{p-1}, a_p antisymmetric.
            lower = ((core + lam[:, None] * rotation) / lam).tril(-1)
            rotation = lower - lower.mT
            frames[p] = polar(frames[p] + frames[p] @ rotation + turns[p])
    return chain_from_frames(frames, s)


def on_first_component(layers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Reflect the last direction of square frames so that all have one orientation.

    Uniform frames stay uniform among those of one orientation.
    """
    frames, lam = balanced_frames(layers)
    moved, first = list(layers), None
    for p, q in enumerate(frames):
        if q.shape[-2] != lam.shape[-1]:
            continue
        sign = torch.linalg.det(q).sign()
        first = sign if first is None else first
        reflection = torch.ones_like(q[:, 0])
        reflection[-1] = sign * first
        if p > 0:
            moved[p - 1] = reflection[:, None] * moved[p - 1]
        if p < len(layers):
            moved[p] = moved[p] * reflection
    return tuple(moved)


def _multipliers(
    frames: list[Tensor], lam: Tensor, normal: list[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Return for every hidden layer ``Q^T sigma Q`` and ``(1 - Q Q^T) sigma Q``."""
    inside, found = torch.zeros_like(lam.diag()), []
    for p, (core, n) in enumerate(zip(cores_of(frames, normal), normal[:-1], strict=False)):
        lower = ((lam[:, None] * inside - core) / lam).tril()
        inside = lower + lower.tril(-1).mT
        found.append((inside, -_off_span(frames[p + 1], n @ frames[p]) / lam))
    return found


def _turns(frames: list[Tensor], lam: Tensor, z: list[Tensor]) -> list[Tensor]:
    """Return the moves ``(1 - Q Q^T) dQ`` of every frame out of its span by a tangent vector."""
    moves = [z[0].mT @ frames[1], *(v @ q for v, q in zip(z, frames[:-1], strict=True))]
    return [_off_span(q, move) / lam for q, move in zip(frames, moves, strict=True)]


def _multiplied(multiplier: tuple[Tensor, Tensor], q: Tensor, v: Tensor) -> Tensor:
    inside, outside = multiplier
    core = q.mT @ v
    return q @ (inside @ core + outside.mT @ v) + outside @ core


def _off_span(q: Tensor, x: Tensor) -> Tensor:
    return x - q @ (q.mT @ x)
