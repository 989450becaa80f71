"""A monitor keeps the best state of every sample of a run, and ends runs that only lose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.methods import fetch
from dln_geometry.support import Growing, Numbers

Observable = Callable[[Tensor], Tensor]
"""``observable(y (B, n))`` returns a number for each sample, shape (B,); less is better."""


@dataclass(frozen=True)
class Watched:
    """What a monitor saw, at every step in which a sample advanced (S of them, and the start)."""

    t: Tensor  # (S, B): times
    values: Tensor  # (S, B): the observable there
    best_t: Tensor  # (B,)
    best: Tensor  # (B,): the least value
    y: Tensor  # (B, n): the state that had it


class Monitor:
    """Follow an observable of B samples; a sample ends after `patience` steps that gain little.

    They gain enough if the least value falls by `improvement` times its size (0: at all). A value
    that is NaN is no gain.
    """

    def __init__(
        self, observable: Observable, patience: int | None, improvement: float = 0.0
    ) -> None:
        self.observable, self.improvement = observable, improvement
        self.patience = np.inf if patience is None else patience

    def start(self, y: Tensor) -> None:
        """Take the start for the best state so far."""
        batch = len(y)
        self.y, self.best, self.best_t = y.clone(), np.full(batch, np.inf), np.zeros(batch)
        self.since, self.level = np.zeros(batch, dtype=np.int64), np.full(batch, np.inf)
        self._t: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        self.update(np.zeros(batch), np.ones(batch, dtype=bool), y)

    def update(self, t: np.ndarray, advanced: np.ndarray, y: Tensor) -> None:
        """Look at the states of the samples that advanced to the times `t` (B,)."""
        values = fetch([self.observable(y).detach().reshape(1, -1).double()])
        values = np.where(np.isnan(values), np.inf, values)
        if values.shape != t.shape:
            raise ValueError(
                f"monitor must return one number for each of {len(t)} samples, got {len(values)}"
            )
        if self._values:
            values = np.where(advanced, values, self._values[-1])
        self._t.append(t.copy())
        self._values.append(values)
        better = advanced & (values < self.best)
        with np.errstate(invalid="ignore"):
            enough = better & ~(values > self.level - self.improvement * np.abs(self.level))
        self.since = np.where(enough, 0, self.since + advanced)
        self.level = np.where(enough, values, self.level)
        if better.any():
            self.best = np.where(better, values, self.best)
            self.best_t = np.where(better, t, self.best_t)
            mask = torch.from_numpy(better).to(y.device, non_blocking=True)[:, None]
            torch.where(mask, y, self.y, out=self.y)

    @property
    def exhausted(self) -> np.ndarray:
        """Which samples have lost their patience, shape (B,)."""
        return self.since >= self.patience

    def result(self) -> Watched:
        """Return what was seen so far."""
        t, values = (torch.from_numpy(np.stack(x)) for x in (self._t, self._values))
        best_t, best = (torch.from_numpy(x.copy()) for x in (self.best_t, self.best))
        return Watched(t, values, best_t, best, self.y.clone())

    def state(self) -> dict[str, Any]:
        """Return a copy of everything but what was seen, as tensors."""
        names = ("best_t", "best", "since", "level")
        return {
            "y": self.y.clone(),
            **{n: torch.from_numpy(getattr(self, n).copy()) for n in names},
        }

    def growing(self) -> dict[tuple[str, ...], Growing]:
        """Return what was seen, not copied, by its places in `state`."""
        seen = {"t": self._t, "values": self._values}
        return {(name,): Growing(rows, len(self._t)) for name, rows in seen.items()}

    @staticmethod
    def form(y: Tensor) -> dict[str, Any]:
        """Return the form of `state`, for a run of states `y` (B, n)."""
        each = Numbers(torch.float64, y.shape[:1])
        steps = Numbers(torch.float64, (None, len(y)))
        since = Numbers(torch.int64, y.shape[:1])
        ends = {"best_t": each, "best": each, "since": since, "level": each}
        return {"t": steps, "values": steps, **ends, "y": Numbers.like(y, finite=True)}

    def load(self, state: dict[str, Any], like: Tensor) -> None:
        """Continue from a copy, on the device of the run."""
        self.y = state["y"].to(like).clone()
        self.best, self.best_t = (state[n].numpy().copy() for n in ("best", "best_t"))
        self.since, self.level = (state[n].numpy().copy() for n in ("since", "level"))
        self._t, self._values = (list(state[n].numpy().copy()) for n in ("t", "values"))
