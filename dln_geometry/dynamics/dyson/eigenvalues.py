"""Dyson Brownian motion of eigenvalues, any index, order always kept."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.dyson.coulomb import coulomb_path
from dln_geometry.dynamics.dyson.eigenvalue_steps import (
    Step,
    field_step,
    isospectral_step,
    proximal,
    tridiagonal_step,
)
from dln_geometry.dynamics.noise import (
    as_confinement,
    as_particles,
    confined,
    deterministic,
    schedule,
    simulate,
    stacked,
)
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.support import as_float_tensor, as_generator, as_index, normal

__all__ = ["dyson"]

SCHEMES = ("isospectral", "exact", "tridiagonal", "implicit")


@torch.no_grad()
def dyson(
    start: Any,
    *,
    dyson_index: float,
    t_end: float,
    dt: float | None = None,
    generator: torch.Generator | None = None,
    save_at: Any = None,
    confinement: float = 0.0,
    scheme: str = "isospectral",
    increments: Any = None,
    rtol: float = 1e-9,
    progress: bool = False,
) -> Trajectory:
    r"""Simulate ``dx_i = sum_{j != i} dt/(x_i - x_j) - c x_i dt + sqrt(2/b) dW_i``.

    Particles never change their order; they may coincide at the start. The confining drift c is a
    change of scale and time, exact in every scheme.

    Parameters
    ----------
    start : array_like, shape (..., n)
        Positions, in any order (they are sorted); all zero is allowed.
    dyson_index : float
        Index b in (0, inf]. Infinity is Coulomb repulsion, integrated with tolerance `rtol`:
        `dt`, `generator` and `scheme` are not used then.
    t_end : float
        End of time.
    dt : float, optional
        Largest step. Where steps are exact in law (``scheme="exact"``, and index 1) it may be
        left out: then there is one step per saved time.
    generator : torch.Generator, optional
        Source of randomness; a fresh one by default.
    save_at : array_like, shape (T,), optional
        Increasing times in [0, t_end]; by default at most 101 equally spaced ones.
    confinement : float
        Rate c >= 0 of the Ornstein-Uhlenbeck drift.
    scheme : {"isospectral", "exact", "tridiagonal", "implicit"}
        ``"isospectral"``: eigenvalues of ``diag(x)`` plus a random symmetric matrix; exact in law
        at b = 1, else of weak order 2 (three particles, t = 1, b = 3.3: ``E (sum x^3)^2`` is off
        by 11, 2.7, 0.5 % with 1, 2, 4 steps; ``E sum x^2`` and ``E sum x^4`` are exact). The
        law as a whole takes a few steps; that of the gaps takes steps below their square.
        ``"exact"``: Gaussian matrices over the reals, complex numbers or quaternions, b = 1, 2, 4.
        ``"tridiagonal"``: neighbours by a random matrix, the others by an explicit drift, where
        gaps allow it, else as above. For many particles (6 times cheaper at n = 500, 10 times at
        2000) and `dt` below the square of a gap; pairs are exact, so that the law of the gaps
        comes right at larger steps than above; weak order 1.
        ``"implicit"``: the repulsion at the end of the step, a convex problem; weak order 1, but
        the path of given Brownian increments.
    increments : array_like, shape (K, ..., n), optional
        Brownian increments of variance ``t_end/K`` that take the place of `dt` and `generator`
        in the implicit scheme; sums of pairs of them drive the same path with half the steps.
    rtol : float
        Relative tolerance at infinite index.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Trajectory
        ``states (T, ..., n)`` ascending; ``final (..., n)`` at `t_end`.

    Raises
    ------
    TypeError, ValueError
        If the index, a time, a rate or the scheme is not as described.

    Warns
    -----
    UserWarning
        If a scheme that is not exact has less than 8 steps.

    References
    ----------
    Huang, Inauen, Menon, arXiv 2210.11347; Cepa, Lepingle, Diffusing particles with electrostatic
    repulsion, 1997, for the equation as a convex problem; Li, Menon, Numerical solution of Dyson
    Brownian motion, arXiv 1306.1179, for an explicit (tamed Euler) scheme.

    Examples
    --------
    Two particles of infinite index leave the origin as ``-sqrt(t), sqrt(t)``:

    >>> path = dyson([0.0, 0.0], dyson_index=math.inf, t_end=4.0, save_at=[1.0, 4.0])
    >>> path.states
    tensor([[-1.,  1.],
            [-2.,  2.]])
    """
    index, x = as_index(dyson_index), as_particles(start)
    rate = as_confinement(confinement)
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if increments is not None and (scheme != "implicit" or math.isinf(index)):
        raise ValueError(
            f'increments must go with scheme "implicit" and a finite index, got {scheme!r} and '
            f"{index:g}"
        )
    if math.isinf(index):
        return deterministic(partial(coulomb_path, confinement=rate, rtol=rtol), x, t_end, save_at)
    if scheme == "exact" and index not in (1, 2, 4):
        raise ValueError(
            f'dyson_index must be 1, 2 or 4 for scheme "exact", got {index:g}; '
            'scheme "isospectral" takes every index'
        )
    if increments is not None:
        dw = as_float_tensor(increments, "increments", dtype=x.dtype, device=x.device)
        if dw.ndim != x.ndim + 1 or dw.shape[-1] != x.shape[-1] or dw.shape[0] == 0:
            raise ValueError(
                f"increments must have shape (K, ..., {x.shape[-1]}) for a start of shape "
                f"{tuple(x.shape)}, got {tuple(dw.shape)}"
            )
        x = x.expand(dw.shape[1:])
        return _driven(x, index, dw, t_end, save_at, rate)
    exact = scheme == "exact" or (index == 1 and scheme == "isospectral")
    step = _step(scheme, index, as_generator(generator, x.device))
    options = {"exact": exact, "rate": rate, "progress": progress, "scheme": scheme}
    return simulate(x, step, t_end, dt, save_at, **options)


def _step(scheme: str, index: float, generator: torch.Generator) -> Step:
    """Return one step of a scheme."""
    if scheme == "exact":
        return field_step(index, generator)
    if scheme == "isospectral":
        return isospectral_step(index, generator)
    if scheme == "tridiagonal":
        return tridiagonal_step(index, generator)

    def implicit(x: Tensor, h: float) -> Tensor:
        noise = math.sqrt(2 * h / index) * normal(x.shape, generator, x.dtype, x.device)
        return proximal(x, x + noise, h)

    return implicit


def _driven(
    x: Tensor, index: float, dw: Tensor, t_end: float, save_at: Any, rate: float
) -> Trajectory:
    """Follow particles along given Brownian increments."""
    times, _ = schedule(t_end, t_end / len(dw), save_at)
    places = [t / t_end * len(dw) for t in times]
    if any(abs(p - round(p)) > 1e-6 for p in places):
        raise ValueError(f"save_at must hold multiples of t_end/{len(dw)} with increments")
    wanted, h = {round(p) for p in places}, t_end / len(dw)
    rows = [x] if 0 in wanted else []
    drawn = iter(dw)

    def step(x: Tensor, tau: float) -> Tensor:
        noise = math.sqrt(2 / index * tau / h) * next(drawn)
        return proximal(x, x + noise, tau)

    advance = confined(step, rate)
    for k in range(1, len(dw) + 1):
        x = advance(x, h)
        if k in wanted:
            rows.append(x)
    t = torch.tensor(times, dtype=torch.float64, device=x.device)
    stats = {"steps": len(dw), "scheme": "implicit"}
    return Trajectory(t=t, states=stacked(rows, x), final=x, stats=stats)
