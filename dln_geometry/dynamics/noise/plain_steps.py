"""Langevin steps at depth 1: the plain diffusion of matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import evaluate
from dln_geometry.dynamics.noise.product_steps import Gaussians, Thermostat
from dln_geometry.dynamics.noise.simulation import Diverged
from dln_geometry.geometry.points import EndToEnd

__all__ = ["PlainStepper"]


class PlainStepper:
    """Depth 1: steps of ``dX = -E'(X) dt + sqrt(2 kappa / beta) dB``, any rank.

    Euler's, of weak order 1, or Heun's, of weak order 2: the noise is additive.
    """

    depth = 1.0

    def __init__(self, drive: Thermostat, noise: Gaussians, *, heun: bool = False) -> None:
        self.drive, self.noise, self.heun = drive, noise, heun

    def advance(self, state: tuple[Tensor, ...], h: float, index: int) -> tuple[Tensor, ...]:
        """Return the state after one step."""
        (x,), drive = state, self.drive
        if self.noise.increments is not None:
            moved = x + drive.amplitude * self.noise.increments[index]
        else:
            moved = x + self.noise.draw(x.shape, x, drive.amplitude * math.sqrt(h))
        if drive.loss is not None:
            first = evaluate(drive.loss, x)[1]
            if self.heun:
                first = 0.5 * (first + evaluate(drive.loss, moved - h * first)[1])
            moved = moved - h * first
        finite = torch.isfinite(moved).all(-1).all(-1)
        if not bool(finite.all()):
            raise Diverged(
                f"the matrices must stay finite, got overflow: take dt below {h:g}", ~finite
            )
        return (moved,)

    def observe(self, state: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Return loss and singular values."""
        (x,) = state
        row = {"singular_values": torch.linalg.svdvals(x)}
        if self.drive.loss is not None:
            row["loss"] = evaluate(self.drive.loss, x)[0].expand(x.shape[:-2])
        return row

    def point(self, state: tuple[Tensor, ...]) -> EndToEnd:
        """Return the matrix as a point."""
        return EndToEnd.of(state[0], 1.0)
