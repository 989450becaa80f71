r"""Gauss collocation: integrates smooth equations of few dimensions in few, long steps.

It serves the geodesics: to the same error "rk8" of `integrate` takes 1.4 to 4.2 times as long for
single points up to 10 x 10, but 0.3 to 1.1 times from rank 20 on and in batches of 64.

Over a step of length h the derivative is the polynomial through its values at S Gauss nodes, which
a fixed-point iteration with Anderson acceleration finds for all nodes in one batch. The end of a
step has order 2S, the dense output order S. The two highest Legendre coefficients of its derivative
set the steps of every sample. Tensors have the samples first, then the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from dln_geometry.ode.anderson import Secants
from dln_geometry.support import on_device

# The iteration must be finer than the error allowed, by this factor.
_ROUGH = 20.0
# The step length aims at the usual number of iterations.
_USUAL_ITERATIONS, _MOST_ITERATIONS = 9, 25
_MOST_SECANTS = 5
_PATIENCE = 3
_MOST_STEPS = 120


@dataclass(frozen=True)
class Gauss:
    """Gauss collocation with a number of nodes, of order ``2 stages`` at the end of a step.

    Examples
    --------
    >>> dln.ode.Gauss(2).nodes
    array([0.21132487, 0.78867513])
    """

    stages: int = 16

    @cached_property
    def nodes(self) -> np.ndarray:
        """Nodes in [0, 1], shape (S,)."""
        return 0.5 * (legendre.leggauss(self.stages)[0] + 1.0)

    @cached_property
    def weights(self) -> np.ndarray:
        """Weights of the integral over the step, shape (1, S)."""
        return 0.5 * legendre.leggauss(self.stages)[1][None]

    @cached_property
    def transform(self) -> np.ndarray:
        """The Legendre coefficients of the polynomial through values at the nodes, (S, S)."""
        x, w = legendre.leggauss(self.stages)
        degrees = np.arange(self.stages)
        return (2 * degrees[:, None] + 1) / 2 * legendre.legvander(x, self.stages - 1).T * w

    @cached_property
    def matrix(self) -> np.ndarray:
        """The Runge-Kutta matrix, (S, S): integrals from 0 to the nodes."""
        return self.integrals(self.nodes)

    def integrals(self, theta: np.ndarray) -> np.ndarray:
        """Return the weights of the values at the nodes in the integrals from 0 to theta."""
        values = legendre.legvander(2.0 * theta - 1.0, self.stages)
        columns = 0.5 * (values[:, 2:] - values[:, :-2]) / np.arange(3, 2 * self.stages, 2)
        return np.column_stack((theta, columns)) @ self.transform

    def extrapolation(self, ratios: np.ndarray) -> np.ndarray:
        """Return tables (B, S, S) to the nodes of the next step, `ratios` times as long."""
        ahead = 2.0 * (1.0 + ratios[:, None] * self.nodes) - 1.0
        return legendre.legvander(ahead, self.stages - 1) @ self.transform

    @cached_property
    def fine(self) -> tuple[np.ndarray, np.ndarray]:
        """Many points of a step, and the table to them from the nodes and the end of the step."""
        x = 2.0 * np.append(self.nodes, 1.0) - 1.0
        points = -np.cos(np.linspace(0.0, math.pi, 12 * self.stages))
        from_nodes = np.linalg.inv(legendre.legvander(x, self.stages))
        return 0.5 * (points + 1.0), legendre.legvander(points, self.stages) @ from_nodes


GAUSS = Gauss()


class System(Protocol):
    """A differential equation for a batch of samples."""

    def field(self, state: Tensor) -> Tensor:
        """Return the derivative of states of shape (B, S, n)."""
        ...

    def coordinates_at(self, state: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the coordinates (B, S, k) of differences (B, S, n) whose norm rtol bounds."""
        ...

    def restricted(self, samples: Tensor) -> System:
        """Return the equation of some of the samples, by their indices."""
        ...

    def ends(self, t: np.ndarray, h: np.ndarray, states: Tensor) -> np.ndarray:
        """Return when in the steps from t to t + h the system ends, or inf, (B,).

        `states`, of shape (B, S + 1, n), are those at the nodes and at the end of the step.
        """
        ...


@dataclass(frozen=True)
class Journey:
    """States (B, n) of the samples at the times asked for; the other fields have one row each.

    Examples
    --------
    >>> class Decay:  # y' = -y
    ...     def field(self, state):
    ...         return -state
    ...     def coordinates_at(self, state):
    ...         return lambda difference: difference
    ...     def restricted(self, samples):
    ...         return self
    ...     def ends(self, t, h, states):
    ...         return torch.full((len(t),), float("inf")).double().numpy()
    >>> y = torch.ones(1, 1, dtype=torch.float64)
    >>> journey = dln.ode.collocate(Decay(), y, [1.0], rtol=1e-10, shortest=1e-6)
    >>> journey.states[0], journey.lost
    (tensor([[0.3679]], dtype=torch.float64), array([nan]))
    """

    states: list[Tensor]  # meaningless for samples that were lost before
    lost: np.ndarray  # time beyond which a sample could not be followed, or NaN
    barred: np.ndarray  # whether it was lost because the system ends there
    last: Tensor  # the last state of each sample


def collocate(
    system: System,
    y: Tensor,
    times: Sequence[float],
    *,
    rtol: float,
    shortest: float,
    inside: float | None = None,
    method: Gauss = GAUSS,
    steps: int | None = None,
) -> Journey:
    """Integrate from `y`, (B, n), at time 0 to increasing times > 0.

    `rtol` bounds the error of a step in the coordinates of the system, `inside` (by default the
    same) the estimated error, that inside of a step; the error at its end is about the square. Give
    up samples that need a step below `shortest`. With `steps`, take so many equal ones instead.

    Examples
    --------
    >>> class Decay:  # y' = -y
    ...     def field(self, state):
    ...         return -state
    ...     def coordinates_at(self, state):
    ...         return lambda difference: difference
    ...     def restricted(self, samples):
    ...         return self
    ...     def ends(self, t, h, states):
    ...         return torch.full((len(t),), float("inf")).double().numpy()
    >>> y = torch.ones(1, 1, dtype=torch.float64)
    >>> journey = dln.ode.collocate(Decay(), y, [1.0], rtol=1e-10, shortest=1e-6)
    >>> journey.states[0]  # 1/e
    tensor([[0.3679]], dtype=torch.float64)
    """
    end, samples = times[-1], len(y)
    # The highest two coefficients, integrated over the step.
    tail = method.transform[-2:] / (2 * method.stages - 3)
    inside = rtol if inside is None else inside
    tolerance = max(rtol / _ROUGH, 10.0 * torch.finfo(y.dtype).eps)
    states = [y.clone() for _ in times]
    lost, last, barred = np.full(samples, math.nan), y.clone(), np.zeros(samples, bool)
    left, t, rejected = np.arange(samples), np.zeros(samples), np.zeros(samples, bool)
    h = np.full(samples, end if steps is None else end / steps)
    guess = system.field(y.unsqueeze(1)).expand(-1, method.stages, -1)
    for attempt in range(_MOST_STEPS if samples else 0):
        derivative, iterations, accepted = _solve(system, y, h, guess, tolerance, method)
        step = _column(h, y)
        error, _ = _sizes(system.coordinates_at(y)(step * _combine(tail, derivative)), None)
        error = np.where(accepted, error, math.inf)
        if steps is None:
            accepted &= error <= inside
        moves = _column(accepted, y) > 0
        moved = torch.where(moves, step * _combine(method.weights, derivative), 0.0)[:, 0]
        for state, time in zip(states, times, strict=True):
            held = accepted & (t < time) & (time <= t + h + 1e-12 * end)
            if held.any():
                theta = (time - t[held]) / h[held]
                table = method.integrals(np.minimum(theta, 1.0))
                # The end of a step is more accurate than its inside.
                table[theta > 1 - 1e-12] = method.weights
                index = torch.as_tensor(np.flatnonzero(held), device=y.device)
                move = step[index] * _combine(table[:, None], derivative[index])
                state[torch.as_tensor(left[held], device=y.device)] = y[index] + move[:, 0]
        nodes = y.unsqueeze(1) + step * _combine(method.matrix, derivative)
        ending = system.ends(t, h, torch.cat((nodes, (y + moved).unsqueeze(1)), 1))
        ending = np.where(accepted, ending, math.inf)
        y = y + moved
        t = np.where(accepted, t + h, t)
        with np.errstate(divide="ignore", invalid="ignore"):
            better = 0.9 * (inside / np.maximum(error, 1e-300)) ** (1.0 / method.stages)
            shrink = np.where(np.isfinite(error), np.maximum(0.2, better), 0.4)
            # Iterations are the cost of a step: one that takes too many is too long.
            usual = np.maximum(0.4, _USUAL_ITERATIONS / iterations)
            grow = np.minimum(np.minimum(3.0, better), usual)
        grow = np.minimum(h * np.where(rejected, np.minimum(grow, 1.0), grow), end - t)
        grown = h if steps is not None else np.where(accepted, grow, h * shrink)
        failed = ~accepted & ((grown < shortest) if steps is None else True)
        failed |= np.isfinite(ending)
        if attempt == _MOST_STEPS - 1:
            failed |= t < end * (1 - 1e-12)
        leaves = failed | (accepted & (t >= end * (1 - 1e-12)))
        if leaves.any():
            index = torch.as_tensor(left[leaves], device=y.device)
            last[index] = y[torch.as_tensor(leaves, device=y.device)]
            lost[left[failed]] = np.minimum(t, ending)[failed]
            barred[left] |= np.isfinite(ending)
            if leaves.all():
                break
        rejected = ~accepted
        table = method.extrapolation(np.where(accepted, grown / h, 0.0))
        guess = torch.where(moves, _combine(table, derivative), guess[:, :1])
        h = grown
        if leaves.any():
            kept = torch.as_tensor(np.flatnonzero(~leaves), device=y.device)
            left, t, h, rejected = (x[~leaves] for x in (left, t, h, rejected))
            y, guess, system = y[kept], guess[kept], system.restricted(kept)
    return Journey(states, lost, barred, last)


def _solve(
    system: System, y: Tensor, h: np.ndarray, guess: Tensor, tolerance: float, method: Gauss
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Solve for the derivatives at the nodes of one step, from a guess of them, (B, S, n).

    Returns them, and by sample the number of iterations and whether they converged. A sample that
    has converged leaves the batch. Next to a pole of one mode only the acceleration converges.
    """
    samples = len(y)
    found, converged = guess, np.zeros(samples, bool)
    iterations = np.full(samples, _MOST_ITERATIONS)
    best, stalled, left = np.full(samples, math.inf), np.zeros(samples, int), np.arange(samples)
    secants, before = Secants(_MOST_SECANTS), None
    start, step = y.unsqueeze(1), _column(h, y)
    coordinates = system.coordinates_at(y)
    state = start + step * _combine(method.matrix, guess)
    for iteration in range(1, _MOST_ITERATIONS + 1):
        finite = torch.isfinite(state).flatten(1).all(1)
        # On a device one wait serves both: a field there takes what is not finite.
        ahead = on_device(state)
        stays = np.ones(len(state), bool) if ahead else finite.cpu().numpy()
        derivative = None
        if stays.all():
            derivative = system.field(state)
            moved = start + step * _combine(method.matrix, derivative)
            residual = coordinates(moved - state)
            change, stays = _sizes(residual, finite if ahead else None)
            derivative = derivative if stays.all() else None
        if derivative is not None:
            stalled = np.where(change < 0.7 * best, 0, stalled + 1)
            best = np.fmin(best, change)
            # Rounding may keep the change above the tolerance, but below the error allowed.
            given_up = stalled > _PATIENCE
            done = (change <= tolerance) | (given_up & (change <= _ROUGH * tolerance))
            stays = ~done & ~given_up & np.isfinite(change)
            converged[left[done]] = True
            image, residual = moved.flatten(1), residual.flatten(1)
            if before is not None:
                secants.add(image - before[0], residual - before[1])
            before = image, residual
        iterations[left[~stays]] = iteration
        if derivative is not None and not stays.all():
            index = torch.as_tensor(left, device=y.device)
            found = found.index_copy(0, index, derivative) if len(left) < samples else derivative
        if not stays.any():
            break
        if not stays.all():
            kept = torch.as_tensor(np.flatnonzero(stays), device=y.device)
            left, best, stalled = left[stays], best[stays], stalled[stays]
            start, step, state = start[kept], step[kept], state[kept]
            secants = secants.restricted(kept)
            before = None if before is None else (before[0][kept], before[1][kept])
            system = system.restricted(kept)
            coordinates = system.coordinates_at(start[:, 0])
        if derivative is not None and before is not None:
            state = (before[0] - secants.correction(before[1])).view_as(state)
    return found, iterations, converged


def _combine(table: np.ndarray, values: Tensor) -> Tensor:
    """Apply a table (T, S), or one of each sample (B, T, S), to values at the nodes (B, S, n)."""
    return torch.as_tensor(table, dtype=values.dtype, device=values.device) @ values


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    """Return one number of each sample, shape (B, 1, 1)."""
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def _sizes(coordinates: Tensor, finite: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest norm of each sample, where NaN stays NaN, and which are `finite`."""
    sizes = torch.linalg.vector_norm(coordinates, dim=-1).flatten(1).amax(1)
    if finite is None:
        return sizes.cpu().numpy(), np.ones(len(sizes), bool)
    both = torch.stack((sizes, finite.to(sizes))).cpu().numpy()
    return both[0], both[1] > 0
