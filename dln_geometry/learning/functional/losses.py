"""Check that a loss is a function with a real scalar value that depends on the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dln_geometry.support import shown


def as_loss(loss: Any, name: str = "loss") -> Callable[..., Tensor]:
    """Return a loss; refuse it if it cannot be called, or makes an object (a class)."""
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(f"{name} must be a function of the parameters, got {shown(loss)}")
    if isinstance(loss, nn.Module) and any(is_lazy(p) for p in loss.parameters()):
        raise ValueError(f"{name} must have all its parameters, got a lazy module: call it once")
    return cast(Callable[..., Tensor], loss)


def as_value(value: Any, name: str = "loss") -> Tensor:
    """Return the value of a loss; refuse all but real tensors of shape ()."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(value).__name__}")
    if value.shape != () or not value.is_floating_point():
        raise ValueError(
            f"{name} must return a real scalar of shape (), got {tuple(value.shape)} of "
            f"{value.dtype}"
        )
    return value


def gradient_of(loss: Any, name: str = "loss") -> Callable[[Any], Any]:
    """Return ``torch.func.grad(loss)``; refuse a loss whose value is no real scalar, or constant.

    A constant would have zero gradient without a warning.
    """
    return torch.func.grad(_checked(loss, name))


def gradient_and_value_of(loss: Any, name: str = "loss") -> Callable[[Any], Any]:
    """Return ``torch.func.grad_and_value(loss)``, with the checks of `gradient_of`."""
    return torch.func.grad_and_value(_checked(loss, name))


def _checked(loss: Any, name: str) -> Callable[..., Tensor]:
    loss = as_loss(loss, name)

    def checked(params: Any) -> Tensor:
        value = as_value(loss(params), name)
        # Inside the transform this is set if and only if the value depends on the parameters.
        if not value.requires_grad:
            raise ValueError(
                f"{name} must depend on the parameters, and differentiably; got a constant"
            )
        return value

    return checked
