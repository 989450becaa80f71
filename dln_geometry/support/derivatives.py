"""Ask which tensors are differentiated, and refuse them where a function has no derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual


def is_differentiated(*arrays: Any) -> bool:
    """Tell whether autograd, backward or forward, follows one of some arrays."""
    tensors = [x for x in arrays if isinstance(x, Tensor)]
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return True
    numbers = (x for x in tensors if x.is_floating_point() or x.is_complex())
    return any(unpack_dual(x).tangent is not None for x in numbers)


def refuse_derivatives(what: str, *arrays: Any) -> None:
    """Raise an error if autograd follows an array into a function without a derivative."""
    if is_differentiated(*arrays):
        raise ValueError(
            f"{what} has no derivative here, got an argument that requires gradients: detach it, "
            "or call within torch.no_grad()"
        )
