r"""Shooting: find the velocity whose geodesic reaches a goal, among matrices or networks.

An `Aim` shoots and returns the vector at the start by which each geodesic misses. That vector and
the secants of earlier shots correct the velocity; where this is slow Newton's method does, and
where both fail nearer goals come first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from dln_geometry.geometry.geodesics.rank_loss import GeodesicError
from dln_geometry.ode import Secants

_MOST_SHOTS = 60
_SECANTS = 12
_SHORTEST_STAGE = 1.0 / 64.0
# After a shot that misses by more than this share of the way, take the derivative at once.
_FAR = 0.02
# If shots miss by more than this, aim at nearer goals first.
_ASTRAY = 0.03
_COARSE = 1e-6
# After so many shots with too little progress, take the derivative.
_SLOW = 3


class Aim(ABC):
    """A batch of starts, and goals for their geodesics; all tensors have the samples first."""

    names: ClassVar[str]  # start and goal, for an error message
    incomplete: ClassVar[str]  # the manifold, for an error message
    progress: ClassVar[float]  # a good correction leaves at most this part of the miss
    patience: ClassVar[tuple[int, int]]  # most corrections in a row that are worse: near, far
    longest: ClassVar[float]  # length of the longest correction, relative to the velocity
    resolution: ClassVar[float] = 1e-3  # the next shot must resolve this part of the last miss
    # Most dimensions for which the derivative is cheap, and for which it is affordable.
    dimensions: ClassVar[tuple[int, int]] = (0, 0)

    @property
    @abstractmethod
    def size(self) -> Tensor:
        """Size of the starts, (B,), to which rounding is relative."""

    @abstractmethod
    def guess(self) -> Tensor:
        """Return a first velocity in orthonormal coordinates, (B, k)."""

    @abstractmethod
    def shoot(self, velocity: Tensor, resolved: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the corrections, (B, k), the distances missed by, and which geodesics arrive."""

    def crosses(self, velocity: Tensor, rtol: float) -> Tensor:
        """Return which geodesics that arrive have passed through zero, (B,)."""
        return torch.zeros_like(velocity[:, 0], dtype=torch.bool)

    @abstractmethod
    def towards(self, part: float) -> Self:
        """Return the aim at a goal that is a part of the way to this one."""

    @abstractmethod
    def of_samples(self, samples: Tensor) -> Self:
        """Return the aim of some of the samples."""

    def inverse_slope(self, velocity: Tensor) -> Tensor:
        """Return the inverse of the derivative of the arrival, (B, k, k)."""
        raise NotImplementedError


def shoot(
    aims: Sequence[Aim], rtol: float, batch: Sequence[int], there: Tensor | None = None
) -> Tensor:
    """Return the velocities that reach the goals, in coordinates, shape (*batch, k).

    Try the aims, which have the same goals, in turn: later ones cost more and succeed more often.
    Samples that are `there`, (B,), start at their goals: their velocity is zero.
    """
    found = aims[0].guess()
    lost = torch.arange(len(found), device=found.device)
    if there is not None:
        found[there] = 0.0
        lost = lost[~there]
    missed = found.new_zeros(len(lost))
    for aim in aims:
        if not len(lost):
            break
        aim = aim.of_samples(lost) if len(lost) < len(found) else aim
        velocity, done, missed = _correct(aim, aim.guess(), rtol)
        done &= ~aim.crosses(velocity, rtol)
        found[lost] = velocity
        lost, missed = lost[~done], missed[~done]
    for i, error in zip(lost.tolist(), missed.tolist(), strict=True):
        where = ""
        if batch:
            index = tuple(int(k) for k in np.unravel_index(i, tuple(batch)))
            where = f" (sample {index[0] if len(index) == 1 else index} of the batch)"
        one = torch.tensor([i], device=found.device)
        found[i] = _approach(aims[-1].of_samples(one), rtol, error, where)
    return found.reshape(*batch, found.shape[-1])


def _approach(aim: Aim, rtol: float, missed: float, where: str) -> Tensor:
    """Find the velocity of one sample by way of nearer goals."""
    reached, stage, velocity = 0.0, 0.5, torch.zeros((), device="cpu")
    before = (velocity, 0.0)
    while reached < 1.0:
        part = min(1.0, reached + stage)
        way = aim if part == 1.0 else aim.towards(part)
        share = (part - reached) / (reached - before[1]) if reached else 0.0
        guess = velocity + (velocity - before[0]) * share if reached else way.guess()
        near = rtol if part == 1.0 else max(rtol, 1e-4)
        found, done, error = _correct(way, guess, near)
        if bool(done) and not bool(way.crosses(found, near)):
            before, velocity, reached = (velocity, reached), found, part
            stage *= 1.5
            continue
        missed, stage = float(error), 0.5 * stage
        if stage < _SHORTEST_STAGE:
            miss = f"missed the next goal by {missed:.1e} of its distance"
            how_far = "no geodesic came to the next goal" if math.isinf(missed) else miss
            raise GeodesicError(
                f"no geodesic was found from {aim.names}{where}: shooting reached {reached:.0%} of "
                f"the way and {how_far} (the logarithm is local, and {aim.incomplete} not complete)"
            )
    return velocity[0]


def _correct(aim: Aim, velocity: Tensor, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return velocities that reach the goal, whether they do, and the relative errors left.

    Anderson acceleration of ``v <- v + J (goal - exp v)``, sample by sample: J is 1, or the inverse
    of the derivative where that is slow.
    """
    (samples, k), eps = velocity.shape, torch.finfo(velocity.dtype).eps
    cheap, affordable = (k <= most for most in aim.dimensions)
    found, reached = velocity.clone(), velocity.new_zeros(samples, dtype=torch.bool)
    nearest = velocity.new_full((samples,), math.inf)
    finest = max(eps, 0.1 * rtol)
    resolved, inverse = max(finest, _COARSE), None
    asked, fresh = -_MOST_SHOTS, False
    secants = Secants(_SECANTS)
    left = torch.arange(samples, device=velocity.device)
    # The best shot: its velocity, miss, correction, error; and the shots since the last progress.
    trial, base, missed, shift = velocity, *(torch.zeros_like(velocity) for _ in range(3))
    best, slow = nearest.clone(), torch.zeros_like(left)
    for shot in range(_MOST_SHOTS):
        miss, distance, arrives = aim.shoot(trial, resolved)
        error = distance / (trial.norm(dim=-1) + aim.size * (100.0 * eps / rtol))
        error = torch.where(arrives & torch.isfinite(error), error, math.inf)
        # A coarse shot may hit by chance: a later one need not be nearer than rtol.
        bound = (best * (2.0 if inverse is None else 1.0)).clamp_min(rtol)
        good = (error <= bound) & torch.isfinite(error)
        step = miss if inverse is None else (inverse @ miss.unsqueeze(-1)).squeeze(-1)
        known = (good & torch.isfinite(best)).unsqueeze(-1)
        change = torch.where(known, step - shift, 0.0)
        secants.add(torch.where(known, trial - base, 0.0) + change, change)
        slow, before = torch.where(error < aim.progress * best, 0, slow + 1), best
        base, missed, shift = (
            torch.where(good.unsqueeze(-1), new, old)
            for new, old in ((trial, base), (miss, missed), (step, shift))
        )
        best = torch.where(good, error, best)
        nearest[left] = best
        done = good & (error <= rtol) & (resolved <= rtol)
        found[left] = base + torch.where(done.unsqueeze(-1), shift, 0.0)
        reached[left] = done
        # A miss below the resolution may be noise: the next shot is not compared with it.
        vague = good & ~done & (error < resolved) & (resolved > finest)
        near, far = aim.patience
        stays = ~done & (slow <= torch.where(best < _ASTRAY, near, far))
        if not bool(stays.any()):
            break
        if not bool(stays.all()):
            kept = torch.nonzero(stays).flatten()
            aim, left, secants = aim.of_samples(kept), left[kept], secants.restricted(kept)
            trial, base, missed, shift, good, vague, best, before, slow = (
                x[kept] for x in (trial, base, missed, shift, good, vague, best, before, slow)
            )
            inverse = None if inverse is None else inverse[kept]
        worst = float(best.max())
        resolved = max(finest, min(_COARSE, aim.resolution * worst))
        # Take the derivative where the correction is slow; a cheap one as soon as it pays.
        soon = cheap and math.isfinite(worst)
        pays = soon and _COARSE < worst < _FAR and bool((best > 0.03 * before).any())
        asks = bool((slow >= _SLOW).any()) or (soon and inverse is None and worst > _FAR) or pays
        fresh = fresh and not bool(good.any())
        asks = asks and affordable and math.isfinite(worst)
        if asks and not fresh and shot - asked >= 2 + (not soon):
            inverse, asked, fresh = aim.inverse_slope(base), shot, True
            shift = (inverse @ missed.unsqueeze(-1)).squeeze(-1)
            secants, good = Secants(_SECANTS), torch.ones_like(good)
        step = shift - secants.correction(shift)
        # Close to a fold of the geodesics, the derivative asks for a far too long step.
        most = aim.longest * base.norm(dim=-1) / step.norm(dim=-1).clamp_min(1e-300)
        step = step * most.clamp_max(1.0).unsqueeze(-1)
        trial = torch.where(good.unsqueeze(-1), base + step, 0.5 * (trial + base))
        best, slow = torch.where(vague, math.inf, best), torch.where(vague, 0, slow)
    return found, reached, nearest
