"""Check numbers, flags and shapes that a user gives; every check stands here once."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
    """Return an integer that is at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def as_flag(value: Any, name: str) -> bool:
    """Return a truth value; strings and numbers are refused."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def as_matrix_shape(shape: Any) -> tuple[int, int]:
    """Return the shape (m, n) of a matrix."""
    pair = isinstance(shape, Sequence | torch.Size) and len(shape) == 2
    if not pair or any(isinstance(d, bool) or not isinstance(d, numbers.Integral) for d in shape):
        raise TypeError(f"shape must be a pair of integers (m, n), got {shape!r}")
    if min(shape) < 1:
        raise ValueError(f"shape must be positive, got {tuple(shape)}")
    return int(shape[0]), int(shape[1])


def as_sides(shape: Any) -> tuple[int, int]:
    """Return the sides of a matrix of this shape, the longer one first."""
    sides = as_matrix_shape(shape)
    return max(sides), min(sides)


def as_size(size: Any) -> tuple[int, ...]:
    """Return the shape of a batch."""
    sizes = size if isinstance(size, Sequence) and not isinstance(size, str) else (size,)
    return tuple(as_count(d, "size") for d in sizes)


def as_rank(rank: Any, largest: int, what: str) -> int:
    """Return a rank between 1 and `largest`."""
    if isinstance(rank, bool) or not isinstance(rank, numbers.Integral):
        raise TypeError(f"rank must be an integer, got {rank!r}")
    if not 1 <= int(rank) <= largest:
        raise ValueError(f"rank must lie between 1 and {largest} ({what}), got {rank}")
    return int(rank)


def as_widths(widths: Any, shape: tuple[int, int], layers: int, rank: int) -> tuple[int, ...]:
    """Resolve the widths `(d_0, ..., d_N)` of a network for matrices of `shape`.

    `None` makes every hidden layer as wide as the narrower side of the matrix; an integer is the
    width of every hidden layer.
    """
    m, n = shape
    if isinstance(widths, np.ndarray | Tensor):
        widths = widths.tolist()
    if widths is None or (isinstance(widths, numbers.Integral) and not isinstance(widths, bool)):
        hidden = min(m, n) if widths is None else int(widths)
        resolved = (n, *(hidden,) * (layers - 1), m)
    else:
        resolved = as_width_sequence(widths)
        if (count := len(resolved)) != layers + 1:
            required = f"depth + 1 = {layers + 1} numbers (d_0, ..., d_N)"
            raise ValueError(f"widths must hold {required}, got {count}")
        if (resolved[0], resolved[-1]) != (n, m):
            required = f"start with {n} and end with {m} for a matrix of shape {(m, n)}"
            raise ValueError(f"widths must {required}, got {resolved}")
    if min(resolved) < rank:
        raise ValueError(f"widths must all be at least the rank {rank}, got {resolved}")
    return resolved


def as_width_sequence(widths: Any) -> tuple[int, ...]:
    """Return widths as a tuple of at least two positive integers."""
    if isinstance(widths, np.ndarray | Tensor):
        widths = widths.tolist()
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        raise TypeError(f"widths must be a sequence (d_0, ..., d_N), got {widths!r}")
    if len(widths) < 2:
        raise ValueError(f"widths must hold at least two numbers (d_0, d_1), got {widths!r}")
    for d in widths:
        if isinstance(d, bool) or not isinstance(d, numbers.Integral):
            raise TypeError(f"widths must be integers, got {widths!r}")
        if d < 1:
            raise ValueError(f"widths must be positive, got {tuple(widths)}")
    return tuple(int(d) for d in widths)
