r"""Shooting: the velocity whose geodesic reaches a goal.

The geodesic is shot on whatever side of zero, and what it misses in the chart, in the gauge that it
carries along, corrects the velocity: plainly and by the secants of earlier shots where the goal is
near, by Newton's method where it is not, and by way of nearer goals where that fails.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dln_geometry.geometry.geodesics.chart import Chart
from dln_geometry.geometry.geodesics.hamiltonian import GeodesicError, follow
from dln_geometry.geometry.geodesics.root_metric import Rooted, root
from dln_geometry.geometry.metric import Box, tangent_matrix
from dln_geometry.ode import secant_step

__all__ = ["shoot"]

_MOST_SHOTS = 60
_SECANTS = 12
_SHORTEST_STAGE = 1.0 / 64.0
# After so many shots that do not halve what is missed, the derivative is asked for, of so many
# dimensions at most; and after so many a sample is given up.
_SLOW = 3
_MOST_DIMENSIONS = 150
_FEW_DIMENSIONS = 40
# It is asked for at once where a shot misses by more than this share of the way.
_FAR = 0.02
# What misses by more is better found by way of nearer goals.
_LOST = 0.03
# Length of a correction over that of the velocity.
_LONGEST = 0.3
_COARSE = 1e-6
_PATIENCE = 7
# Bounds the memory of the shots that a derivative takes, to about half a gigabyte.
_MOST_ENTRIES = 70000


def shoot(chart: Chart, goal: Rooted, rtol: float) -> Tensor:
    """Find the coordinates of the velocity that reaches the goal, shape (..., k)."""
    batch = chart.point.s.shape[:-1]
    chart, goal = chart.flattened(), _flattened(goal)
    guess = chart.coordinates(chart.guess(goal))
    found, done, missed = _correct(chart, goal, guess, rtol)
    done &= ~_crosses(chart, goal, found, rtol)
    for i in torch.nonzero(~done).flatten().tolist():
        where = ""
        if batch:
            index = tuple(int(k) for k in np.unravel_index(i, batch))
            where = f" (sample {index[0] if len(index) == 1 else index} of the batch)"
        one = torch.tensor([i], device=guess.device)
        found[i] = _approach(chart.of_samples(one), _some(goal, one), rtol, float(missed[i]), where)
    return found.reshape(*batch, found.shape[-1])


def _flattened(q: Rooted) -> Rooted:
    return Rooted(*(x.reshape(-1, *x.shape[-2:]) for x in (q.u, q.k, q.v)))


def _some(q: Rooted, samples: Tensor) -> Rooted:
    return Rooted(q.u[samples], q.k[samples], q.v[samples])


def _approach(chart: Chart, goal: Rooted, rtol: float, missed: float, where: str) -> Tensor:
    """Find the velocity of one sample by way of nearer goals."""
    reached, stage = 0.0, 0.5
    velocity = torch.zeros(())
    before = (velocity, 0.0)
    while reached < 1.0:
        part = min(1.0, reached + stage)
        way = goal if part == 1.0 else chart.towards(goal, part)
        if reached:
            guess = velocity + (velocity - before[0]) * ((part - reached) / (reached - before[1]))
        else:
            guess = chart.coordinates(chart.guess(way))
        # On the way it is enough to be near.
        near = rtol if part == 1.0 else max(rtol, 1e-4)
        found, done, error = _correct(chart, way, guess, near)
        if not bool(done) or bool(_crosses(chart, way, found, near)):
            missed = float(error)
            stage *= 0.5
            if stage < _SHORTEST_STAGE:
                raise GeodesicError(
                    f"no geodesic was found from p to q{where}: shooting reached {reached:.0%} of "
                    f"the way and {_how_far(missed)} (the logarithm is local, and the metric is "
                    "not complete)"
                )
            continue
        before, velocity, reached = (velocity, reached), found, part
        stage *= 1.5
    return velocity[0]


def _how_far(missed: float) -> str:
    if math.isinf(missed):
        return "no geodesic came to the next goal"
    return f"missed the next goal by {missed:.1e} of its distance"


def _arrival(chart: Chart, velocity: Tensor, rtol: float) -> tuple[Rooted, Tensor]:
    """Return where geodesics arrive, on whatever side of zero, and if they do."""
    p = chart.point
    z = tangent_matrix(p.u, p.vh, chart.blocks(velocity))
    (end,), _, lost = follow(Box(p, (z,), None, None), [1.0], rtol, through=True)
    return end, torch.as_tensor(~lost.which, device=velocity.device)


def _crosses(chart: Chart, goal: Rooted, velocity: Tensor, rtol: float) -> Tensor:
    """Return which geodesics to the goal pass through zero."""
    p, length = chart.point, velocity.norm(dim=-1)
    if math.isinf(p.depth):
        return torch.zeros_like(length, dtype=torch.bool)
    # Both ends have a distance from zero, and the way there and back is no shorter.
    clear = root(p.s[..., -1], p.depth) + torch.linalg.eigvalsh(goal.k)[..., 0]
    unit = p.depth if p.normalized else 1.0
    if bool((length < 0.99 * math.sqrt(unit * p.depth) * clear).all()):
        return torch.zeros_like(length, dtype=torch.bool)
    z = tangent_matrix(p.u, p.vh, chart.blocks(velocity))
    _, _, lost = follow(Box(p, (z,), None, None), [1.0], max(rtol, 1e-8))
    return torch.as_tensor(lost.which, device=velocity.device)


def _inverse_slope(chart: Chart, velocity: Tensor) -> Tensor:
    """Return the inverse of the derivative of the arrival, shape (B, k, k), by differences."""
    samples, k = velocity.shape
    most = max(1, _MOST_ENTRIES // (k * (k + 1)))
    if samples > most:
        parts = torch.arange(samples, device=velocity.device).split(most)
        return torch.cat([_inverse_slope(chart.of_samples(i), velocity[i]) for i in parts])
    h = 3e-4 * velocity.norm(dim=-1, keepdim=True).unsqueeze(-1)
    one = torch.eye(k + 1, k, dtype=velocity.dtype, device=velocity.device).roll(1, 0)
    index = torch.arange(samples, device=velocity.device).repeat_interleave(k + 1)
    wide = chart.of_samples(index)
    moves = wide.tangential(one.repeat(samples, 1)).reshape(samples, k + 1, k)
    moved = velocity.unsqueeze(-2) + h * moves
    ends, _ = _arrival(wide, moved.reshape(-1, k), 0.1 * _COARSE)
    all_ends = Rooted(*(x.unflatten(0, (samples, k + 1)) for x in (ends.u, ends.k, ends.v)))
    here = Rooted(*(x[:, :1].expand(-1, k, -1, -1) for x in (all_ends.u, all_ends.k, all_ends.v)))
    there = Rooted(*(x[:, 1:] for x in (all_ends.u, all_ends.k, all_ends.v)))
    wide = chart.of_samples(index.reshape(samples, k + 1)[:, 1:])
    slope = wide.coordinates(wide.between(here, there)) / h
    # The identity across the tangent space; of what geodesics do not tell apart nothing is asked.
    tangential = moves[:, 1:]
    slope = tangential @ slope.mT.nan_to_num(0.0, 0.0, 0.0) @ tangential + (one[1:] - tangential)
    return torch.linalg.pinv(slope, rtol=1e-6)


def _correct(
    chart: Chart, goal: Rooted, velocity: Tensor, rtol: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return velocities that reach the goal, whether they do, and the relative errors left.

    Anderson acceleration of ``v <- v + J (goal - exp v)``, the difference in the chart, sample by
    sample: J is 1, and the inverse of the derivative where that is slow.
    """
    samples, k = velocity.shape
    eps = torch.finfo(velocity.dtype).eps
    found, reached = velocity.clone(), velocity.new_zeros(samples, dtype=torch.bool)
    nearest = velocity.new_full((samples,), math.inf)
    finest = max(eps, 0.1 * rtol)
    resolved, inverse = max(finest, _COARSE), None
    asked, fresh = -_MOST_SHOTS, False
    moves: list[Tensor] = []
    changes: list[Tensor] = []
    left = torch.arange(samples, device=velocity.device)
    # The best shot so far, by how much it misses, and in how many it has not become better.
    trial, base, missed, fault = velocity, *(torch.zeros_like(velocity) for _ in range(3))
    best, slow = nearest.clone(), torch.zeros_like(left)
    for shot in range(_MOST_SHOTS):
        arrived, follows = _arrival(chart, trial, resolved)
        miss = chart.coordinates(chart.between(arrived, goal))
        error = miss.norm(dim=-1) / (trial.norm(dim=-1) + chart.size * (100.0 * eps / rtol))
        error = torch.where(follows & torch.isfinite(error), error, math.inf)
        good = error <= best * (2.0 if inverse is None else 1.0)
        shift = miss if inverse is None else (inverse @ miss.unsqueeze(-1)).squeeze(-1)
        known = (good & torch.isfinite(best)).unsqueeze(-1)
        moves = [*moves, torch.where(known, trial - base, 0.0)][-_SECANTS:]
        changes = [*changes, torch.where(known, shift - fault, 0.0)][-_SECANTS:]
        slow, before = torch.where(error < 0.5 * best, 0, slow + 1), best
        base, missed, fault = (
            torch.where(good.unsqueeze(-1), new, old)
            for new, old in ((trial, base), (miss, missed), (shift, fault))
        )
        best = torch.where(good, error, best)
        nearest[left] = best
        done = good & (error <= rtol) & (resolved <= rtol)
        found[left] = base + torch.where(done.unsqueeze(-1), fault, 0.0)
        reached[left] = done
        stays = ~done & (slow <= torch.where(best < _LOST, _PATIENCE, _SLOW + 1))
        if not bool(stays.any()):
            break
        if not bool(stays.all()):
            kept = torch.nonzero(stays).flatten()
            chart, goal, left = chart.of_samples(kept), _some(goal, kept), left[kept]
            trial, base, missed, fault, good, best, before, slow = (
                x[kept] for x in (trial, base, missed, fault, good, best, before, slow)
            )
            moves, changes = [x[kept] for x in moves], [x[kept] for x in changes]
            inverse = None if inverse is None else inverse[kept]
        # A shot has to know by how much it misses to three digits.
        resolved = max(finest, min(_COARSE, 1e-3 * float(best.max())))
        # Where it is cheap the derivative is asked for as soon as it pays, else where it must.
        worst, few = float(best.max()), k <= _FEW_DIMENSIONS and bool(torch.isfinite(best).all())
        pays = few and worst > _COARSE and bool((best > 0.03 * before).any()) and worst < _FAR
        asks = bool((slow >= _SLOW).any()) or (few and inverse is None and worst > _FAR) or pays
        fresh = fresh and not bool(good.any())
        asks = asks and k <= _MOST_DIMENSIONS and math.isfinite(worst)
        if asks and not fresh and shot - asked >= 2 + (not few):
            inverse, asked, fresh = _inverse_slope(chart, base), shot, True
            fault = (inverse @ missed.unsqueeze(-1)).squeeze(-1)
            moves, changes, good = [], [], torch.ones_like(good)
        step = fault + secant_step(moves, changes, fault)
        # Where geodesics are about to fold the derivative asks for much too long a step.
        most = _LONGEST * base.norm(dim=-1) / step.norm(dim=-1).clamp_min(1e-300)
        step = step * most.clamp_max(1.0).unsqueeze(-1)
        trial = torch.where(good.unsqueeze(-1), base + step, 0.5 * (trial + base))
    return found, reached, nearest
