r"""One step of Gauss collocation, for a batch of samples, each with its own length of step.

Over a step of length h the derivative is the polynomial through its values at S Gauss nodes,
found by accelerated fixed-point iteration, all nodes in one batch. The end point has order 2S, and
the polynomial is the dense output, of order S.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

__all__ = [
    "STAGES",
    "System",
    "combine",
    "combine_each",
    "dense",
    "extrapolation",
    "gauss_step",
    "nodes_and_weights",
    "per_sample",
    "sizes",
]

STAGES = 16
# The iteration is to be finer than the error allowed by this factor.
ROUGH = 20.0
_MOST_ITERATIONS = 25
_SECANTS = 6
_PATIENCE = 3


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


def combine_each(tables: np.ndarray, values: Tensor) -> Tensor:
    """Apply a matrix of each sample, (B, T, S), to the stage axis of (q, S, B, ...)."""
    each = torch.as_tensor(tables, dtype=values.dtype, device=values.device)
    flat = values.movedim(2, 0).movedim(2, 1)
    return torch.einsum("bts,bsq...->qtb...", each, flat)


def dense(theta: np.ndarray, stages: int) -> np.ndarray:
    """Return the weights of the node values in the integral from 0 to theta."""
    return _integral(2 * theta - 1, stages) @ nodes_and_weights(stages)[3]


def extrapolation(ratios: np.ndarray, stages: int) -> np.ndarray:
    """Return the values at the nodes of next steps, `ratios` times as long, by those of these."""
    c, _, _, transform = nodes_and_weights(stages)
    return legendre.legvander(2 * (1 + ratios[:, None] * c) - 1, stages - 1) @ transform


def combine(matrix: np.ndarray, values: Tensor) -> Tensor:
    """Apply a matrix to the stage axis, the second one."""
    table = torch.as_tensor(matrix, dtype=values.dtype, device=values.device)
    flat = values.reshape(*values.shape[:2], -1)
    return (table @ flat).reshape(values.shape[0], table.shape[0], *values.shape[2:])


class System(Protocol):
    """A differential equation for a batch of samples, each of which takes its own steps."""

    def field(self, state: Tensor) -> Tensor:
        """Return the derivative of states of shape (q, S, B, ...)."""
        ...

    def coordinates_at(self, state: Tensor) -> Callable[[Tensor], Tensor]:
        """Return coordinates of differences of states, at a state of shape (q, B, ...).

        Of shape (q, S, B, ..., k), of norm the size relative to what is to be resolved.
        """
        ...

    def restricted(self, samples: Tensor) -> System:
        """Return the equation of some of the samples, by their indices."""
        ...

    def ends(self, t: np.ndarray, h: np.ndarray, states: Tensor) -> np.ndarray:
        """Return the times, shape (B,), in steps from t to t + h beyond which is no way on.

        Infinite where there is one. `states`, of shape (q, S + 1, B, ...), are those at the nodes
        of the step and at its end.
        """
        ...


def per_sample(values: np.ndarray, like: Tensor) -> Tensor:
    """Return one number a sample, to multiply what has the shape (q, S, B, ...)."""
    column = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    return column.reshape(1, 1, -1, *(1,) * (like.ndim - 3))


def gauss_step(
    system: System,
    y: Tensor,
    h: np.ndarray,
    guess: Tensor,
    tolerance: float,
    stages: int = STAGES,
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return the derivatives at the nodes of one step, after how many iterations, and if at all.

    The fixed-point iteration is accelerated by its secants (Anderson), sample by sample: next to
    a pole of one mode it converges at steps at which it would diverge alone. A sample that is done
    leaves it.

    Parameters
    ----------
    system : System
    y : Tensor, shape (q, B, ...)
        State.
    h : ndarray, shape (B,)
        Step of each sample.
    guess : Tensor, shape (q, S, B, ...)
        Of the derivatives.
    tolerance : float
        Of the iteration.
    stages : int

    Returns
    -------
    Tensor, shape (q, S, B, ...)
    ndarray of int, shape (B,)
    ndarray of bool, shape (B,)
        Whether the iteration converged.

    References
    ----------
    Walker, Ni, SIAM J. Numer. Anal. 49 (2011) (Anderson acceleration).
    """
    table, samples = nodes_and_weights(stages)[1], y.shape[1]
    found, converged = guess, np.zeros(samples, bool)
    iterations = np.full(samples, _MOST_ITERATIONS)
    best, stalled, left = np.full(samples, math.inf), np.zeros(samples, int), np.arange(samples)
    residuals: list[Tensor] = []
    images: list[Tensor] = []
    start, step = y.unsqueeze(1), per_sample(h, guess)
    coordinates = system.coordinates_at(y)
    state = start + step * combine(table, guess)
    for iteration in range(1, _MOST_ITERATIONS + 1):
        stays = torch.isfinite(state).movedim(2, 0).flatten(1).all(1).cpu().numpy()
        derivative = None
        if stays.all():
            derivative = system.field(state)
            moved = start + step * combine(table, derivative)
            residual = coordinates(moved - state)
            change = sizes(residual)
            stalled = np.where(change < 0.7 * best, 0, stalled + 1)
            best = np.fmin(best, change)
            # Roundings may keep it from the tolerance, not from the error that is allowed.
            given_up = stalled > _PATIENCE
            done = (change <= tolerance) | (given_up & (change <= ROUGH * tolerance))
            stays = ~done & ~given_up & np.isfinite(change)
            converged[left[done]] = True
            residuals, images = [*residuals, residual][-_SECANTS:], [*images, moved][-_SECANTS:]
        iterations[left[~stays]] = iteration
        if derivative is not None and not stays.all():
            if len(left) == samples:
                found = derivative
            else:
                found = found.index_copy(2, torch.as_tensor(left, device=y.device), derivative)
        if not stays.any():
            break
        if not stays.all():
            kept = torch.as_tensor(np.flatnonzero(stays), device=y.device)
            left, best, stalled = left[stays], best[stays], stalled[stays]
            residuals, images = ([x[:, :, kept] for x in xs] for xs in (residuals, images))
            start, step, state = start[:, :, kept], step[:, :, kept], state[:, :, kept]
            system = system.restricted(kept)
            coordinates = system.coordinates_at(start[:, 0])
        if derivative is not None:
            state = _accelerated(residuals, images)
    return found, iterations, converged


def sizes(coordinates: Tensor) -> np.ndarray:
    """Return the largest norm of each sample; NaN stays NaN."""
    norms = coordinates.square().sum(-1).sqrt()
    return norms.movedim(2, 0).flatten(1).amax(1).cpu().numpy()


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
