"""The derivative of the velocity of an engine, the Hessian of its loss kept apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import Loss, evaluate
from dln_geometry.ode import Parts


class HeldGradient:
    """A loss whose gradient is a variable of its own, and does not follow X."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self.x: Any = None
        self.gradient: Any = None

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the gradient, and keep X and the gradient."""
        with torch.no_grad():
            value, gradient = evaluate(self._loss, x.detach())
        self.x, self.gradient = x, gradient.detach().clone().requires_grad_()
        return value, self.gradient

    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(E, G R, G^T L)`` at ``X = L R^T``."""
        value, gradient = self.evaluate(left @ right.mH)
        return value, gradient @ right, gradient.mH @ left


def derivative_of(wide: Any, t: Tensor, y: Tensor) -> Tensor | Parts:
    """Return the derivative of the velocity in rows (B, n), from an engine for n copies of them.

    The velocity is ``F(y, G)`` with ``G = E'(X(y))``; the parts are ``F_y``, ``F_G`` and
    ``E'' X_y``. Where X has more numbers than a row, or there is no loss, it is one matrix.
    """
    batch, n = y.shape
    loss: Any = getattr(wide, "loss", None)
    held = None
    if loss is not None and not wide.is_complex and wide.numbers_of_matrix() <= n:
        held = HeldGradient(loss)
        wide.loss = held
    try:
        with torch.enable_grad():
            x = y.repeat(n, 1).requires_grad_()
            out = 0.0 * x
            wide.field(t.repeat(n), x, out)
            # The gradient of component i, in copy i.
            picked = out.view(n, batch, n).diagonal(dim1=0, dim2=2).sum()
            if held is None:
                return _rows(torch.autograd.grad(picked, x)[0], n, batch)
            wanted = (x, held.gradient)
            direct, outer = torch.autograd.grad(
                picked, wanted, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            parts = held.x.view(n, batch, -1)
            k = parts.shape[-1]
            picked = parts[:k].diagonal(dim1=0, dim2=2).sum()
            inner = _rows(torch.autograd.grad(picked, x)[0], n, batch)[:, :k]
            assert loss is not None
            place = held.x.detach()[:k].requires_grad_()
            slope = evaluate(loss, place)[1].reshape(k, batch, k)
            hessian = torch.autograd.grad(slope.diagonal(dim1=0, dim2=2).sum(), place)[0]
    finally:
        if held is not None:
            wide.loss = loss
    return Parts(_rows(direct, n, batch), _rows(outer, n, batch), _rows(hessian, k, batch) @ inner)


def _rows(gradient: Tensor, copies: int, batch: int) -> Tensor:
    """Return gradients (B, copies, k) from those of all copies."""
    return gradient.reshape(copies, batch, -1).transpose(0, 1)


def derivative_agrees(
    field: Callable[..., Tensor], t: Tensor, y: Tensor, derivative: Tensor
) -> bool:
    """Compare a derivative with a central difference, along the velocity and a rough vector."""
    share = torch.finfo(y.dtype).eps ** (1 / 3)
    velocity, high, low = (torch.empty_like(y) for _ in range(3))
    field(t, y, velocity)
    norm = torch.linalg.vector_norm
    size = norm(y, dim=-1, keepdim=True)
    speed = norm(velocity, dim=-1, keepdim=True)
    rough = torch.frac(torch.arange(1, y.shape[-1] + 1, device=y.device) * 0.6180339887498949)
    v = velocity / torch.where(speed > 0, speed, 1.0) + rough.to(y.dtype) - 0.5
    v = share * torch.where(size > 0, size, 1.0) * v
    field(t, y + v, high)
    field(t, y - v, low)
    change, predicted = 0.5 * (high - low), (derivative @ v.unsqueeze(-1)).squeeze(-1)
    gap = norm(change - predicted, dim=-1)
    return bool((gap <= 1e-2 * norm(change, dim=-1) + share * speed.squeeze(-1)).all())
