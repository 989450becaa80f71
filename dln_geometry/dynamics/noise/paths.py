"""Paths of random motions: when to step and when to save, and the loop that does it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.ode import save_times
from dln_geometry.support import as_float_tensor, as_positive

__all__ = ["deterministic", "follow", "schedule", "simulate"]

DEFAULT_ROWS = 100
"""Intervals between saved times if the user gives none."""

_OVERFLOW = "start, t_end and the size of the noise must leave positions finite, got overflow"

FEW_STEPS = 8
"""Number of steps below which a scheme that is not exact is said to be too coarse."""


def schedule(
    t_end: Any, dt: Any, save_at: Any, *, exact: bool = False
) -> tuple[list[float], list[int]]:
    """Return the saved times and the number of equal steps before each, and after the last.

    Without `save_at` there are at most 101 of them, from 0 to `t_end`, on the grid of steps.

    Raises
    ------
    TypeError, ValueError
        If `t_end` or `dt` is not positive, a time lies outside [0, t_end], or `dt` is missing
        where steps are not exact.
    """
    t_end = as_positive(t_end, "t_end")
    if dt is None and not exact:
        raise ValueError("dt must be given: steps of this index and scheme are not exact in law")
    step = math.inf if dt is None else as_positive(dt, "dt")
    if save_at is None:
        total = DEFAULT_ROWS if dt is None else _count(t_end, step)
        rows = min(total, DEFAULT_ROWS)
        times = [round(k * total / rows) / total * t_end for k in range(rows + 1)]
    else:
        times = [float(t) for t in np.asarray(save_times(save_at, t_end, 2))]
    return times, [_count(b - a, step) for a, b in pairwise([0.0, *times, t_end])]


def _count(length: float, step: float) -> int:
    """Return the number of steps that cover an interval; one more is not made for rounding."""
    return 0 if length <= 0 else max(1, math.ceil(length / step * (1 - 1e-9)))


def warn_if_coarse(t_end: float, dt: float | None, what: str) -> None:
    """Warn of a scheme of finite order with hardly any steps."""
    if dt is not None and t_end / dt < FEW_STEPS:
        warnings.warn(
            f"dt = {dt:g} makes {max(1, math.ceil(t_end / dt))} step(s) of {what}, which are not "
            f"exact: the law of the gaps will be wrong; take dt below {t_end / FEW_STEPS:g}",
            UserWarning,
            stacklevel=5,
        )


def follow(
    state: Any,
    step: Callable[[Any, float], Any],
    plan: tuple[list[float], list[int]],
    t_end: float,
    *,
    progress: bool = False,
    label: str = "paths",
) -> Iterator[Any]:
    """Yield the state at every saved time, then at `t_end`.

    Raises
    ------
    ValueError
        If a step finds no decomposition: positions have left the finite numbers.
    """
    times, counts = plan
    edges = [0.0, *times, t_end]
    total, done = max(1, sum(counts)), 0
    with _bar(progress, label) as advance:
        for k, count in enumerate(counts):
            for _ in range(count):
                try:
                    state = step(state, (edges[k + 1] - edges[k]) / count)
                except torch.linalg.LinAlgError:
                    raise ValueError(_OVERFLOW) from None
                done += 1
                advance(done / total)
            yield state


@contextmanager
def _bar(show: bool, label: str) -> Iterator[Callable[[float], None]]:
    """Show a progress bar; what it yields is told the fraction that is done."""
    if not show:
        yield lambda _: None
        return
    from rich.progress import Progress

    with Progress() as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda fraction: bar.update(task, completed=fraction)


def as_particles(start: Any, name: str = "start") -> Tensor:
    """Return positions (..., n), ascending: particles have no names."""
    x = as_float_tensor(start, name)
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (..., n), n >= 1, got {tuple(x.shape)}")
    return x.detach().sort(-1).values


def as_singular_values(start: Any, name: str = "start") -> Tensor:
    """Return singular values (..., r), ascending."""
    s = as_particles(start, name)
    if bool((s < 0).any()):
        raise ValueError(f"{name} must be non-negative, got {float(s.min())}")
    return s


def as_confinement(confinement: Any) -> float:
    """Return the rate of an Ornstein-Uhlenbeck drift, at least 0."""
    return as_positive(confinement, "confinement", zero=True)


def confined(step: Callable[[Tensor, float], Tensor], rate: float) -> Callable[..., Tensor]:
    """Return the step of the same motion with the drift ``-rate x``, exactly.

    The repulsion is homogeneous of degree -1: ``e^{-ct} y((e^{2ct} - 1)/(2c))`` is the confined
    motion if y is the free one.
    """
    if rate == 0:
        return step

    def shrunk(x: Tensor, h: float) -> Tensor:
        shrink = math.exp(-rate * h)
        return step(shrink * x, -math.expm1(-2 * rate * h) / (2 * rate))

    return shrunk


def stacked(rows: list[Tensor], like: Tensor) -> Tensor:
    """Return saved rows with time first."""
    return torch.stack(rows) if rows else like.new_empty(0, *like.shape)


def simulate(
    x: Tensor,
    step: Callable[[Tensor, float], Tensor],
    t_end: float,
    dt: float | None,
    save_at: Any,
    *,
    exact: bool,
    rate: float,
    progress: bool,
    scheme: str,
) -> Trajectory:
    """Follow particles through equal steps.

    Raises
    ------
    ValueError
        If the times are not as described in `schedule`, or particles leave the finite numbers.
    """
    plan = schedule(t_end, dt, save_at, exact=exact)
    if not exact:
        warn_if_coarse(t_end, dt, "Dyson Brownian motion")
    motion = follow(x, confined(step, rate), plan, t_end, progress=progress, label="Dyson")
    *rows, final = motion
    if not bool(torch.isfinite(final).all()):
        raise ValueError(_OVERFLOW)
    return Trajectory(
        t=torch.tensor(plan[0], dtype=torch.float64, device=x.device),
        states=stacked(rows, x),
        final=final,
        stats={"steps": sum(plan[1]), "scheme": scheme},
    )


def deterministic(
    path: Callable[[Tensor, list[float]], Tensor], x: Tensor, t_end: float, save_at: Any
) -> Trajectory:
    """Follow particles of infinite index; `path` takes them and the times."""
    times, _ = schedule(t_end, None, save_at, exact=True)
    t_end = float(t_end)
    flat = x.reshape(-1, x.shape[-1]).double()
    at = times if times and times[-1] == t_end else [*times, t_end]
    rows = path(flat, at).to(x.dtype).reshape(len(at), *x.shape)
    return Trajectory(
        t=torch.tensor(times, dtype=torch.float64, device=x.device),
        states=rows[: len(times)],
        final=rows[-1],
        stats={"scheme": "ode"},
    )
