r"""Gauss collocation: an integrator of high order for smooth equations of few dimensions.

The step of every sample is chosen by the highest Legendre coefficients of the derivative over it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.gauss import (
    ROUGH,
    STAGES,
    System,
    combine,
    combine_each,
    dense,
    extrapolation,
    gauss_step,
    nodes_and_weights,
    per_sample,
    sizes,
)

__all__ = ["Journey", "StepFailure", "collocate", "collocate_samples"]

# A step is as long as so many iterations find.
_USUAL_ITERATIONS = 9
_MOST_STEPS = 120


class StepFailure(ArithmeticError):
    """No step from `time` on succeeds; `state` is what was reached."""

    def __init__(self, time: float, state: Tensor) -> None:
        super().__init__(f"no step succeeds beyond {time:g}")
        self.time = time
        self.state = state


@dataclass(frozen=True)
class Journey:
    """Where the samples have come to.

    Attributes
    ----------
    states : list of Tensor, shape (q, B, ...)
        At the times asked for; without meaning for samples that were lost before.
    lost : ndarray, shape (B,)
        Time beyond which there was no way on, NaN where all times were reached.
    barred : ndarray of bool, shape (B,)
        Whether that was because the system ends there.
    last : Tensor, shape (q, B, ...)
        The last state of all.
    """

    states: list[Tensor]
    lost: np.ndarray
    barred: np.ndarray
    last: Tensor


def collocate_samples(
    system: System,
    y: Tensor,
    times: Sequence[float],
    *,
    rtol: float,
    shortest: float,
    inside: float | None = None,
    stages: int = STAGES,
    steps: int | None = None,
) -> Journey:
    """Return the states at increasing times > 0, from `y` at 0, with a step for every sample.

    Parameters
    ----------
    system : System
    y : Tensor, shape (q, B, ...)
    times : sequence of float
    rtol : float
        Bound of the size of the error of a step, in the coordinates of the system.
    inside : float, optional
        Bound for the error inside of a step, the one that is estimated; `rtol` by default. The end
        of a step, of twice the order, has an error of about its square.
    shortest : float
        Step below which a sample is given up.
    stages : int
    steps : int, optional
        Take so many equal steps to the last time, whatever the error.
    """
    end, samples = times[-1], y.shape[1]
    _, _, weights, transform = nodes_and_weights(stages)
    # The highest two coefficients, integrated over the step.
    tail = transform[-2:] / (2 * stages - 3)
    inside = rtol if inside is None else inside
    tolerance = max(rtol / ROUGH, 10.0 * torch.finfo(y.dtype).eps)
    states = [y.clone() for _ in times]
    lost, last, barred = np.full(samples, math.nan), y.clone(), np.zeros(samples, bool)
    left, t, rejected = np.arange(samples), np.zeros(samples), np.zeros(samples, bool)
    h = np.full(samples, end if steps is None else end / steps)
    guess = system.field(y.unsqueeze(1)).expand(-1, stages, *(-1,) * (y.ndim - 1))
    for attempt in range(_MOST_STEPS):
        derivative, iterations, accepted = gauss_step(system, y, h, guess, tolerance, stages)
        step = per_sample(h, derivative)
        error = sizes(system.coordinates_at(y)(step * combine(tail, derivative)))
        error = np.where(accepted, error, math.inf)
        if steps is None:
            accepted &= error <= inside
        moved = torch.where(
            per_sample(accepted, derivative) > 0, step * combine(weights[None], derivative), 0.0
        )[:, 0]
        for k, time in enumerate(times):
            held = accepted & (t < time) & (time <= t + h + 1e-12 * end)
            if held.any():
                # The end of a step is better than its inside.
                theta = (time - t[held]) / h[held]
                table = dense(np.minimum(theta, 1.0), stages)
                table[theta > 1 - 1e-12] = weights
                index = torch.as_tensor(np.flatnonzero(held), device=y.device)
                place = torch.as_tensor(left[held], device=y.device)
                move = combine_each(table[:, None], derivative[:, :, index]) * step[:, :, index]
                states[k][:, place] = y[:, index] + move[:, 0]
        nodes = y.unsqueeze(1) + step * combine(nodes_and_weights(stages)[1], derivative)
        ending = system.ends(t, h, torch.cat((nodes, (y + moved).unsqueeze(1)), 1))
        ending = np.where(accepted, ending, math.inf)
        y = y + moved
        t = np.where(accepted, t + h, t)
        with np.errstate(divide="ignore", invalid="ignore"):
            better = 0.9 * (inside / np.maximum(error, 1e-300)) ** (1.0 / stages)
            shrink = np.where(np.isfinite(error), np.maximum(0.2, better), 0.4)
            # The cost of a step is that of its iterations: beyond their usual number it pays less.
            grow = np.minimum(
                np.minimum(3.0, better), np.maximum(0.4, _USUAL_ITERATIONS / iterations)
            )
        grow = np.minimum(h * np.where(rejected, np.minimum(grow, 1.0), grow), end - t)
        grown = h if steps is not None else np.where(accepted, grow, h * shrink)
        failed = ~accepted & ((grown < shortest) if steps is None else True)
        failed |= np.isfinite(ending)
        if attempt == _MOST_STEPS - 1:
            failed |= t < end * (1 - 1e-12)
        arrived = accepted & (t >= end * (1 - 1e-12))
        leaves = failed | arrived
        if leaves.any():
            index = torch.as_tensor(left[leaves], device=y.device)
            last[:, index] = y[:, torch.as_tensor(np.flatnonzero(leaves), device=y.device)]
            lost[left[failed]] = np.minimum(t, ending)[failed]
            barred[left] |= np.isfinite(ending)
            if leaves.all():
                break
        rejected = ~accepted
        table = extrapolation(np.where(accepted, grown / h, 0.0), stages)
        ahead = combine_each(table, derivative)
        guess = torch.where(per_sample(accepted, derivative) > 0, ahead, guess[:, :1])
        h = grown
        if leaves.any():
            kept = torch.as_tensor(np.flatnonzero(~leaves), device=y.device)
            left, t, h, rejected = (x[~leaves] for x in (left, t, h, rejected))
            y, guess, system = y[:, kept], guess[:, :, kept], system.restricted(kept)
    return Journey(states, lost, barred, last)


@dataclass(frozen=True)
class _Together:
    """Samples that share their steps, as a system of one."""

    derivative: Callable[[Tensor], Tensor]
    coordinates: Callable[[Tensor], Callable[[Tensor], Tensor]]
    alive: Callable[[float, Tensor], bool] | None
    end: float

    def field(self, state: Tensor) -> Tensor:
        return self.derivative(state.squeeze(2)).unsqueeze(2)

    def coordinates_at(self, state: Tensor) -> Callable[[Tensor], Tensor]:
        coordinates = self.coordinates(state.squeeze(1))
        return lambda difference: coordinates(difference.squeeze(2)).unsqueeze(2)

    def restricted(self, samples: Tensor) -> _Together:
        return self

    def ends(self, t: np.ndarray, h: np.ndarray, states: Tensor) -> np.ndarray:
        after = float(t[0] + h[0])
        if self.alive is None or after >= self.end * (1 - 1e-12):
            return np.array([math.inf])
        return np.array([math.inf if self.alive(after, states[:, -1, 0]) else after])


def collocate(
    field: Callable[[Tensor], Tensor],
    y: Tensor,
    times: Sequence[float],
    *,
    coordinates_at: Callable[[Tensor], Callable[[Tensor], Tensor]],
    rtol: float,
    shortest: float,
    alive: Callable[[float, Tensor], bool] | None = None,
    stages: int = STAGES,
    steps: int | None = None,
) -> list[Tensor]:
    """Return the states at increasing times > 0, starting from `y` at 0, by common steps.

    Parameters
    ----------
    field : callable
        Derivative of states of shape (q, S, ...).
    y : Tensor, shape (q, ...)
    times : sequence of float
    coordinates_at : callable
        Of a state: the coordinates of differences of states, of norm their size relative to what
        is to be resolved; from shape (q, S, *batch, ...) to (q, S, *batch, k).
    rtol : float
        Bound of that size for the error of a step.
    shortest : float
        Step below which the integration is given up.
    alive : callable, optional
        Whether there is a way on from a state at a time: if not, the integration is given up.
    stages : int
    steps : int, optional
        Take so many equal steps to the last time, whatever the error.

    Raises
    ------
    StepFailure
        If a step had to be shorter than `shortest`, or a fixed one does not converge.
    """
    journey = collocate_samples(
        _Together(field, coordinates_at, alive, times[-1]),
        y.unsqueeze(1),
        times,
        rtol=rtol,
        shortest=shortest,
        stages=stages,
        steps=steps,
    )
    if not np.isnan(journey.lost[0]):
        raise StepFailure(float(journey.lost[0]), journey.last[:, 0])
    return [state[:, 0] for state in journey.states]
