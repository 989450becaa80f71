"""Dyson Brownian motion of eigenvalues, any index, order always kept, by random matrices.

A step maps particles (..., n), in any order, to particles in ascending order, after the time h,
without checks; positions may coincide.

On symmetric polynomials, up to order h^2, a step by matrices with independent diagonal entries of
variance ``2h/b`` and off-diagonal ones with ``E|y|^2 = h``, ``E|y|^4 = (1 + 2/b) h^2`` is, like the
square of the generator, quadratic in 1/b. They agree at b = 1, 2 and 4, where Gaussian matrices
over the reals, complex numbers and quaternions are exact for every h, hence for all b: weak order
2, collisions or not. (Gaussian entries for every b have the fourth moment 3 h^2 and order 1.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.dyson.coulomb import coulomb_path, deterministic_path
from dln_geometry.dynamics.dyson.implicit import implicit_step, proximal
from dln_geometry.dynamics.dyson.paths import Step, as_particles, particle_grid, particle_path
from dln_geometry.dynamics.laws import tridiagonal_eigenvalues
from dln_geometry.dynamics.noise import time_grid
from dln_geometry.dynamics.observing import observed_path
from dln_geometry.dynamics.store import opened, resumable
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.kernel import small_eigvalsh, waitless
from dln_geometry.geometry.points import quaternion_form
from dln_geometry.support import (
    EVERY,
    Every,
    as_choice,
    as_float_tensor,
    as_generator,
    as_index,
    as_observables,
    as_positive,
    as_rtol,
    chi,
    normal,
)

# `tridiagonal_step` is not used where h times the rate of its drift is larger.
STIFF = 0.75


@resumable("observe")
def dyson(
    start: Any,
    *,
    dyson_index: float,
    t_end: float,
    dt: float | None = None,
    generator: torch.Generator | int | None = None,
    save_at: Any = None,
    confinement: float = 0.0,
    scheme: str = "isospectral",
    increments: Any = None,
    rtol: float = 1e-9,
    progress: bool = False,
    observe: Mapping[str, Callable[[Any], Any]] | None = None,
    store: str | os.PathLike[str] | None = None,
    every: Every = EVERY,
) -> Trajectory:
    r"""Simulate ``dx_i = sum_{j != i} dt/(x_i - x_j) - c x_i dt + sqrt(2/b) dW_i``.

    Particles keep their order; they may coincide at the start. The confining drift is exact.

    Parameters
    ----------
    start : array_like, shape (..., n)
        Positions, in any order.
    dyson_index : float
        Index b in (0, inf]. Infinity is Coulomb repulsion, integrated with the relative tolerance
        `rtol`: `dt`, `generator` and `scheme` are not used then.
    t_end, dt : float
        End of time, and the largest step. Where steps are exact in law (``scheme="exact"``, and
        index 1) `dt` is optional: then there is one step per saved time. Others warn of less than 8
        steps.
    generator : torch.Generator or int, optional
        Source of randomness; a fresh one by default.
    save_at : array_like, shape (T,), optional
        Increasing times; by default at most 101 equally spaced ones in [0, t_end].
    confinement : float
        Rate c >= 0.
    scheme : {"isospectral", "exact", "tridiagonal", "implicit"}
        ``"isospectral"``: eigenvalues of ``diag(x)`` plus a random symmetric matrix; exact in law
        at b = 1, else of weak order 2 (three particles, t = 1, b = 3.3: ``E (sum x^3)^2`` is off
        by 11, 2.7, 0.5 % with 1, 2, 4 steps; ``E sum x^2`` and ``E sum x^4`` are exact). The
        law of the gaps takes steps below their square.
        ``"exact"``: Gaussian matrices over the reals, complex numbers or quaternions, b = 1, 2, 4.
        ``"tridiagonal"``: neighbours by a random matrix, the others by an explicit drift, where
        gaps allow it, else as above. For many particles (6 times cheaper at n = 500, 10 times at
        2000) and `dt` below the square of a gap; weak order 1, but exact for pairs: the law of the
        gaps takes fewer steps than above.
        ``"implicit"``: the repulsion at the end of the step, a convex problem; weak order 1, but
        for the path of given Brownian increments.
    increments : array_like, shape (K, ..., n), optional
        Brownian increments of variance ``t_end/K`` in place of `dt` and `generator` in the implicit
        scheme; sums of pairs of them drive the same path with half the steps.
    observe : mapping of str to callable, optional
        Observables ``f(positions (..., n)) -> numbers (..., *k)`` at the saved times, kept by name
        in `Trajectory.observed`.
    store, every
        As in `langevin`.

    Returns
    -------
    Trajectory
        ``states (T, ..., n)`` ascending; ``final (..., n)`` at `t_end`.

    References
    ----------
    Huang, Inauen, Menon, arXiv 2210.11347; Cepa, Lepingle, Diffusing particles with electrostatic
    repulsion, 1997 (a convex problem); Li, Menon, arXiv 1306.1179 (tamed Euler steps).

    Examples
    --------
    Two particles of infinite index leave the origin as ``-sqrt(t), sqrt(t)``:

    >>> import math
    >>> path = dln.dyson([0.0, 0.0], dyson_index=math.inf, t_end=4.0, save_at=[1.0, 4.0])
    >>> path.states
    tensor([[-1.,  1.],
            [-2.,  2.]])
    """
    index, x = as_index(dyson_index), as_particles(start)
    observables = as_observables(observe)
    rate = as_positive(confinement, "confinement", zero=True)
    rtol = as_rtol(rtol, torch.float64, default=1e-9)
    as_choice(scheme, SCHEMES, "scheme")
    if increments is not None and (scheme != "implicit" or math.isinf(index)):
        needed = 'increments must go with scheme "implicit" and a finite index'
        raise ValueError(f"{needed}, got {scheme!r} and {index:g}")
    if math.isinf(index):
        path = partial(coulomb_path, confinement=rate, rtol=rtol)
        found = deterministic_path(path, x, t_end, save_at, opened(store))
        return observed_path(found, observables, found.states)
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
        grid = time_grid(t_end, None, save_at, steps=len(dw), to_end=True, device=x.device)
        h, noise = grid.sizes[0], math.sqrt(2 / index)

        def driven(x: Tensor, tau: float, k: int) -> Tensor:
            return proximal(x, x + noise * (math.sqrt(tau / h) * dw[k]), tau)

        wide, kept = x.expand(dw.shape[1:]), opened(store)
        found = particle_path(wide, driven, grid, scheme, rate, progress, None, kept)
        return observed_path(found, observables, found.states)
    exact = scheme == "exact" or (index == 1 and scheme == "isospectral")
    grid = particle_grid(x, t_end, dt, save_at, "Dyson Brownian motion", exact=exact)
    generator = as_generator(generator, x.device)
    made = SCHEMES[scheme](index, generator)

    def step(x: Tensor, tau: float, k: int) -> Tensor:
        return made(x, tau)

    found = particle_path(x, step, grid, scheme, rate, progress, generator, opened(store))
    return observed_path(found, observables, found.states)


def isospectral_step(index: float, generator: torch.Generator) -> Step:
    """Return the step by eigenvalues of ``diag(x) + noise``, real symmetric, exact at index 1."""

    def step(x: Tensor, h: float) -> Tensor:
        noise = lower_normals(x, generator)
        main = x + math.sqrt(2 * h / index) * noise.diagonal(dim1=-2, dim2=-1)
        matrix = math.sqrt(h) * signed_modulus(noise, index, generator)
        matrix.diagonal(dim1=-2, dim2=-1).copy_(main)
        return small_eigvalsh(matrix)

    return step


def field_step(index: float, generator: torch.Generator) -> Step:
    """Return the step exact in law at index 1, 2 or 4: Gaussian matrices over a field."""
    if index == 1:
        return isospectral_step(index, generator)
    k = int(index)

    def step(x: Tensor, h: float) -> Tensor:
        parts = normal((k, *x.shape, x.shape[-1]), generator, x.dtype, x.device) * math.sqrt(h / k)
        lower = torch.complex(parts[0], parts[1]).tril(-1)
        main = x + parts[0].diagonal(dim1=-2, dim2=-1) * math.sqrt(2.0)
        if k == 2:
            return small_eigvalsh(lower + main.diag_embed())
        # A quaternion is a 2 x 2 complex matrix: every eigenvalue comes twice.
        other = torch.complex(parts[2], parts[3]).tril(-1)
        full, block = lower + lower.mH + main.diag_embed(), other - other.mT
        return small_eigvalsh(quaternion_form(full, block))[..., ::2]

    return step


def tridiagonal_step(index: float, generator: torch.Generator) -> Step:
    """Return the cheap step for many particles: neighbours by a random matrix, the rest by drift.

    An explicit step of the repulsion of all but the two neighbours; then the eigenvalues of
    ``diag(x)`` plus a tridiagonal matrix with ``sqrt(2h/b) N(0, 1)`` on the diagonal and
    ``sqrt(h/b) chi_b`` next to it, exact for isolated pairs. Samples with large
    ``h sum 1/(x_i - x_j)^2`` over the others take a step of `isospectral_step`.
    """
    dense = isospectral_step(index, generator)

    def step(x: Tensor, h: float) -> Tensor:
        inverse = x.unsqueeze(-1) - x.unsqueeze(-2)
        for k in (-1, 0, 1):
            inverse.diagonal(k, -2, -1).fill_(math.inf)
        inverse.reciprocal_()
        drift = inverse.sum(-1)
        freedom = torch.full((x.shape[-1] - 1,), index, dtype=x.dtype, device=x.device)
        stiff = h * inverse.square_().sum(-1).amax(-1) > STIFF
        if waitless(x, x.shape[-1]):
            main = normal(x.shape, generator, x.dtype, x.device).mul_(math.sqrt(2 * h / index))
            off = chi(freedom, x.shape[:-1], generator).mul_(math.sqrt(h / index))
            calm = (x + h * drift + main).diag_embed() + off.diag_embed(-1)
            return torch.where(stiff.unsqueeze(-1), dense(x, h), small_eigvalsh(calm))
        if bool(stiff.all()):
            return dense(x, h)
        main = normal(x.shape, generator, x.dtype, x.device).mul_(math.sqrt(2 * h / index))
        off = chi(freedom, x.shape[:-1], generator).mul_(math.sqrt(h / index))
        if not bool(stiff.any()):
            return tridiagonal_eigenvalues(x + h * drift + main, off, check=False)
        out, calm = torch.empty_like(x), ~stiff
        out[stiff] = dense(x[stiff], h)
        out[calm] = tridiagonal_eigenvalues((x + h * drift + main)[calm], off[calm], check=False)
        return out

    return step


def lower_normals(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the normal lower triangles of matrices (..., n, n); the upper ones hold copies."""
    n, odd, half = x.shape[-1], x.shape[-1] % 2, (x.shape[-1] + 1) // 2
    draw = normal((*x.shape[:-1], n + 1 - odd, half), generator, x.dtype, x.device)
    matrix = x.new_zeros(*x.shape, n)
    matrix[..., :half] = draw[..., 1 - odd :, :]
    if n > 1:
        matrix[..., half:, half:] = draw[..., : n - half, odd:].mT
    return matrix


def signed_modulus(g: Tensor, index: float, generator: torch.Generator) -> Tensor:
    """Turn normal numbers into symmetric ones with ``E y^2 = 1``, ``E y^4 = 1 + 2/index``."""
    if index == 1:
        return g.clone()
    if index < 1:
        n = torch.full(g.shape, index, dtype=g.dtype, device=g.device)
        return torch.sign(g) * chi(n, (), generator) / math.sqrt(index)
    scale, shift = _two_moments(index)
    return scale * g + shift * torch.sign(g)


@cache
def _two_moments(index: float) -> tuple[float, float]:
    """Return (a, c) such that ``a g + c sign g`` has the moments of `signed_modulus`."""
    if index > 1e15:
        return 0.0, 1.0
    from scipy.optimize import brentq

    first = math.sqrt(2 / math.pi)

    def moments(q: float) -> tuple[float, float]:
        second = 1 + q * q + 2 * q * first
        return second, 3 + 8 * q * first + 6 * q * q + 4 * q**3 * first + q**4

    def excess(q: float) -> float:
        return moments(q)[1] / moments(q)[0] ** 2 - 1 - 2 / index

    q: Any = brentq(excess, 0.0, 10.0 + 10.0 * math.sqrt(index))
    a = moments(q)[0] ** -0.5
    return a, q * a


SCHEMES: dict[str, Callable[[float, torch.Generator], Step]] = {
    "isospectral": isospectral_step,
    "exact": field_step,
    "tridiagonal": tridiagonal_step,
    "implicit": implicit_step,
}
