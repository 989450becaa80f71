"""The doors of random motions: their rank, their chains and their source of randomness."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.noise.product_steps import Gaussians, gradient_parts
from dln_geometry.dynamics.noise.simulation import Grid, time_grid
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import as_count, as_float_tensor, as_generator

__all__ = ["check_rank", "randomness", "repeated", "trace"]


def check_rank(point: EndToEnd) -> None:
    """Refuse points whose rank is below that of their manifold, where that is another motion."""
    (m, n), s = point.shape, point.s
    if point.depth == 1.0:
        return
    zeros = int((s <= torch.finfo(s.dtype).tiny).sum(-1).max())
    if zeros and (math.isinf(point.depth) or point.rank < min(m, n)):
        raise ValueError(
            f"start must have the rank {point.rank} of its manifold, got {zeros} singular values "
            "that are zero: give the rank when making the point"
        )


def repeated(
    point: EndToEnd, frames: list[Tensor] | None, chains: int | None
) -> tuple[EndToEnd, list[Tensor] | None]:
    """Put a dimension of independent chains in front."""
    if chains is None:
        return point, frames
    chains = as_count(chains, "chains")

    def copies(x: Tensor) -> Tensor:
        return x.expand(chains, *x.shape).clone()

    u, s, vh = copies(point.u), copies(point.s), copies(point.vh)
    more = EndToEnd(u, s, vh, point.depth, point.normalized)
    return more, None if frames is None else [copies(q) for q in frames]


def trace(loss: Any, point: EndToEnd) -> str:
    """Return what tells a loss from another one: its figures at the start, to six digits."""
    if loss is None:
        return "none"
    value, core, _, _ = gradient_parts(loss, point)
    size = torch.linalg.vector_norm(core)
    return f"{type(loss).__name__} {float(value.sum()):.5e} {float(size):.5e}"


def randomness(
    point: EndToEnd,
    t_end: float,
    dt: float | None,
    save_at: Any,
    generator: torch.Generator | None,
    increments: Any,
    upstairs: bool,
) -> tuple[Grid, Gaussians]:
    """Return the grid of times and the source of noise."""
    if increments is None:
        if generator is None:
            raise ValueError("generator or increments must be given, got neither")
        if dt is None:
            raise ValueError("dt must be given where there are no increments")
        generator = as_generator(generator, point.s.device)
        return time_grid(t_end, dt, save_at), Gaussians(generator)
    if upstairs or generator is not None or dt is not None:
        raise ValueError("increments must come without upstairs, generator and dt, got both")
    s = point.s
    given = as_float_tensor(increments, "increments", dtype=s.dtype, device=s.device)
    shape = (*s.shape[:-1], *point.shape)
    if given.shape[1:] != shape or given.shape[0] == 0:
        raise ValueError(
            f"increments must have shape (steps, {', '.join(map(str, shape))}), got "
            f"{tuple(given.shape)}"
        )
    return time_grid(t_end, None, save_at, steps=given.shape[0]), Gaussians(None, given)
