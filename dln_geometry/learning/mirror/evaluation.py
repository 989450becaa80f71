"""Values and gradients of a loss, which must be finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.functional import as_value


class NotFiniteError(ValueError):
    """A loss, or a derivative of it, is not a number at some point."""


def value_and_gradient(loss: Callable[[Any], Tensor], q: Any) -> tuple[float, Any]:
    """Return a scalar loss and its gradient, a tensor or a dict like q.

    The gradient is zero in the tensors that the loss does not depend on.
    """
    named = isinstance(q, Mapping)
    leaves = [x.detach().requires_grad_() for x in (q.values() if named else [q])]
    with torch.enable_grad():
        value = as_scalar(loss(dict(zip(q, leaves, strict=True)) if named else leaves[0]))
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    if all(g is None for g in gradients):
        raise ValueError("loss must depend on the parameters, got one that does not")
    full = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
    return float(value.detach()), dict(zip(q, full, strict=True)) if named else full[0]


def as_scalar(value: Any) -> Tensor:
    """Return the value of a loss: a finite, differentiable, real scalar tensor."""
    value = as_value(value)
    if not bool(torch.isfinite(value.detach())):
        raise NotFiniteError(f"loss must be finite, got {float(value.detach())}")
    if not value.requires_grad:
        raise ValueError("loss must depend on the parameters, and differentiably; got a constant")
    return value
