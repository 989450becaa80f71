"""The implicit step of Dyson Brownian motion: the repulsion at the end of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dln_geometry.support import normal, on_device

# Newton steps on a device, where nobody looks whether they are enough: 7 or 8 are usual.
BLIND = 30

# Size up to which a Cholesky factorisation beats conjugate gradients.
DENSE = 100


UNRESOLVED = "dt must be large enough for the gaps to be resolved"


def implicit_step(index: float, generator: torch.Generator) -> Callable[[Tensor, float], Tensor]:
    """Return the step of weak order 1."""

    def step(x: Tensor, h: float) -> Tensor:
        noise = math.sqrt(h) * normal(x.shape, generator, x.dtype, x.device)
        return proximal(x, x + math.sqrt(2 / index) * noise, h)

    return step


def proximal(start: Tensor, y: Tensor, h: float) -> Tensor:
    r"""Solve ``x_i = y_i + h sum_{j != i} 1/(x_i - x_j)``, ascending, whatever the order of y.

    The minimum of the strictly convex ``|x - y|^2/(2h) - sum_{i<j} log(x_j - x_i)``, by Newton's
    method from `start`, damped: the function is self-concordant, so a step of length below 1 in its
    own metric keeps the order. ValueError if double precision does not resolve the positions; on a
    device, NaN.
    """
    n = y.shape[-1]
    if n == 1:
        return y
    # Double precision: particles pushed together are apart by far less than their positions.
    dtype, y = y.dtype, y.double()
    x = start.double().sort(-1).values
    # Pull coinciding particles apart by about as much as the step will.
    tiny = 1e-3 * math.sqrt(h) + 4 * torch.finfo(x.dtype).eps * x.abs().amax(-1, keepdim=True)
    tied = (x.diff(dim=-1) < tiny).any(-1, keepdim=True)
    spread = torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) * math.sqrt(h * n)
    x = torch.where(tied, x + spread, x)
    done = 4 * torch.finfo(x.dtype).eps * (y.abs().amax(-1) + math.sqrt(h))
    blind = on_device(x)
    converged = torch.zeros_like(done, dtype=torch.bool)
    for _ in range(BLIND if blind else 200):
        inverse = x.unsqueeze(-1) - x.unsqueeze(-2)
        inverse.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
        inverse.reciprocal_()
        residual = y - x + h * inverse.sum(-1)
        weights = inverse.square_().mul_(h)
        move = _solve_laplacian(weights, residual)
        length = ((move * residual).sum(-1) / h).clamp_min(0.0).sqrt()
        damping = torch.where(length > 0.25, 1 / (1 + length), 1.0)
        damping = torch.where(converged, 0.0, damping) if blind else damping
        x = x + damping.unsqueeze(-1) * move
        size = move.abs().amax(-1)
        # Quadratic convergence: after a step of relative length 1e-5 only rounding is left.
        converged = converged | (length < 1e-5) | (size < done)
        if not blind and bool(((length < 1e-5) | (size < done)).all()):
            return x.to(dtype)
    if blind:
        return torch.where(converged.unsqueeze(-1), x, torch.nan).to(dtype)
    raise ValueError(f"{UNRESOLVED}, got a step {h:.1e}")


def _solve_laplacian(weights: Tensor, right: Tensor) -> Tensor:
    """Solve ``(1 + diag(sum w) - w) d = right``, nearly, for symmetric w >= 0."""
    main = 1 + weights.sum(-1)
    n = right.shape[-1]
    if n <= DENSE or on_device(right):
        root = torch.linalg.cholesky_ex(main.diag_embed() - weights).L
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
