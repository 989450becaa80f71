"""Dyson Brownian motion of singular values, any shape and index, by random rectangular matrices.

A step maps singular values (..., n), which may coincide and vanish, to singular values in ascending
order, after the time h, without checks. As in `eigenvalues`, entries whose moments interpolate
between real, complex and quaternion matrices give weak order 2 for symmetric polynomials of
``s^2``: ``E|z|^4 = 1 + 2/b``, and ``E z^2 = 2/b - 1`` for diagonal entries and for the products of
two opposite ones, hence complex entries above b = 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.dyson.coulomb import deterministic_path, singular_coulomb_path
from dln_geometry.dynamics.dyson.eigenvalues import signed_modulus
from dln_geometry.dynamics.dyson.paths import Step, as_particles, particle_grid, particle_path
from dln_geometry.dynamics.observing import observed_path
from dln_geometry.dynamics.store import opened, resumable
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.kernel import small_svdvals
from dln_geometry.geometry.points import quaternion_form
from dln_geometry.support import (
    EVERY,
    Every,
    as_flag,
    as_generator,
    as_index,
    as_observables,
    as_positive,
    as_rtol,
    as_sides,
    chi,
    normal,
)


@resumable("observe")
def singular_dyson(
    start: Any,
    shape: tuple[int, int],
    *,
    dyson_index: float = 1.0,
    t_end: float,
    dt: float | None = None,
    generator: torch.Generator | int | None = None,
    save_at: Any = None,
    confinement: float = 0.0,
    signed: bool = False,
    rtol: float = 1e-9,
    progress: bool = False,
    observe: Mapping[str, Callable[[Any], Any]] | None = None,
    store: str | os.PathLike[str] | None = None,
    every: Every = EVERY,
) -> Trajectory:
    r"""Simulate the singular values of an m x n matrix Brownian motion, any index.

    ``ds_i = [(m-n+1 - 1/b)/s_i + sum_{j != i} (1/(s_i-s_j) + 1/(s_i+s_j))]/2 dt
    - c s_i dt + dB_i/sqrt(b)`` with m >= n. At b = 1, 2, 4 the entries of the matrix are real,
    complex or quaternion Brownian motions with ``E|dX_ij|^2 = dt``, so that the drift does not
    grow with the index; the motion at the time ``b t`` has noise ``dB_i`` and the drift times b.

    Parameters
    ----------
    start : array_like, shape (..., min(m, n))
        Singular values, in any order; zeros are allowed.
    shape : (int, int)
        Shape (m, n) of the matrix, in either order.
    dyson_index : float
        Index b in (0, inf]. Exact in law at 1; of weak order 2 otherwise (complex matrices above
        1; below 1 real ones and Bessel processes of dimension 0); infinity is deterministic.
    signed : bool
        Give the smallest singular value of a real square matrix the sign of the determinant, at
        the start too: it moves through 0. Otherwise the modulus of that motion is reflected at 0.
    t_end, dt, generator, save_at, confinement, rtol, progress, observe, store, every
        As in `dyson`, whose result and warnings are the same.

    References
    ----------
    Dumitriu, Edelman, arXiv math-ph/0206043, for the law from 0; Menon, arXiv 2411.09004.

    Examples
    --------
    >>> import math
    >>> path = dln.singular_dyson([0.0], (3, 1), dyson_index=math.inf, t_end=3.0, save_at=[3.0])
    >>> path.states
    tensor([[3.]])
    """
    m, n = as_sides(shape)
    observables = as_observables(observe)
    index, rate = as_index(dyson_index), as_positive(confinement, "confinement", zero=True)
    signed, rtol = as_flag(signed, "signed"), as_rtol(rtol, torch.float64, default=1e-9)
    if signed and (m != n or index != 1):
        raise ValueError(
            f"signed must go with a square shape and dyson_index 1, got {shape} and {index:g}"
        )
    s = as_particles(start, positive=not signed)
    if signed and s.shape[-1] > 1 and bool((s[..., 0] + s[..., 1] < 0).any()):
        raise ValueError("start must be non-negative but for the smallest singular value")
    if s.shape[-1] != n:
        raise ValueError(f"start must have shape (..., {n}) for {m} x {n}, got {tuple(s.shape)}")
    if math.isinf(index):
        path = partial(singular_coulomb_path, excess=m - n, confinement=rate, rtol=rtol)
        found = deterministic_path(path, s, t_end, save_at, opened(store))
        return observed_path(found, observables, found.states)
    grid = particle_grid(s, t_end, dt, save_at, "Dyson Brownian motion", exact=index == 1)
    generator = as_generator(generator, s.device)
    made = singular_step(m - n, index, generator)
    if signed:
        made = partial(real_singular_values, excess=0, generator=generator, signed=True)

    def step(s: Tensor, tau: float, k: int) -> Tensor:
        return made(s, tau)

    kept = opened(store)
    found = particle_path(s, step, grid, "isospectral", rate, progress, generator, kept)
    return observed_path(found, observables, found.states)


def singular_step(excess: int, index: float, generator: torch.Generator) -> Step:
    """Return the step for (n + excess) x n matrices; exact in law at index 1, else of order 2."""
    if index == 1:
        return lambda s, h: real_singular_values(s, h, excess, generator)
    if index > 1:
        return _complex_step(excess, index, generator)

    def step(s: Tensor, h: float) -> Tensor:
        # The generator is that of index 1 and (1/b - 1) times that of squared Bessel processes of
        # dimension 0, s^2/2: both are exact. The real one stands outside: no value stays at 0.
        s = real_singular_values(s, 0.5 * h, excess, generator)
        s = vanishing_bessel(s, (1 / index - 1) * h, generator)
        return real_singular_values(s, 0.5 * h, excess, generator)

    return step


def real_singular_values(
    s: Tensor, h: float, excess: int, generator: torch.Generator, *, signed: bool = False
) -> Tensor:
    """Return singular values of ``[diag(s); 0] + sqrt(h) Gaussian``, exact in law.

    With `signed` (square matrices) the smallest carries the sign of the determinant.
    """
    n = s.shape[-1]
    matrix = math.sqrt(h) * normal((*s.shape, n), generator, s.dtype, s.device)
    matrix.diagonal(dim1=-2, dim2=-1).add_(s)
    if excess:
        matrix = torch.cat((matrix, math.sqrt(h) * _lower_rows(s, excess, 1.0, generator)), -2)
    values = small_svdvals(matrix).flip(-1)
    if signed:
        sign = torch.linalg.slogdet(matrix).sign
        values[..., 0] *= torch.where(sign < 0, -1.0, 1.0).to(values.dtype)
    return values


def field_singular_values(
    s: Tensor, h: float, excess: int, index: int, generator: torch.Generator
) -> Tensor:
    """Return `real_singular_values` over a field of dimension 1, 2 or 4: every part has h."""
    if index == 1:
        return real_singular_values(s, h, excess, generator)
    n, batch = s.shape[-1], s.shape[:-1]
    parts = math.sqrt(h) * normal((index, *batch, n + excess, n), generator, s.dtype, s.device)
    parts[0, ..., :n, :].diagonal(dim1=-2, dim2=-1).add_(s)
    matrix = torch.complex(parts[0], parts[1])
    if index == 2:
        return small_svdvals(matrix).flip(-1)
    # A quaternion is a 2 x 2 complex matrix: every singular value comes twice.
    both = quaternion_form(matrix, torch.complex(parts[2], parts[3]))
    return small_svdvals(both).flip(-1)[..., ::2]


def _complex_step(excess: int, index: float, generator: torch.Generator) -> Step:
    """Return the step for indices above 1."""

    def step(s: Tensor, h: float) -> Tensor:
        n = s.shape[-1]
        g = normal((*s.shape, n), generator, s.dtype, s.device)
        real, root = signed_modulus(g, index, generator), math.sqrt(h)
        # Half of every pair of opposite entries is imaginary with probability 1 - 1/b.
        draw = torch.rand((*s.shape, n), generator=generator, device=generator.device)
        turned = (draw.to(s.device) > 1 / index).tril(-1)
        real, imaginary = torch.where(turned, 0.0, real), torch.where(turned, real, 0.0)
        main = g.diagonal(dim1=-2, dim2=-1) / math.sqrt(index)
        freedom = torch.full((n,), index - 1, dtype=s.dtype, device=s.device)
        across = chi(freedom, s.shape[:-1], generator) / math.sqrt(index)
        real[..., range(n), range(n)] = s / root + main
        imaginary[..., range(n), range(n)] = across
        matrix = torch.complex(real, imaginary)
        if excess:
            below = _lower_rows(s, excess, index, generator).to(matrix.dtype)
            matrix = torch.cat((matrix, below), -2)
        return root * small_svdvals(matrix).flip(-1)

    return step


def _lower_rows(s: Tensor, excess: int, index: float, generator: torch.Generator) -> Tensor:
    """Draw rows below the square part of a matrix; of more than n, the triangle of their QR."""
    n = s.shape[-1]
    g = normal((*s.shape[:-1], min(excess, n), n), generator, s.dtype, s.device)
    block = signed_modulus(g, index, generator)
    if excess > n:
        freedom = index * (excess - torch.arange(n, dtype=s.dtype, device=s.device))
        block = block.triu(1)
        block[..., range(n), range(n)] = chi(freedom, s.shape[:-1], generator) / math.sqrt(index)
    return block


def vanishing_bessel(s: Tensor, h: float, generator: torch.Generator) -> Tensor:
    """Return Bessel processes of dimension 0 after the time h, exact in law: 0 is absorbing.

    ``ds = dB - ds/(2s)``; ``s^2 = 2h Gamma(K)`` with K Poisson of mean ``s^2/(2h)``.
    """
    device = generator.device
    count = torch.poisson((s.square() / (2 * h)).to(device), generator=generator)
    squared = 2 * h * torch._standard_gamma(count.clamp_min(1.0), generator=generator)
    return torch.where(count > 0, squared, 0.0).sqrt().to(s.device)
