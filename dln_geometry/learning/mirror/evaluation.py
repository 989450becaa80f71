"""Values and gradients of a loss, checked: they must be numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.functional import as_value

__all__ = ["NotFiniteError", "as_scalar", "value_and_gradient"]


class NotFiniteError(ValueError):
    """A loss, or a derivative of it, is not a number at some point."""


def value_and_gradient(loss: Callable[[Any], Tensor], q: Any) -> tuple[float, Any]:
    """Return a scalar loss and its gradient, of the same kind as q; absent gradients are zero.

    Raises
    ------
    TypeError
        If the loss does not return a tensor.
    ValueError
        If the loss is not a scalar, is not finite (`NotFiniteError`), or does not depend on the
        parameters.
    """
    with torch.enable_grad():
        if isinstance(q, Mapping):
            leaves = {name: x.detach().requires_grad_() for name, x in q.items()}
            inputs = list(leaves.values())
        else:
            leaves = q.detach().requires_grad_()
            inputs = [leaves]
        value = as_scalar(loss(leaves))
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
    if all(g is None for g in gradients):
        raise ValueError("loss must depend on the parameters, got one that does not")
    full = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)]
    gradient = dict(zip(q, full, strict=True)) if isinstance(q, Mapping) else full[0]
    return float(value.detach()), gradient


def as_scalar(value: Any) -> Tensor:
    """Return the value of a loss: a finite, differentiable, real scalar tensor."""
    value = as_value(value)
    if not bool(torch.isfinite(value.detach())):
        raise NotFiniteError(f"loss must be finite, got {float(value.detach())}")
    if not value.requires_grad:
        raise ValueError("loss must depend on the parameters, and differentiably; got a constant")
    return value
