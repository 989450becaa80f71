"""Options of a run, and the step size of each sample."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.methods import KnownField, Methods
from dln_geometry.ode.monitoring import Monitor
from dln_geometry.support import as_real, shown

Array = np.ndarray
SHRINK, GROW = 0.2, 10.0
TINY, EPS = float(np.finfo(np.float64).tiny), float(np.finfo(np.float64).eps)
RESERVED = (
    *("t_end", "steps", "evaluations", "seconds", "failed", "unfinished"),
    *("nonsmooth", "stationary", "stalled", "patience"),
)
"""Status names that no stopping rule may take."""


@dataclass(frozen=True)
class Options:
    """The checked arguments of an integration."""

    t_end: float
    rtol: float
    atol: Array | None
    methods: Methods
    rules: dict[str, tuple[int, float]]
    limits: dict[str, float]
    correct: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None
    autonomous: bool = False
    monitor: Monitor | None = None


def first_step(d0: Array, h0: Array, d1: Array, d2: Array, order: int) -> Array:
    """Return the first step size of Hairer, Solving ODEs I, II.4, in a form that scales with time.

    ``min(100 h0, (0.01/d0)^(1/order) / r)``, ``r = max(d1/d0, sqrt(d2/d0))``; ``d0, d1, d2`` are
    the sizes of y and of its first two derivatives in units of the tolerance, `h0` the trial step.
    """
    rate = np.maximum(d1 / d0, np.sqrt(d2 / d0))
    # A rate of zero, or next to it, sets no limit.
    with np.errstate(divide="ignore", over="ignore"):
        h1 = np.where(rate > 0, (0.01 / d0) ** (1 / order) / rate, h0)
    return np.maximum(np.minimum(100 * h0, h1), TINY)


class StepControl:
    """Control one step size per sample, as the PI controller of Hairer, Solving ODEs II, IV.2.

    After an accepted step ``h_new = h clip(0.9 err^(-0.85/k) err_old^(0.2/k), 0.2, 10)``, where
    ``k`` is one more than the order of the error estimate, and no growth right after a rejection;
    after a rejected one ``h clip(0.9 err^(-1/k), 0.2, 0.9)``, ``0.2 h`` if it is not finite.
    """

    def __init__(self, h: Array) -> None:
        self.h, self.first = h, h.copy()
        self.err_old = np.full_like(h, 1e-4)
        self.after_rejection = np.zeros(len(h), dtype=bool)

    def propose(self, t: Array, stop: Array, running: Array) -> tuple[Array, Array]:
        """Return the steps to try, 0 for finished samples, and which of them end at `stop`."""
        hits = (t + 1.01 * self.h >= stop) & running
        trial = np.where(running, self.h, 0.0)
        if np.count_nonzero(hits):
            # Subtracted only where a stop is hit: stops may be infinite.
            trial[hits] = stop[hits] - t[hits]
        return trial, hits

    def update(
        self, err: Array, accepted: Array, trial: Array, hits: Array, running: Array, order: int
    ) -> None:
        """Set the next step sizes from errors (B,) of an order; those of failed trials are NaN."""
        k = order + 1
        with np.errstate(all="ignore"):
            size = np.maximum(err, 1e-10)
            grow = 0.9 * size ** (-0.85 / k) * self.err_old ** (0.2 / k)
            grow = np.minimum(np.maximum(grow, SHRINK), GROW)
            if np.count_nonzero(self.after_rejection):
                grow = np.where(self.after_rejection, np.minimum(grow, 1.0), grow)
            h, keep = trial * grow, accepted
            if np.count_nonzero(hits):
                # If a save time shortened this step, keep the previous step size.
                h = np.where(hits & (grow >= 1), np.maximum(self.h, h), h)
                keep = accepted & (trial >= 0.5 * self.h)
            if np.count_nonzero(accepted) == len(accepted):
                self.h = h
            else:
                shrink = np.minimum(np.maximum(0.9 * size ** (-1 / k), SHRINK), 0.9)
                shrink = trial * np.where(np.isfinite(err), shrink, SHRINK)
                self.h = np.where(accepted, h, np.where(running, shrink, self.h))
            self.err_old = np.where(keep, np.maximum(err, 1e-4), self.err_old)
        self.after_rejection = running & ~accepted

    def underflow(self, t: Array) -> Array:
        """Return the samples whose step is lost in the rounding of time."""
        return self.h < 16 * EPS * np.maximum(t, np.minimum(self.first, 1.0))

    def state(self) -> dict[str, Any]:
        """Return a copy of the controller's arrays as tensors."""
        return {name: torch.from_numpy(value.copy()) for name, value in vars(self).items()}

    @classmethod
    def load(cls, state: dict[str, Any]) -> StepControl:
        """Return the controller of a stored state."""
        control = cls(state["h"].numpy().copy())
        vars(control).update({name: value.numpy().copy() for name, value in state.items()})
        return control


def limits_of(**limits: float | None) -> dict[str, float]:
    """Return the limits that are not None."""
    given = {name: value for name, value in limits.items() if value is not None}
    for name, value in given.items():
        number = as_real(value, f"max_{name}")
        whole = name == "seconds" or number.is_integer() or math.isinf(number)
        if not number >= 0 or not whole:
            required = "at least 0" if whole else "a whole number"
            raise ValueError(f"max_{name} must be {required}, got {shown(value)}")
    return given


class TimeIsUp(Exception):
    """Leaves a trial whose time is up: the state is still that of the last whole step."""


class Deadline:
    """A field that lets a trial go on until ``end``, by the clock `time.perf_counter`."""

    def __init__(self, field: Any) -> None:
        self.field, self.end = field, math.inf

    def __call__(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor | None:
        """Evaluate the field, or raise `TimeIsUp`."""
        if time.perf_counter() > self.end:
            raise TimeIsUp
        return self.field(t, y, out)


def with_deadline(system: KnownField, limits: dict[str, float]) -> KnownField:
    """Return the system, with a deadline if seconds are limited: trials of large ones take long."""
    if not math.isfinite(limits.get("seconds", math.inf)):
        return system
    return replace(system, field=Deadline(system.field))


def give_time(field: Any, limits: dict[str, float], begun: float, before: float) -> None:
    """Let trials go on until the seconds since `begun`, and those before, reach the limit."""
    if isinstance(field, Deadline):
        field.end = begun + limits["seconds"] - before
