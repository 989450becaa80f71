r"""Gauss collocation: an integrator of high order for smooth equations of few dimensions.

Over a step of length h the derivative is the polynomial through its values at S Gauss nodes,
found by accelerated fixed-point iteration, all nodes in one batch. The end point has order 2S, and
the polynomial is the dense output, of order S, by whose highest Legendre coefficients the step is
chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

__all__ = ["StepFailure", "gauss_step", "integrate", "nodes_and_weights", "size"]

STAGES = 16
_MOST_ITERATIONS = 25
_SECANTS = 6
_PATIENCE = 3
# The iteration is to be finer than the error allowed by this factor.
_ROUGH = 20.0
# A step is as long as so many iterations find.
_USUAL_ITERATIONS = 9
_MOST_STEPS = 120


class StepFailure(ArithmeticError):
    """No step from `time` on succeeds; `state` is what was reached."""

    def __init__(self, time: float, state: Tensor) -> None:
        super().__init__(f"no step succeeds beyond {time:g}")
        self.time = time
        self.state = state


@cache
def nodes_and_weights(stages: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return nodes in [0, 1], the Runge-Kutta matrix, its weights, and values -> Legendre."""
    x, w = legendre.leggauss(stages)
    values = legendre.legvander(x, stages - 1)
    degrees = np.arange(stages)
    transform = (2 * degrees[:, None] + 1) / 2 * values.T * w
    return 0.5 * (x + 1), _integral(x, stages) @ transform, 0.5 * w, transform


def _integral(x: np.ndarray, stages: int) -> np.ndarray:
    """Return the integrals from 0 to ``(x + 1)/2`` of the shifted Legendre polynomials."""
    values = legendre.legvander(x, stages)
    columns = [0.5 * (x + 1)]
    columns += [0.5 * (values[:, k + 1] - values[:, k - 1]) / (2 * k + 1) for k in range(1, stages)]
    return np.stack(columns, -1)


def _dense(theta: np.ndarray, stages: int) -> np.ndarray:
    """Return the weights of the node values in the integral from 0 to theta."""
    return _integral(2 * theta - 1, stages) @ nodes_and_weights(stages)[3]


def _extrapolation(ratio: float, stages: int) -> np.ndarray:
    """Return the values at the nodes of the next step, `ratio` times as long, by this one's."""
    c, _, _, transform = nodes_and_weights(stages)
    return legendre.legvander(2 * (1 + ratio * c) - 1, stages - 1) @ transform


def _combine(matrix: np.ndarray, values: Tensor) -> Tensor:
    """Apply a matrix to the stage axis, the second one."""
    table = torch.as_tensor(matrix, dtype=values.dtype, device=values.device)
    flat = values.reshape(*values.shape[:2], -1)
    return (table @ flat).reshape(values.shape[0], table.shape[0], *values.shape[2:])


def gauss_step(
    field: Callable[[Tensor], Tensor],
    y: Tensor,
    h: float,
    guess: Tensor,
    coordinates: Callable[[Tensor], Tensor],
    tolerance: float,
    stages: int = STAGES,
) -> tuple[Tensor | None, int]:
    """Return the derivatives at the nodes of one step, and after how many iterations.

    The fixed-point iteration is accelerated by its secants (Anderson), sample by sample: next to
    a pole of one mode it converges at steps at which it would diverge alone.

    Parameters
    ----------
    field : callable
        Derivative of states of shape (q, S, ...).
    y : Tensor, shape (q, ...)
        State.
    h : float
    guess : Tensor, shape (q, S, ...)
        Of the derivatives.
    coordinates : callable
        Of differences of states of shape (q, S, *batch, ...): shape (q, S, *batch, k), of norm
        their size.
    tolerance : float
        Of the iteration.
    stages : int

    Returns
    -------
    Tensor or None
        None where the iteration does not converge.
    int
        Number of iterations.

    References
    ----------
    Walker, Ni, SIAM J. Numer. Anal. 49 (2011) (Anderson acceleration).
    """
    matrix = h * nodes_and_weights(stages)[1]
    start = y.unsqueeze(1)
    best, stalled = math.inf, 0
    residuals: list[Tensor] = []
    images: list[Tensor] = []
    state = start + _combine(matrix, guess)
    for iteration in range(1, _MOST_ITERATIONS + 1):
        if not bool(torch.isfinite(state).all()):
            return None, iteration
        derivative = field(state)
        moved = start + _combine(matrix, derivative)
        residual = coordinates(moved - state)
        change = size(residual)
        if not math.isfinite(change):
            return None, iteration
        if change <= tolerance:
            return derivative, iteration
        stalled = 0 if change < 0.7 * best else stalled + 1
        best = min(best, change)
        if stalled > _PATIENCE:
            # Roundings may keep it from the tolerance, not from the error that is allowed.
            return (derivative if change <= _ROUGH * tolerance else None), iteration
        residuals, images = [*residuals, residual][-_SECANTS:], [*images, moved][-_SECANTS:]
        state = _accelerated(residuals, images)
    return None, _MOST_ITERATIONS


def size(coordinates: Tensor) -> float:
    """Return the largest norm; NaN stays NaN."""
    return float(coordinates.square().sum(-1).max().sqrt())


def _accelerated(residuals: list[Tensor], images: list[Tensor]) -> Tensor:
    """Return the combination of the images whose residual is least, sample by sample."""
    if len(images) == 1:
        return images[0]
    # Samples first, then all coordinates of all stages.
    flat = [r.movedim((0, 1), (-3, -2)).flatten(-3) for r in residuals]
    held = min(len(flat), flat[0].shape[-1] + 1)
    flat, images = flat[-held:], images[-held:]
    secants = torch.stack([b - a for a, b in itertools.pairwise(flat)], -1)
    scale = secants.norm(dim=-2, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    q, r = torch.linalg.qr(secants / scale)
    # Secants that say nothing new are left out.
    corner = r.diagonal(dim1=-2, dim2=-1).abs().unsqueeze(-1)
    r = torch.where(corner > 1e-10, r, torch.eye(r.shape[-1], dtype=r.dtype, device=r.device))
    known = torch.where(corner > 1e-10, q.mT @ flat[-1].unsqueeze(-1), 0.0)
    weights = torch.linalg.solve_triangular(r, known, upper=True) / scale.mT
    total = images[-1]
    samples = residuals[0].ndim - 3
    for i, (a, b) in enumerate(itertools.pairwise(images)):
        weight = weights[..., i, 0]
        shape = (1, 1, *weight.shape, *(1,) * (a.ndim - 2 - samples))
        total = total - weight.reshape(shape) * (b - a)
    return total


def integrate(
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
    """Return the states at increasing times > 0, starting from `y` at 0.

    Parameters
    ----------
    field : callable
        Derivative of states of shape (q, S, ...).
    y : Tensor, shape (q, ...)
    times : sequence of float
    coordinates_at : callable
        Of a state: the coordinates of differences of states (`gauss_step`), of norm their size
        relative to what is to be resolved.
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
    end, t, states = times[-1], 0.0, []
    weights = nodes_and_weights(stages)[2]
    # The highest two coefficients, integrated over the step.
    tail = nodes_and_weights(stages)[3][-2:] / (2 * stages - 3)
    resolution = 10.0 * torch.finfo(y.dtype).eps
    h = end if steps is None else end / steps
    rejected = False
    coordinates = coordinates_at(y)
    guess = field(y.unsqueeze(1)).expand(-1, stages, *(-1,) * (y.ndim - 1))
    for _ in range(_MOST_STEPS):
        derivative, iterations = gauss_step(
            field, y, h, guess, coordinates, max(rtol / _ROUGH, resolution), stages
        )
        error = math.inf
        if derivative is not None:
            error = size(coordinates(h * _combine(tail, derivative)))
        if derivative is None or (steps is None and not error <= rtol):
            shrink = 0.4
            if derivative is not None:
                shrink = max(0.2, 0.9 * (rtol / error) ** (1.0 / stages))
            if steps is not None or h * shrink < shortest:
                raise StepFailure(t, y)
            h *= shrink
            rejected = True
            guess = guess[:, :1].expand(-1, stages, *(-1,) * (y.ndim - 1))
            continue
        inside = [time for time in times[len(states) :] if time <= t + h + 1e-12 * end]
        if inside:
            # The end of a step is better than its inside.
            theta = (np.array(inside) - t) / h
            last = [weights if x > 1 - 1e-12 else _dense(np.array([x]), stages)[0] for x in theta]
            moves = _combine(h * np.stack(last), derivative)
            states += [y + move for move in moves.unbind(1)]
            if len(states) == len(times):
                return states
        y = y + _combine(h * weights[None], derivative)[:, 0]
        t += h
        if alive is not None and not alive(t, y):
            raise StepFailure(t, y)
        coordinates = coordinates_at(y)
        grown = h
        if steps is None:
            grow = min(3.0, 0.9 * (rtol / max(error, 1e-300)) ** (1.0 / stages))
            # The cost of a step is that of its iterations: beyond their usual number it pays less.
            grow = min(grow, max(0.4, _USUAL_ITERATIONS / iterations))
            grown = min(h * (min(grow, 1.0) if rejected else grow), end - t)
        rejected = False
        guess = _combine(_extrapolation(grown / h, stages), derivative)
        h = grown
    raise StepFailure(t, y)
