"""One time or several, as the laws take them."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from dln_geometry.support import as_float_tensor, as_positive, common_batch


def one_or_more(
    value: Any, name: str = "t", *, zero: bool = True, beside: Tensor | None = None
) -> Any:
    """Return a positive finite number as a float, several as a tensor; 0 where it is allowed.

    Several broadcast with an array `beside` them, and go to its device.
    """
    if isinstance(value, numbers.Real):
        return as_positive(value, name, zero=zero)
    times = as_float_tensor(value, name, device=None if beside is None else beside.device)
    if beside is not None:
        common_batch(x=beside.shape, **{name: times.shape})
    if not bool(((times >= 0) if zero else (times > 0)).all()):
        sign = "non-negative" if zero else "positive"
        raise ValueError(f"{name} must be {sign} and finite, got {times.tolist()}")
    return times


def root(x: Any) -> Any:
    """Return the square root of a float or of a tensor."""
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


def ratio(x: Tensor, scale: Any) -> Tensor:
    """Return ``x / scale``; at scale 0 infinity with the sign of x, plus at x = 0.

    A law that is scaled down to a point has the distribution function of that point.
    """
    scale = x.new_tensor(scale) if not isinstance(scale, Tensor) else scale
    point = torch.where(x == 0, 1.0, x) * math.inf
    return torch.where(scale == 0, point, x / torch.where(scale == 0, 1.0, scale))
