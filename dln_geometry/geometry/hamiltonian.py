"""Geodesics in positions and velocities, integrated with what is carried along."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dln_geometry.geometry.box import Box
from dln_geometry.geometry.collocation import StepFailure, integrate
from dln_geometry.geometry.connection import connection_blocks
from dln_geometry.geometry.variation import (
    apply,
    blocks_of,
    push_beyond,
    squared_length,
    tangent_matrix,
)

__all__ = ["GeodesicError", "trajectory"]

# The share of the way within which a value must reach zero at its speed to be given up.
_SURE = 0.01


class GeodesicError(ArithmeticError):
    """Tell that a geodesic does not exist, or was not found."""


def trajectory(box: Box, times: list[float], rtol: float) -> list[Tensor]:
    """Integrate position, velocity and what is transported: states of shape (q, ..., m, n)."""
    k = box.differences(box.point.s)
    u, vh = box.point.u, box.point.vh
    state = torch.stack([box.point.matrix, *box.vectors])
    lengths = [
        squared_length(k, blocks_of(u, vh, w, math.isinf(box.point.depth))).sqrt()
        for w in box.vectors
    ]
    try:
        return integrate(
            _field(box),
            state,
            times,
            coordinates_at=_coordinates(box, lengths, times[-1], rtol),
            rtol=rtol,
            shortest=times[-1] * math.sqrt(torch.finfo(state.dtype).eps),
            alive=_goes_on(box, times[-1]),
        )
    except StepFailure as failure:
        s = box.frames(failure.state[0])[1]
        raise GeodesicError(
            f"the geodesic must keep its rank up to t = {times[-1]:g}, but beyond "
            f"t = {failure.time:.6g} it cannot be followed: its smallest singular value is "
            f"{float(s[..., -1].min()):.1e} there, {float((s[..., -1] / s[..., 0]).min()):.1e} of "
            "the largest, and the metric has no geodesics through zero (at finite depth it is at "
            "finite distance)"
        ) from None


def _goes_on(box: Box, end: float) -> Callable[[float, Tensor], bool]:
    """Return whether the smallest singular value stays clear of zero, as far as can be seen.

    Square matrices of full rank meet the singular ones at a generic speed, and in the N-th root
    of the smallest value nothing turns it back where the others are far: what is next to zero by
    then, and on its way there, arrives. Elsewhere it passes by, and is resolved if it stays above
    the roundings of the largest: beyond, what follows would be known to no more than a digit or
    three.
    """
    p = box.point
    blurred = 0.1 * math.sqrt(torch.finfo(p.s.dtype).eps)
    square = p.rank == p.shape[0] == p.shape[1] and math.isfinite(p.depth)

    def goes_on(t: float, state: Tensor) -> bool:
        u, s, vh = box.frames(state[0])
        if bool((s[..., -1] <= blurred * s[..., 0]).any()):
            return False
        if not square:
            return True
        speed = (u[..., :, -1:].mT @ state[1] @ vh[..., -1:, :].mT)[..., 0, 0]
        # lam'/lam of the smallest value.
        rate = speed / (p.depth * s[..., -1])
        arrives = -rate * min(end - t, _SURE * end) > 1.0
        if p.rank > 1:
            arrives &= (s[..., -1] / s[..., -2]) ** (1.0 / p.depth) < 0.05
        return not bool(arrives.any())

    return goes_on


def _field(box: Box) -> Callable[[Tensor], Tensor]:
    """Return the derivative of (position, velocity, transported vectors)."""
    frozen = math.isinf(box.point.depth)

    def field(state: Tensor) -> Tensor:
        x, *carried = state.unbind(0)
        u, s, vh = box.frames(x)
        k = box.differences(s)
        vectors = [blocks_of(u, vh, w, frozen) for w in carried]
        moves = [tangent_matrix(u, vh, vectors[0])]
        for w in vectors:
            turned = tangent_matrix(u, vh, connection_blocks(k, vectors[0], w))
            bent = push_beyond(k, vectors[0], apply(k, w, -1.0))
            moves.append(-turned if bent is None else bent - turned)
        return torch.stack(moves)

    return field


def _coordinates(
    box: Box, lengths: list[Tensor], duration: float, rtol: float
) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
    """Return coordinates of errors, orthonormal in the metric but for the scale of each part.

    Of norm their length, relative to what is travelled and carried.
    """
    frozen = math.isinf(box.point.depth)
    tiny = torch.finfo(lengths[0].dtype).tiny
    resolution = 10.0 * torch.finfo(lengths[0].dtype).eps

    depth = box.point.depth
    rough = 25.0 * (max(1.0, 0.25 * depth) if math.isfinite(depth) else 1.0)

    def coordinates_at(state: Tensor) -> Callable[[Tensor], Tensor]:
        u, s, vh = box.frames(state[0])
        k = box.differences(s)
        # Roundings of X itself bound what can be resolved.
        size = (s.square() / k.kernel.diagonal(dim1=-2, dim2=-1)).sum(-1).sqrt()
        travelled = (lengths[0] * duration).maximum(size * (resolution / rtol))
        scales = [travelled, *lengths]
        # Small singular values are known to eps of the large ones, and no better; their rates
        # are N times those of lam.
        blur = (rough * resolution / rtol * s[..., 0] / s[..., -1]).clamp_min(1.0)

        def coordinates(difference: Tensor) -> Tensor:
            parts = []
            for part, scale in zip(difference.unbind(0), scales, strict=True):
                b = apply(k, blocks_of(u, vh, part, frozen), -0.5)
                flat = torch.cat([block.flatten(-2) for block in b if block is not None], -1)
                parts.append(flat / (scale.clamp_min(tiny) * blur).unsqueeze(-1))
            return torch.stack(parts)

        return coordinates

    return coordinates_at
