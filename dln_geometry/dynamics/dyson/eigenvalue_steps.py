"""One step of a Dyson Brownian motion, by a random matrix or by an implicit equation.

Every step maps particles (..., n), in any order, to particles in ascending order, after the time h;
positions may coincide. Nothing is checked here.

Why the matrices have the entries they have: the generator, and one step of a scheme expanded in h,
act on symmetric polynomials. Up to order h^2 a step with independent diagonal entries of variance
``2h/b`` and off-diagonal ones with ``E|y|^2 = h``, ``E|y|^4 = (1 + 2/b) h^2`` is, like the square
of the generator, quadratic in 1/b, and both agree at b = 1, 2 and 4, where Gaussian matrices over
the reals, complex numbers and quaternions are exact for every h. So they agree for all b: weak
order 2, collisions or not. (Gaussian entries for every b have the fourth moment 3 h^2 and order 1.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from dln_geometry.dynamics.laws import tridiagonal_eigenvalues
from dln_geometry.support import chi, normal

Step = Callable[[Tensor, float], Tensor]


def isospectral_step(index: float, generator: torch.Generator) -> Step:
    """Return the step by eigenvalues of ``diag(x) + noise``, real symmetric, any index.

    Exact in law at index 1, of weak order 2 otherwise.
    """

    def step(x: Tensor, h: float) -> Tensor:
        n = x.shape[-1]
        noise = lower_normals(x, generator)
        main = x + math.sqrt(2 * h / index) * noise.diagonal(dim1=-2, dim2=-1)
        matrix = math.sqrt(h) * signed_modulus(noise, index, generator)
        matrix[..., range(n), range(n)] = main
        return torch.linalg.eigvalsh(matrix)

    return step


def field_step(index: float, generator: torch.Generator) -> Step:
    """Return the step exact in law at index 1, 2 or 4: Gaussian matrices over a field."""
    if index == 1:
        return isospectral_step(index, generator)

    def step(x: Tensor, h: float) -> Tensor:
        n = x.shape[-1]
        k = int(index)
        parts = normal((k, *x.shape, n), generator, x.dtype, x.device) * math.sqrt(h / k)
        lower = torch.complex(parts[0], parts[1]).tril(-1)
        main = x + parts[0].diagonal(dim1=-2, dim2=-1) * math.sqrt(2.0)
        if k == 2:
            return torch.linalg.eigvalsh(lower + main.diag_embed())
        # A quaternion is a 2 x 2 complex matrix: every eigenvalue comes twice.
        other = torch.complex(parts[2], parts[3]).tril(-1)
        full = lower + lower.mH + main.diag_embed()
        block = other - other.mT
        top = torch.cat((full, block), -1)
        bottom = torch.cat((block.mH, full.conj()), -1)
        return torch.linalg.eigvalsh(torch.cat((top, bottom), -2))[..., ::2]

    return step


def tridiagonal_step(index: float, generator: torch.Generator) -> Step:
    """Return the cheap step for many particles: neighbours by a random matrix, the rest by drift.

    The repulsion of all but the two neighbours is an explicit step; then come eigenvalues of
    ``diag(x)`` plus a tridiagonal matrix with ``sqrt(2h/b) N(0, 1)`` on the diagonal and
    ``sqrt(h/b) chi_b`` next to it, of which isolated pairs are exact for every h. Samples where
    ``h sum 1/(x_i - x_j)^2`` over the others is not small take a step of `isospectral_step`.
    """
    dense = isospectral_step(index, generator)

    def step(x: Tensor, h: float) -> Tensor:
        inverse = x.unsqueeze(-1) - x.unsqueeze(-2)
        for k in (-1, 0, 1):
            inverse.diagonal(k, -2, -1).fill_(math.inf)
        inverse.reciprocal_()
        drift = inverse.sum(-1)
        stiff = h * inverse.square_().sum(-1).amax(-1) > _STIFF
        if bool(stiff.all()):
            return dense(x, h)
        main = normal(x.shape, generator, x.dtype, x.device).mul_(math.sqrt(2 * h / index))
        freedom = torch.full((x.shape[-1] - 1,), index, dtype=x.dtype, device=x.device)
        off = chi(freedom, x.shape[:-1], generator).mul_(math.sqrt(h / index))
        if not bool(stiff.any()):
            return tridiagonal_eigenvalues(x + h * drift + main, off)
        out, calm = torch.empty_like(x), ~stiff
        out[stiff] = dense(x[stiff], h)
        out[calm] = tridiagonal_eigenvalues((x + h * drift + main)[calm], off[calm])
        return out

    return step


_STIFF = 0.75
"""Rate of the drift of particles that are not neighbours, times h, above which it is not used."""


def lower_normals(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw matrices (..., n, n) whose lower triangle is normal, at half the price of all of it.

    The upper triangle holds copies and must not be read.
    """
    n = x.shape[-1]
    half, odd = (n + 1) // 2, n % 2
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
    first = math.sqrt(2 / math.pi)
    if index > 1e15:
        return 0.0, 1.0

    def moments(q: float) -> tuple[float, float]:
        second = 1 + q * q + 2 * q * first
        return second, 3 + 8 * q * first + 6 * q * q + 4 * q**3 * first + q**4

    def excess(q: float) -> float:
        second, fourth = moments(q)
        return fourth / second**2 - 1 - 2 / index

    q: Any = brentq(excess, 0.0, 10.0 + 10.0 * math.sqrt(index))
    a = moments(q)[0] ** -0.5
    return a, q * a


def proximal(start: Tensor, y: Tensor, h: float) -> Tensor:
    r"""Solve ``x_i = y_i + h sum_{j != i} 1/(x_i - x_j)``, ascending, whatever the order of y.

    The minimum of the convex ``|x - y|^2/(2h) - sum_{i<j} log(x_j - x_i)``: there is exactly one.
    Newton's method, damped where it must be (the function is self-concordant, so a step of
    length below 1 in its own metric keeps the order); `start` is where it begins.

    Raises
    ------
    ValueError
        If the positions cannot be resolved in double precision.
    """
    n = y.shape[-1]
    if n == 1:
        return y
    # Particles pushed together are apart by far less than their positions: double precision.
    dtype, y = y.dtype, y.double()
    x = start.double().sort(-1).values
    # Coinciding particles are pulled apart by about as much as the step will.
    tiny = 1e-3 * math.sqrt(h) + 4 * torch.finfo(x.dtype).eps * x.abs().amax(-1, keepdim=True)
    tied = (x.diff(dim=-1) < tiny).any(-1, keepdim=True)
    spread = torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) * math.sqrt(h * n)
    x = torch.where(tied, x + spread, x)
    done = 4 * torch.finfo(x.dtype).eps * (y.abs().amax(-1) + math.sqrt(h))
    for _ in range(200):
        inverse = x.unsqueeze(-1) - x.unsqueeze(-2)
        inverse.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
        inverse.reciprocal_()
        residual = y - x + h * inverse.sum(-1)
        weights = inverse.square_().mul_(h)
        move = _solve_laplacian(weights, residual)
        length = ((move * residual).sum(-1) / h).clamp_min(0.0).sqrt()
        damping = torch.where(length > 0.25, 1 / (1 + length), 1.0)
        x = x + damping.unsqueeze(-1) * move
        size = move.abs().amax(-1)
        # Quadratic convergence: what follows a step of relative length 1e-5 is rounding.
        if bool(((length < 1e-5) | (size < done)).all()):
            return x.to(dtype)
    raise ValueError(f"dt must be large enough for the gaps to be resolved, got a step {h:.1e}")


_DENSE = 100
"""Size up to which a Cholesky factorisation beats conjugate gradients."""


def _solve_laplacian(weights: Tensor, right: Tensor) -> Tensor:
    """Solve ``(1 + diag(sum w) - w) d = right``, nearly, for symmetric w >= 0."""
    main = 1 + weights.sum(-1)
    n = right.shape[-1]
    if n <= _DENSE:
        matrix = main.diag_embed() - weights
        root = torch.linalg.cholesky_ex(matrix).L
        return torch.cholesky_solve(right.unsqueeze(-1), root).squeeze(-1)
    # Jacobi-preconditioned conjugate gradients; an inexact direction is still one of descent.
    d, r = torch.zeros_like(right), right.clone()
    z = r / main
    p, rz = z.clone(), (r * z).sum(-1, keepdim=True)
    goal = 1e-8 * rz
    for _ in range(4 * n):
        q = main * p - (weights @ p.unsqueeze(-1)).squeeze(-1)
        alpha = rz / (p * q).sum(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
        d, r = d + alpha * p, r - alpha * q
        z = r / main
        before, rz = rz, (r * z).sum(-1, keepdim=True)
        if bool((rz <= goal).all()):
            break
        p = z + (rz / before.clamp_min(torch.finfo(p.dtype).tiny)) * p
    return d
