"""The loop of a random motion: a grid of times, saved rows, a store, and what went wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dln_geometry.dynamics.flows import FlowError
from dln_geometry.dynamics.store import Store
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.ode import save_times
from dln_geometry.support import Progress, as_positive

__all__ = ["Diverged", "Grid", "Stepper", "time_grid", "walk"]

_ROWS = 101
_SECONDS_BETWEEN_CHECKPOINTS = 5.0


class Diverged(ArithmeticError):
    """Tell that a step led to numbers that are not finite.

    Parameters
    ----------
    message : str
        The cause.
    samples : Tensor of bool, shape (...)
        Which samples of the batch it was.
    """

    def __init__(self, message: str, samples: Tensor) -> None:
        super().__init__(message)
        self.samples = samples


class Stepper(Protocol):
    """A random motion in steps: states are tuples of tensors, never changed in place."""

    @property
    def depth(self) -> float: ...

    def advance(self, state: tuple[Tensor, ...], h: float, index: int) -> tuple[Tensor, ...]:
        """Return the state after the step number `index`, of size h."""
        ...

    def observe(self, state: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Return what is saved of a state: series of a `Trajectory`."""
        ...

    def point(self, state: tuple[Tensor, ...]) -> Any:
        """Return the point that a state stands for."""
        ...


@dataclass(frozen=True)
class Grid:
    """The saved times, and the number and size of the steps that lead to each of them."""

    times: Tensor
    counts: tuple[int, ...]
    sizes: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Number of steps in all."""
        return sum(self.counts)


def time_grid(t_end: Any, dt: Any, save_at: Any = None, *, steps: int | None = None) -> Grid:
    """Return a grid of equal steps of at most `dt` between saved times.

    Parameters
    ----------
    t_end : float
    dt : float
        Largest step; `None` if `steps` is given.
    save_at : array_like, shape (T,), optional
        Increasing times in [0, t_end]. By default 101 of the times of equal steps, or all of
        them if there are fewer.
    steps : int, optional
        Number of equal steps: what given increments prescribe. Saved times must then be
        multiples of ``t_end / steps``.
    """
    t_end = as_positive(t_end, "t_end")
    if steps is None:
        dt = as_positive(dt, "dt")
        steps = max(1, math.ceil(t_end / dt * (1 - 1e-12)))
        given = False
    else:
        given = True
    h = t_end / steps
    if save_at is None:
        index = torch.linspace(0, steps, min(_ROWS, steps + 1), dtype=torch.float64).round()
        counts = tuple(int(c) for c in (0, *index.diff().tolist()))
        return Grid(index * h, counts, (h,) * len(counts))
    rounding = 1e-6 * t_end
    times = torch.from_numpy(save_times(save_at, t_end, 2))
    gaps = torch.cat((times[:1], times.diff()))
    if given:
        counts = (gaps / h).round()
        if bool(((gaps - counts * h).abs() > rounding).any()):
            raise ValueError(
                f"save_at must hold multiples of the given increments' step {h:g}, got "
                f"{times.tolist()}"
            )
        return Grid(times, tuple(int(c) for c in counts.tolist()), (h,) * len(gaps))
    counts = tuple(math.ceil(gap / dt * (1 - 1e-12)) for gap in gaps.tolist())
    sizes = tuple(gap / max(count, 1) for gap, count in zip(gaps.tolist(), counts, strict=True))
    return Grid(times, counts, sizes)


@torch.no_grad()
def walk(
    stepper: Stepper,
    state: tuple[Tensor, ...],
    grid: Grid,
    *,
    label: str,
    generator: torch.Generator | None = None,
    keep_points: bool = False,
    progress: bool | Callable[[float, dict[str, Any]], None] = False,
    store: Store | None = None,
    summary: Callable[[tuple[Tensor, ...], int], dict[str, Any]] | None = None,
) -> Trajectory:
    """Make all steps of a grid and return the record.

    The store holds the state of the generator, so that a run that was killed continues to the
    same bits.
    """
    rows: list[dict[str, Tensor]] = []
    kept: list[tuple[Tensor, ...]] = []
    first, done = 0, 0
    held = None if store is None else store.load()
    if held is not None:
        device = state[0].device
        state = tuple(part.to(device) for part in held["state"])
        rows = [{k: v.to(device) for k, v in row.items()} for row in held["rows"]]
        kept = [tuple(part.to(device) for part in parts) for parts in held["kept"]]
        first, done = held["interval"], held["done"]
        if generator is not None:
            generator.set_state(held["generator"])
    total = max(grid.steps, 1)
    taken = sum(grid.counts[:first]) + done

    def checkpoint(interval: int, done: int) -> None:
        if store is None:
            return
        memory = {} if generator is None else {"generator": generator.get_state()}
        part = {"state": list(state), "rows": rows, "kept": [list(k) for k in kept]}
        store.save({**part, **memory, "interval": interval, "done": done})

    def record(status: str | list[str]) -> Trajectory:
        stats = {"steps": taken, "dt": max(grid.sizes)}
        series = (
            {name: torch.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}
        )
        return Trajectory(
            t=grid.times[: len(rows)],
            **series,
            final=stepper.point(state),
            status=status,
            stats={**stats, **(summary(state, taken) if summary is not None else {})},
            points=tuple(stepper.point(k) for k in kept) if keep_points else None,
            depth=stepper.depth,
        )

    saved_at = time.monotonic()
    with Progress(progress, label) as bar:
        for interval in range(first, len(grid.counts)):
            h = grid.sizes[interval]
            for k in range(done, grid.counts[interval]):
                try:
                    state = stepper.advance(state, h, taken)
                except Diverged as error:
                    at = float(grid.times[interval]) - (grid.counts[interval] - k) * h
                    where, status = _failure(error.samples)
                    raise FlowError(f"{error}, at t = {at:g}{where}", record(status)) from None
                taken += 1
                if store is not None and time.monotonic() - saved_at > _SECONDS_BETWEEN_CHECKPOINTS:
                    checkpoint(interval, k + 1)
                    saved_at = time.monotonic()
            done = 0
            rows.append(stepper.observe(state))
            if keep_points:
                kept.append(state)
            if bar.callback is not None:
                loss = rows[-1].get("loss")
                value = math.nan if loss is None else float(loss.mean())
                bar.callback(taken / total, {"obs": [[value]]})
    checkpoint(len(grid.counts), 0)
    return record("t_end")


def _failure(samples: Tensor) -> tuple[str, str | list[str]]:
    """Return where a batch failed, in words, and the status of each of its samples."""
    failed = samples.flatten().nonzero().flatten().tolist()
    if samples.ndim == 0:
        return "", "failed"
    status = ["failed" if k in set(failed) else "unfinished" for k in range(samples.numel())]
    named = ", ".join(map(str, failed[:5])) + (", ..." if len(failed) > 5 else "")
    return f" in sample {named} of {samples.numel()}", status
