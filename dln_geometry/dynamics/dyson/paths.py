"""Paths of particles: checked positions, their grid of times, and the run itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.dyson.implicit import UNRESOLVED
from dln_geometry.dynamics.noise import OVERFLOW, Grid, Particles, simulate, time_grid
from dln_geometry.dynamics.store import Store
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.support import as_float_tensor, warn

Step = Callable[[Tensor, float], Tensor]

# Fewer steps of a scheme that is not exact bring a warning.
FEW_STEPS = 8


def as_particles(start: Any, *, positive: bool = False) -> Tensor:
    """Return positions (..., n), ascending."""
    x = as_float_tensor(start, "start")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"start must have shape (..., n), n >= 1, got {tuple(x.shape)}")
    if positive and bool((x < 0).any()):
        raise ValueError(f"start must be non-negative, got {float(x.min())}")
    return x.detach().sort(-1).values


def particle_grid(x: Tensor, t_end: Any, dt: Any, save_at: Any, what: str, *, exact: bool) -> Grid:
    """Return times and steps; unless they are exact, require `dt` and warn of few steps."""
    if dt is None and not exact:
        raise ValueError("dt must be given: steps of this index and scheme are not exact in law")
    grid = time_grid(t_end, dt, save_at, to_end=True, device=x.device)
    if not exact and t_end / dt < FEW_STEPS:
        warn(
            f"dt = {dt:g} makes {max(1, math.ceil(t_end / dt))} step(s) of {what}, which are not "
            f"exact: the law of the gaps will be wrong; take dt below {t_end / FEW_STEPS:g}"
        )
    return grid


def particle_path(
    x: Tensor,
    step: Callable[[Tensor, float, int], Tensor],
    grid: Grid,
    scheme: str,
    rate: float,
    progress: bool = False,
    generator: torch.Generator | None = None,
    store: Store | None = None,
) -> Trajectory:
    """Follow particles, ``step(x, h, number of the step)``, with the confining drift ``-rate x``.

    The generator is the one that the steps draw from, for the store.
    """
    steps = Particles(step, scheme, rate)
    shown: dict[str, Any] = {"progress": progress, "generator": generator, "store": store}
    path = simulate(steps, (x,), grid, label="Dyson", **shown)
    if not (isinstance(path.final, Tensor) and bool(torch.isfinite(path.final).all())):
        raise ValueError(UNRESOLVED if scheme == "implicit" else OVERFLOW)
    return path
