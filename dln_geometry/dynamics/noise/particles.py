"""Particles on a line: eigenvalues or singular values that repel each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.noise.simulation import OVERFLOW, Diverged, State, Stepper


class Particles(Stepper):
    """Positions (..., n) moved by ``step(x, h, index)`` and, exactly, by the drift ``-rate x``.

    As repulsion is homogeneous of degree -1, ``e^{-ct} y((e^{2ct} - 1)/(2c))`` is the confined
    motion if y is the free one.
    """

    def __init__(
        self, step: Callable[[Tensor, float, int], Tensor], scheme: str, rate: float
    ) -> None:
        self.step, self.scheme, self.rate = step, scheme, rate

    def advance(self, state: State, h: float, index: int) -> State:
        (x,), rate = state, self.rate
        try:
            if rate == 0:
                return (self.step(x, h, index),)
            shrink, tau = math.exp(-rate * h), -math.expm1(-2 * rate * h) / (2 * rate)
            return (self.step(shrink * x, tau, index),)
        except torch.linalg.LinAlgError:
            finite = torch.isfinite(x).all(-1)
            raise Diverged(OVERFLOW, ~finite | finite.all()) from None

    def observe(self, state: State) -> dict[str, Tensor]:
        return {"states": state[0]}

    def point(self, state: State) -> Tensor:
        return state[0]

    def summary(self, state: State, steps: int) -> dict[str, Any]:
        return {"scheme": self.scheme}
