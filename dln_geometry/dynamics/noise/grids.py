"""The times of a random motion: those that are saved, and the steps between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode import save_times
from dln_geometry.support import as_positive

ROWS = 100
"""Intervals between saved times if the user gives no times."""


@dataclass(frozen=True)
class Grid:
    """Saved times, and the number and size of the steps before each of them.

    One more number and size stand for steps after the last saved time.
    """

    times: Tensor
    counts: tuple[int, ...]
    sizes: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Total number of steps."""
        return sum(self.counts)

    def step_times(self) -> list[float]:
        """Return the times after every step."""
        times, start = [], 0.0
        for count, h in zip(self.counts, self.sizes, strict=True):
            times += [start + h * (k + 1) for k in range(count)]
            start += h * count
        return times


def time_grid(
    t_end: Any,
    dt: Any,
    save_at: Any = None,
    *,
    steps: int | None = None,
    to_end: bool = False,
    device: torch.device | None = None,
) -> Grid:
    """Return a grid of equal steps of at most `dt` between saved times.

    Without `dt` there is one step between two saved times; without `save_at` every time is saved,
    or 101 of them. Given increments fix the number `steps` of equal steps: saved times must be
    multiples of ``t_end / steps``. With `to_end` the motion goes on to `t_end` after the last one.
    """
    t_end = as_positive(t_end, "t_end")
    longest = math.inf if dt is None else as_positive(dt, "dt")
    if save_at is None:
        if steps is None:
            steps = ROWS if dt is None else _step_count(t_end, longest)
        rows = min(ROWS, steps)
        places = [round(k * steps / rows) for k in range(rows + 1)]
        times = [place / steps * t_end for place in places]
        counts = [0, *(b - a for a, b in pairwise(places))]
        sizes = [t_end / steps] * len(counts)
    else:
        times: list[float] = np.asarray(save_times(save_at, t_end, 2)).tolist()
        ends: list[float] = [0.0, *times, t_end] if to_end else [0.0, *times]
        gaps = [b - a for a, b in pairwise(ends)]
        if steps is None:
            counts = [_step_count(gap, longest) for gap in gaps]
            sizes = [gap / max(count, 1) for gap, count in zip(gaps, counts, strict=True)]
        else:
            h = t_end / steps
            counts, sizes = [round(gap / h) for gap in gaps], [h] * len(gaps)
            if any(abs(g - k * h) > 1e-6 * t_end for g, k in zip(gaps, counts, strict=True)):
                raise ValueError(
                    f"save_at must hold multiples of the given increments' step {h:g}, got {times}"
                )
    saved = torch.tensor(times, dtype=torch.float64, device=device or "cpu")
    return Grid(saved, tuple(counts), tuple(sizes))


def _step_count(length: float, longest: float) -> int:
    """Return the number of steps in an interval; rounding alone adds none."""
    return 0 if length <= 0 else max(1, math.ceil(length / longest * (1 - 1e-9)))
