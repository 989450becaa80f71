"""Random numbers from the user's generator, and the doors of what is random."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MOST_INDEX = 1e30
"""Finite index above which noise is below the rounding of what repels, and overflows squared."""


def normal(
    shape: Sequence[int],
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> Tensor:
    """Draw standard normal numbers where the generator lives, and move them to the device."""
    draw = torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
    return draw if device is None and draw.device.type == "cpu" else draw.to(device or "cpu")


def chi(degrees: Tensor, batch: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw chi variables with these (real, positive) degrees of freedom, shape (*batch, k)."""
    half = (0.5 * degrees).expand(*batch, *degrees.shape).to(generator.device).contiguous()
    return (2.0 * torch._standard_gamma(half, generator=generator)).sqrt().to(degrees.device)


def as_index(dyson_index: Any) -> float:
    """Return a Dyson index in (0, inf]."""
    if isinstance(dyson_index, bool) or not isinstance(dyson_index, numbers.Real):
        raise TypeError(f"dyson_index must be a number in (0, inf], got {dyson_index!r}")
    if not float(dyson_index) > 0:
        raise ValueError(f"dyson_index must be positive (inf is allowed), got {dyson_index}")
    index = float(dyson_index)
    return index if math.isinf(index) else min(index, _MOST_INDEX)


def as_positive(value: Any, name: str, *, zero: bool = False) -> float:
    """Return a positive finite number (or 0, where that is allowed)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    number = float(value)
    if not 0 <= number < math.inf or (number == 0 and not zero):
        sign = "non-negative" if zero else "positive"
        raise ValueError(f"{name} must be {sign} and finite, got {value!r}")
    return number


def as_count(value: Any, name: str, least: int = 1) -> int:
    """Return an integer that is not too small."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def as_flag(value: Any, name: str) -> bool:
    """Return a truth value: a string or a number in its place is a mistake."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def as_shape(shape: Any) -> tuple[int, int]:
    """Return the two sides of a matrix, the longer one first."""
    if not (isinstance(shape, Sequence | torch.Size) and len(shape) == 2):
        raise TypeError(f"shape must be a pair (m, n), got {shape!r}")
    m, n = (as_count(d, "shape") for d in shape)
    return max(m, n), min(m, n)


def as_size(size: Any) -> tuple[int, ...]:
    """Return the shape of a batch."""
    sizes = size if isinstance(size, Sequence) and not isinstance(size, str) else (size,)
    return tuple(as_count(d, "size") for d in sizes)
