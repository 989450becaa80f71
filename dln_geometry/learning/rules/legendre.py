"""Inverses of the gradient and the Hessian of a convex function, without matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dln_geometry.learning.functional import Loss, Parameters, flatten, unflatten

_NEWTON_STEPS = 100
_HALVINGS = 60


def legendre_inverse(potential: Loss, dual: Parameters, start: Parameters) -> Parameters:
    """Return the point whose gradient of the potential is `dual`.

    Newton's method from `start` on the convex function ``h(x) - <dual, x>``, with conjugate
    gradients for the linear systems (memory linear in the number of parameters); it halves steps
    that do not lower the residual or leave the domain of h. Not differentiable. If no point has
    this gradient, the step has left the range of ``grad h``: an error.
    """
    y = flatten(dual).detach()

    def residual(x: Tensor) -> Tensor:
        return flatten(torch.func.grad(potential)(unflatten(x, start))) - y

    x = flatten(start).detach()
    r = residual(x)
    size = r.norm()
    scale = torch.maximum(y.norm(), (r + y).norm())
    if not bool(torch.isfinite(size)):
        raise ValueError("potential must be smooth at the parameters, got a gradient not finite")
    eps = torch.finfo(x.dtype).eps
    for _ in range(_NEWTON_STEPS):
        if float(size) <= 4 * eps * float(scale):
            break
        move = _conjugate_gradients(_hessian(potential, x, start), -r)
        for k in range(_HALVINGS):
            trial = x + 0.5**k * move
            after = residual(trial)
            if bool(after.norm() < size):
                break
        else:
            # No step lowers the residual: it is rounding, or there is no solution.
            if float(size) <= 1e4 * eps * float(scale):
                break
            raise ValueError(
                "lr must keep the step inside the range of the potential's gradient, got a step "
                f"whose gradient is missed by {float(size):.3e}"
            )
        x, r, size = trial, after, after.norm()
    else:
        raise ValueError(
            f"potential must be strictly convex, got a gradient that {_NEWTON_STEPS} Newton steps "
            f"miss by {float(size):.3e}"
        )
    return unflatten(x, start)


def hessian_inverse(potential: Loss, params: Parameters, covector: Parameters) -> Parameters:
    """Return the vector that the (positive definite) Hessian at `params` maps to `covector`."""
    x, y = flatten(params).detach(), flatten(covector).detach()
    return unflatten(_conjugate_gradients(_hessian(potential, x, params), y), params)


def _hessian(potential: Loss, x: Tensor, like: Parameters) -> Callable[[Tensor], Tensor]:
    """Return the Hessian at x as an operator; all products use one graph."""
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(potential(unflatten(z, like)), z, create_graph=True)
    if not gradient.requires_grad:
        raise ValueError("potential must be strictly convex, got a linear function")
    return lambda v: torch.autograd.grad(gradient, z, v, retain_graph=True)[0]


def _conjugate_gradients(hessian: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """Solve ``hessian(x) = b`` for a positive definite operator, to the accuracy it has."""
    x, r, p, rr = torch.zeros_like(b), b, b, b.dot(b)
    goal = torch.finfo(b.dtype).eps ** 2 * float(rr)
    for _ in range(2 * b.numel() + 10):
        if float(rr) <= goal:
            break
        hp = hessian(p)
        curvature = p.dot(hp)
        if not float(curvature) > 0:
            if float(rr) < float(b.dot(b)):
                break
            raise ValueError(
                "potential must be strictly convex, got curvature "
                f"{float(curvature):.3e} along a direction"
            )
        alpha = rr / curvature
        x = x + alpha * p
        r = r - alpha * hp
        previous, rr = rr, r.dot(r)
        p = r + (rr / previous) * p
    return x
