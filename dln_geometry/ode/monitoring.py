"""A monitor keeps the best state of every sample of a run, and ends runs that only lose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.runge_kutta import fetch
from dln_geometry.support import Numbers

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
    """Follow an observable of B samples; a sample ends `patience` of its steps after its best.

    A value that is NaN is no improvement.
    """

    def __init__(self, observable: Observable, patience: int | None) -> None:
        self.observable = observable
        self.patience = np.inf if patience is None else patience

    def start(self, y: Tensor) -> None:
        """Take the start for the best state so far."""
        batch = len(y)
        self.y, self.best, self.best_t = y.clone(), np.full(batch, np.inf), np.zeros(batch)
        self.since = np.zeros(batch, dtype=np.int64)
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
        self.since = np.where(better, 0, self.since + advanced)
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
        """Return a copy of everything, as tensors."""
        seen = self.result()
        return {**vars(seen), "since": torch.from_numpy(self.since.copy())}

    @staticmethod
    def form(y: Tensor) -> dict[str, Any]:
        """Return the form of `state`, for a run of states `y` (B, n)."""
        each = Numbers(torch.float64, y.shape[:1])
        steps = Numbers(torch.float64, (None, len(y)))
        since = Numbers(torch.int64, y.shape[:1])
        ends = {"best_t": each, "best": each, "since": since}
        return {"t": steps, "values": steps, **ends, "y": Numbers.like(y, finite=True)}

    def load(self, state: dict[str, Any], like: Tensor) -> None:
        """Continue from a copy, on the device of the run."""
        self.y = state["y"].to(like).clone()
        self.best, self.best_t = (state[n].numpy().copy() for n in ("best", "best_t"))
        self.since = state["since"].numpy().copy()
        self._t, self._values = (list(state[n].numpy().copy()) for n in ("t", "values"))
