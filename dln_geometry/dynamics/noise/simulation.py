"""The loop of every random motion: a grid of times, steps, saved rows, a store and errors.

A motion is a `Stepper`; `simulate` makes its steps on a `Grid` and returns a `Trajectory`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.noise.grids import Grid
from dln_geometry.dynamics.noise.watch import StepWatch
from dln_geometry.dynamics.observing import observed_rows, split_rows
from dln_geometry.dynamics.store import Store
from dln_geometry.dynamics.trajectory import FlowError, Trajectory
from dln_geometry.support import Growing, Numbers, Observables, Progress, as_observables, on_device

State = tuple[Tensor, ...]
Show = bool | Callable[[float, dict[str, Any]], None]

OVERFLOW = "start, t_end and the size of the noise must leave positions finite, got overflow"


class Diverged(ArithmeticError):
    """A step led to numbers that are not finite in these `samples` of the batch, bool (...)."""

    def __init__(self, message: str, samples: Tensor) -> None:
        super().__init__(message)
        self.samples = samples

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.samples)


class Stepper(ABC):
    """A random motion. No step changes the tensors of a state in place."""

    depth: float = math.nan
    watch: StepWatch | None = None
    _sound: Tensor | None = None

    @abstractmethod
    def advance(self, state: State, h: float, index: int) -> State:
        """Return the state after step number `index`, of size h."""

    @abstractmethod
    def observe(self, state: State) -> dict[str, Tensor]:
        """Return the row of a state in the series of the `Trajectory`."""

    @abstractmethod
    def point(self, state: State) -> Any:
        """Return the point of a state."""

    def form(self, start: State) -> Any:
        """Return the form of all states of a motion with this start, see `check_form`."""
        return [Numbers.like(x) for x in start]

    def defer(self, waits: bool) -> None:
        """Let `passed` wait, and look at all that it was given in `settled`; or not."""
        self._sound = torch.ones((), dtype=torch.bool, device="cpu") if waits else None
        if self.watch is not None:
            self.watch.defer(waits)

    def passed(self, sound: Tensor) -> bool:
        """Tell whether a step is sound in all samples; True while that is deferred."""
        if self._sound is None:
            return bool(sound.all())
        self._sound = self._sound.to(sound.device) & sound.all()
        return True

    def settled(self) -> bool:
        """Tell whether all deferred steps were sound: here the host waits."""
        assert self._sound is not None
        sound = bool(self._sound)
        if sound and self.watch is not None:
            self.watch.settle()
        self.defer(True)
        return sound

    @property
    def defers(self) -> bool:
        """Whether `passed` waits for `settled`."""
        return self._sound is not None

    def summary(self, state: State, steps: int) -> dict[str, Any]:
        """Return more `Trajectory.stats` than the number and size of the steps."""
        return {}


@torch.no_grad()
def simulate(
    stepper: Stepper,
    state: State,
    grid: Grid,
    *,
    label: str,
    generator: torch.Generator | None = None,
    keep_points: bool = False,
    observe: Any = None,
    progress: Show = False,
    store: Store | None = None,
) -> Trajectory:
    """Make all steps of a grid; `FlowError` if one diverges.

    The store holds the state of the generator: a run that was killed continues to the same bits.
    It is renewed on its schedule, at the end, and when an interrupt or an exit ends the run.

    On a device the host waits for saved rows and checkpoints alone: whether all steps before were
    sound is asked then, and if they were not, they are made again with a look at each.
    """
    observables = as_observables(observe)
    rows: dict[str, list[Tensor]] = {}
    # One list for each part of a start: points need no more of what a state may add to them.
    kept: list[list[Tensor]] = [[] for _ in state]
    first, done, saved = 0, 0, 0
    held = (
        None
        if store is None
        else _stored(store, stepper, state, grid, generator, keep_points, observables)
    )
    if held is not None:
        # Numbers that the host reads stay there.
        home = [x.device for x in (*state, state[0])]
        state = _moved(held["state"], home)
        rows = {k: list(x.to(home[0]).unbind(0)) for k, x in held["rows"].items()}
        parts = [(held["kept"][str(k)], home[k]) for k in range(len(held["kept"]))]
        kept = [list(x.to(device).unbind(0)) for x, device in parts] or kept
        first, done = held["interval"], held["done"]
        saved = min(first, len(grid.times))
    total = max(grid.steps, 1)
    taken = sum(grid.counts[:first]) + done

    def place(interval: int, done: int) -> tuple[Any, ...]:
        # All of one moment: an interrupt in a step finds the moment before it.
        memory = {} if generator is None else {"generator": generator.get_state()}
        return state, saved, {**memory, "interval": interval, "done": done}

    def checkpoint(reached: tuple[Any, ...]) -> None:
        if store is not None:
            now, count, rest = reached
            parts = {("rows", name): x for name, x in rows.items()}
            parts |= {("kept", str(k)): x for k, x in enumerate(kept) if keep_points}
            growing = {where: Growing(x, count) for where, x in parts.items() if count}
            store.keep({"state": list(now), "rows": {}, "kept": {}, **rest}, growing)

    def record(status: str | list[str]) -> Trajectory:
        series, observed = split_rows({k: torch.stack(x[:saved]) for k, x in rows.items()})
        own: dict[str, Any] = dict(series)
        past = islice(zip(*kept, strict=False), saved)
        stats = {"steps": taken, "dt": max(grid.sizes), **stepper.summary(state, taken)}
        return Trajectory(
            t=grid.times[:saved],
            **own,
            observed=observed,
            final=stepper.point(state),
            status=status,
            stats=stats,
            points=tuple(map(stepper.point, past)) if keep_points else None,
            depth=stepper.depth,
        )

    loss, reached = math.nan, place(first, done)
    if store is not None:
        store.schedule.restart(taken)
    waitless = on_device(state[0])
    stepper.defer(waitless)
    try:
        with Progress(progress, label) as bar:
            report = bar.callback
            for interval, (count, h) in enumerate(zip(grid.counts, grid.sizes, strict=True)):
                if interval < first:
                    continue
                k, base = done, None
                while True:
                    due = store is not None and store.schedule.due(taken)
                    if base is not None and (k == count or due) and not stepper.settled():
                        # Find the step that failed.
                        state, taken, k = base[:3]
                        if generator is not None and base[3] is not None:
                            generator.set_state(base[3])
                        base = None
                        stepper.defer(False)
                    elif store is not None and due and k > done:
                        checkpoint(reached := place(interval, k))
                        store.schedule.restart(taken)
                        base = None
                    if k == count:
                        break
                    if stepper.defers and base is None:
                        memory = None if generator is None else generator.get_state()
                        base = state, taken, k, memory
                    try:
                        state = stepper.advance(state, h, taken)
                    except Diverged as error:
                        at = [0.0, *grid.step_times()][taken]
                        where, status = _failure(error.samples)
                        raise FlowError(f"{error}, at t = {at:g}{where}", record(status)) from None
                    k, taken = k + 1, taken + 1
                    if store is not None and not stepper.defers:
                        reached = place(interval, k)
                    if report is not None and progress is True:
                        report(taken / total, {"obs": [[loss]]})
                stepper.defer(waitless)
                done = 0
                if interval == len(grid.times):
                    continue
                row = _observed_row(stepper, state, observables)
                for name, x in row.items():
                    rows.setdefault(name, []).append(x)
                for part, x in zip(kept, state, strict=False):
                    if keep_points:
                        part.append(x)
                saved += 1
                if store is not None:
                    reached = place(interval + 1, 0)
                if report is not None:
                    loss = float(row["loss"].mean()) if "loss" in row else math.nan
                    report(taken / total, {"obs": [[loss]]})
    except (KeyboardInterrupt, SystemExit):
        checkpoint(reached)
        raise
    checkpoint(place(len(grid.counts), 0))
    return record("t_end")


def _observed_row(stepper: Stepper, state: State, observables: Observables) -> dict[str, Tensor]:
    """Return the series of a state, the observables of the user among them."""
    row = stepper.observe(state)
    if observables:
        like = row["singular_values"] if "singular_values" in row else row["states"]
        batch, where = tuple(like.shape[:-1]), like.device
        row = row | observed_rows(observables, stepper.point(state), batch, where)
    return row


def _stored(
    store: Store,
    stepper: Stepper,
    state: State,
    grid: Grid,
    generator: torch.Generator | None,
    keep_points: bool,
    observables: Observables,
) -> dict[str, Any] | None:
    """Return the checked state of a store, if it has one, and set the generator to its place."""
    store.know(grid=[grid.counts, grid.sizes], save_at=grid.times, observe=sorted(observables))
    row = _observed_row(stepper, state, observables)
    # The time of a motion of particles has the batch of their positions.
    like = row["singular_values"] if "singular_values" in row else row["states"]
    store.batch, store.times = like.ndim - 1, grid.times
    every = {str(k): Numbers.like(x, rows=True) for k, x in enumerate(state)}
    form: dict[str, Any] = {
        "state": stepper.form(state),
        "rows": ({}, {name: Numbers.like(x, rows=True) for name, x in row.items()}),
        "kept": ({}, every),
        "interval": int,
        "done": int,
    }
    if generator is not None:
        form["generator"] = Numbers.like(generator.get_state())
    held = store.load(form)
    if held is None:
        return None

    def use() -> None:
        counts, at, done = (*grid.counts, 0), held["interval"], held["done"]
        rows = min(at, len(grid.times))
        if at >= len(counts) or done > counts[at]:
            raise ValueError(f"it must lie on the grid, got step {done} of interval {at}")
        for name, wanted in (("rows", rows), ("kept", rows if keep_points else 0)):
            found = [len(x) for x in held[name].values()] or [0]
            if any(n != wanted for n in found):
                raise ValueError(f"{name} must hold {wanted} rows, got {found}")
        if generator is not None:
            generator.set_state(held["generator"])

    store.check(use)
    return held


def _moved(parts: list[Tensor], places: list[torch.device]) -> State:
    return tuple(x.to(place) for x, place in zip(parts, places, strict=False))


def _failure(samples: Tensor) -> tuple[str, str | list[str]]:
    """Return which samples failed, in words, and the status of each."""
    if samples.ndim == 0:
        return "", "failed"
    status = ["failed" if bad else "unfinished" for bad in samples.flatten().tolist()]
    failed = [str(k) for k, state in enumerate(status) if state == "failed"]
    named = ", ".join(failed[:5]) + (", ..." if len(failed) > 5 else "")
    return f" in sample {named} of {samples.numel()}", status
