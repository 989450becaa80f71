"""The density of singular values in the limit of infinite width, as a flow of its quantiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.laws import ProbabilityLaw
from dln_geometry.support import (
    Depth,
    as_count,
    as_depth,
    as_flag,
    as_float_tensor,
    as_positive,
    as_real,
    as_rtol,
    shown,
)
from dln_geometry.thermodynamics.quantiles import MeanField, QuantileGrid


@dataclass(frozen=True)
class MeanFieldPath:
    """A density that moves, by its quantiles; made by `mean_field_flow`.

    Attributes
    ----------
    t : Tensor, shape (T,)
        Times.
    probabilities : Tensor, shape (n,)
        The share of singular values up to each quantile, ascending.
    weights : Tensor, shape (n,)
        The mass at each quantile; they sum to 1.
    states : Tensor, shape (T, n)
        Quantiles of ``rho = sqrt(N) s^{1/N}``, at infinite depth of ``log s``; ascending.
    density : Tensor, shape (T, n)
        The density at the states.
    depth : Depth
        The depth N.

    Examples
    --------
    >>> start = dln.laws.quarter_circle(1.0)
    >>> path = dln.mean_field_flow(start, 2, beta=2.0, t_end=0.1, points=32, save_at=[0.0, 0.1])
    >>> path.states.shape, round(float(path.weights.sum()), 12)
    (torch.Size([2, 32]), 1.0)
    """

    t: Tensor
    probabilities: Tensor
    weights: Tensor
    states: Tensor
    density: Tensor
    depth: Depth

    @property
    def singular_values(self) -> Tensor:
        """Quantiles of the singular values, (T, n), ascending."""
        x = self.states
        return self.depth.power(x if self.depth.infinite else x / math.sqrt(self.depth))

    def moment(self, k: float) -> Tensor:
        """Return the mean of ``s^k`` at every time, (T,)."""
        return (self.singular_values ** as_real(k, "k") * self.weights).sum(-1)


def mean_field_flow(
    density: ProbabilityLaw | Tensor | Any,
    depth: float,
    *,
    loss: Callable[[Tensor], Tensor] | None = None,
    beta: float,
    kappa: float = 1.0,
    entropy: bool = True,
    aspect: float = 1.0,
    t_end: float,
    save_at: Any = None,
    points: int = 400,
    rtol: float = 1e-6,
) -> MeanFieldPath:
    r"""Return how the density of singular values moves when matrices are infinitely wide.

    The limit of `dln_dyson` and of the singular values of `langevin` at inverse temperature
    ``beta r``, r the rank, as r grows. In ``rho = sqrt(N) s^{1/N}`` a quantile moves with

        ``v = -de/drho + (kappa/beta) [ q/rho + PV int 2 rho/(rho^2 - rho'^2) mu(drho') ]
        + (1/beta) (rho/N) int [ N y^{N-1}/(y^N - y'^N) - 1/(y - y') ] mu(drho')``,

    ``y = rho^2/N``, q = (m + n - 2r)/r, the last term only with entropy (hidden widths r). At
    infinite depth, in ``u = log s`` and the normalised metric,
    ``v = -de/du + (kappa/beta) PV int mu/(u - u') + (1/beta) int [ s^2/(s^2 - s'^2) -
    1/(2(u - u')) ] mu``.

    The unknowns are quantiles, closer together where the density has an edge: mass is conserved
    and the density positive by construction. The principal value is a midpoint sum with the term
    of the quantile itself: of second order in 1/points for densities with edges like square roots
    and for those that begin with jumps. One that meets zero on the way goes on, from there, on
    other quantiles, those of the result. Stiff steps of variable order (BDF).

    Parameters
    ----------
    density : ProbabilityLaw or array_like, shape (k,)
        Law of the singular values at time 0: one of `laws`, or at least four different numbers,
        whose empirical quantiles are interpolated.
    depth : float
        Real depth N >= 1, or ``math.inf``.
    loss : callable, optional
        ``E(s) = sum e(s_i)`` of singular values (..., r), returning (...), differentiable by
        autograd; it is called with r = 1.
    beta : float
        Inverse temperature per rank.
    kappa, entropy
        As in `dln_dyson`; kappa may be 0.
    aspect : float
        ``(m + n - r)/r >= 1``: for matrices of full rank the long side over the short one.
    t_end, save_at
        Last time; times to save, by default 21 equally spaced.
    points : int
        Number of quantiles, at least 16.
    rtol : float
        Relative tolerance of the steps.

    Returns
    -------
    MeanFieldPath
        On the CPU, in double precision.

    Raises
    ------
    ValueError
        If singular values coincide at the start, or reach zero where there must be none.

    References
    ----------
    Menon, Yu, arXiv 2509.09088v3 (the equation at finite width); L. Rogers, Z. Shi, Probab. Theory
    Related Fields 95 (1993) (such limits).

    Examples
    --------
    Without loss and entropy the quarter circle spreads, at every depth:

    >>> start = dln.laws.quarter_circle(1.0)
    >>> path = dln.mean_field_flow(start, 1, beta=1.0, entropy=False, t_end=1.0, points=64)
    >>> [round(float(x), 3) for x in path.moment(2)[[0, -1]]]  # grows by 2 kappa t/beta
    [0.25, 2.25]
    """
    depth, points = as_depth(depth), as_count(points, "points", 16)
    beta, kappa = as_positive(beta, "beta"), as_positive(kappa, "kappa", zero=True)
    entropy, aspect = as_flag(entropy, "entropy"), as_positive(aspect, "aspect")
    if aspect < 1:
        raise ValueError(f"aspect must be at least 1, got {aspect}")
    if depth.infinite and aspect > 1:
        raise ValueError(f"aspect must be 1 at infinite depth, got {aspect}")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function of singular values, got {shown(loss)}")
    rtol = as_rtol(rtol, torch.float64, default=1e-6)
    t_end = as_positive(t_end, "t_end")
    times = _times_to_save(save_at, t_end)
    # With a wall at 0 a density that begins there goes on, mirrored, and has no edge.
    mirrored = aspect == 1 and not depth.infinite
    grid = QuantileGrid(points, mirrored)
    x = _initial_quantiles(density, grid, depth)
    if mirrored and _begins_apart(density, x, depth):
        grid = QuantileGrid(points, False)
        x = _initial_quantiles(density, grid, depth)
    flow = MeanField(grid, depth, loss, beta, kappa, entropy, aspect - 1)
    states, met = flow.integrate(x, times, t_end, rtol)
    if met is not None:
        # The density meets the wall and goes on as one that begins there.
        t, x = met
        wide, grid, done = grid, QuantileGrid(points, True), len(states)
        states = np.array([wide.seen_by(grid, y) for y in states]).reshape(done, points)
        flow = MeanField(grid, depth, loss, beta, kappa, entropy, 0.0)
        if done < len(times):
            later, _ = flow.integrate(wide.seen_by(grid, x), times[done:] - t, t_end - t, rtol)
            states = np.concatenate([states, later])
        if times[0] == 0:
            states[0] = _initial_quantiles(density, grid, depth)
    wide = torch.from_numpy(states)
    slope = torch.from_numpy(np.stack([grid.derivatives(y)[0] for y in states]))
    return MeanFieldPath(
        torch.from_numpy(times), torch.from_numpy(grid.q), torch.from_numpy(grid.weights), wide,
        torch.from_numpy(grid.slope) / slope, depth,
    )  # fmt: skip


def _times_to_save(save_at: Any, t_end: float) -> np.ndarray:
    if save_at is None:
        return np.linspace(0.0, t_end, 21)
    times = as_float_tensor(save_at, "save_at", dtype=torch.float64, device="cpu").flatten()
    rising = bool((times.diff() > 0).all())
    if not (len(times) and rising and float(times[0]) >= 0 and float(times[-1]) <= t_end):
        raise ValueError(f"save_at must ascend within [0, {t_end:g}], got {shown(times.tolist())}")
    return times.numpy()


def _begins_apart(density: Any, x: np.ndarray, depth: Depth) -> bool:
    """Tell whether the first singular values lie away from zero."""
    if isinstance(density, ProbabilityLaw):
        return density.low > 0
    # Fewer numbers than quantiles tell nothing of the edge.
    if len(density) < len(x):
        return False
    first, second = x[:2] ** float(depth)
    return first > 2 * (second - first)


def _initial_quantiles(density: Any, grid: QuantileGrid, depth: Depth) -> np.ndarray:
    """Return the quantiles of the flat coordinate at time 0."""
    if isinstance(density, ProbabilityLaw):
        s = density.quantile(torch.from_numpy(grid.q)).numpy()
    else:
        values = as_float_tensor(density, "density", dtype=torch.float64, device="cpu")
        if values.ndim != 1 or len(values) < 4:
            raise ValueError(
                "density must be a law or at least four numbers of shape (k,), got shape "
                f"{tuple(values.shape)}"
            )
        values = np.sort(values.numpy())
        middles = (np.arange(len(values)) + 0.5) / len(values)
        # Beyond the outermost values the last slopes go on, inside the positive numbers.
        ends = 1.5 * values[[0, -1]] - 0.5 * values[[1, -2]]
        ends[0] = max(ends[0], 0.5 * values[0])
        inner = np.concatenate([[ends[0]], values, [ends[1]]])
        s = np.interp(grid.q, np.concatenate([[0.0], middles, [1.0]]), inner)
    if not (s[0] > 0 and np.isfinite(s[-1])):
        raise ValueError(
            f"density must be one of positive finite numbers, got {s[0]:g} and {s[-1]:g}"
        )
    x = np.log(s) if depth.infinite else math.sqrt(depth) * s ** (1.0 / float(depth))
    if not (np.diff(x) > 0).all():
        raise ValueError("density must have no atoms, got quantiles that coincide")
    return x
