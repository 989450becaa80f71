"""Losses at the door: functions whose value is a real scalar that depends on the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["as_loss", "as_value", "gradient_and_value_of", "gradient_of"]


def as_loss(loss: Any, name: str = "loss") -> Callable[..., Tensor]:
    """Return what can be called.

    Raises
    ------
    TypeError
        If it cannot.
    """
    if not callable(loss):
        raise TypeError(f"{name} must be a function of the parameters, got {loss!r}")
    return cast(Callable[..., Tensor], loss)


def as_value(value: Any, name: str = "loss") -> Tensor:
    """Return the value of a loss, a real tensor of shape ().

    Raises
    ------
    TypeError
        If it is no tensor.
    ValueError
        If it is not real, or has another shape.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(value).__name__}")
    if value.shape != () or not value.is_floating_point():
        raise ValueError(
            f"{name} must return a real scalar of shape (), got {tuple(value.shape)} of "
            f"{value.dtype}"
        )
    return value


def gradient_of(loss: Any, name: str = "loss") -> Callable[[Any], Any]:
    """Return ``torch.func.grad(loss)``, which says what is wrong with a loss.

    Raises
    ------
    TypeError
        If the loss cannot be called, or (later) does not return a tensor.
    ValueError
        Later, if the value is no real scalar, or does not depend on the argument: its gradient
        would be zero without a word.

    Examples
    --------
    >>> gradient_of(lambda q: q.square().sum())(torch.tensor([1.0, 2.0]))
    tensor([2., 4.])
    """
    return torch.func.grad(_held(loss, name))


def gradient_and_value_of(loss: Any, name: str = "loss") -> Callable[[Any], Any]:
    """Return ``torch.func.grad_and_value(loss)``; errors as in `gradient_of`."""
    return torch.func.grad_and_value(_held(loss, name))


def _held(loss: Any, name: str) -> Callable[..., Tensor]:
    loss = as_loss(loss, name)

    def held(params: Any) -> Tensor:
        value = as_value(loss(params), name)
        # Inside the transform this is set iff something differentiable led here.
        if not value.requires_grad:
            raise ValueError(
                f"{name} must depend on the parameters, and differentiably; got a constant"
            )
        return value

    return held
