"""Check numbers, flags and shapes that a user gives; every check stands here once."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.support.warning import warn

# The largest size that torch can name.
LARGEST = 2**63 - 1

Observables = dict[str, Callable[[Any], Any]]
# What runs call their own series, which observables must not.
RUN_NAMES = frozenset(
    ["t", "time", "loss", "singular_values", "states", "defect", "mode", "particle", "batch"],
)


def shown(value: Any) -> str:
    """Return a short text of what came, for messages: one line, whatever the value is."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # integers of thousands of digits have no repr, and others may fail
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_real(value: Any, name: str) -> float:
    """Return a real number: a float, an integer, a `Fraction`, a `Decimal`, a numpy scalar."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        raise TypeError(f"{name} must be a real number, got {shown(value)}")
    try:
        return float(value)
    except (OverflowError, ValueError):
        raise ValueError(f"{name} must be finite, got {shown(value)}") from None


def as_positive(value: Any, name: str, *, zero: bool = False) -> float:
    """Return a positive finite number (or 0, where that is allowed)."""
    number = as_real(value, name)
    if not 0 <= number < math.inf or (number == 0 and not zero):
        sign = "non-negative" if zero else "positive"
        raise ValueError(f"{name} must be {sign} and finite, got {shown(value)}")
    return number


def as_rtol(
    value: Any, dtype: torch.dtype, name: str = "rtol", *, default: float | None = None
) -> float:
    """Return a relative tolerance between 4 machine epsilons of the type and 1.

    A warning tells if it is moved there, except for the `default` of the function that was called.
    """
    number, least = as_positive(value, name), 4 * torch.finfo(dtype).eps
    tolerance = min(max(number, least), 1.0)
    if tolerance != number and number != default:
        bound = f"at most 1, got {shown(value)}"
        if number < least:
            bound = f"at least 4 eps = {least:.1e} in {dtype}, got {shown(value)}"
        warn(f"{name} must be {bound}: {tolerance:.3g} is used")
    return tolerance


def as_choice(value: Any, choices: Collection[str], name: str) -> str:
    """Return one of some words."""
    if not isinstance(value, str) or value not in choices:
        kind = ValueError if isinstance(value, str) else TypeError
        named = ", ".join(f'"{choice}"' for choice in choices)
        raise kind(f"{name} must be one of {named}, got {shown(value)}")
    return value


def check_loss(loss: Any, shape: tuple[int, int], *methods: str) -> None:
    """Refuse what is no loss of matrices of this shape: an object with these methods."""
    if isinstance(loss, type) or not all(callable(getattr(loss, name, None)) for name in methods):
        raise TypeError(
            f"loss must have the methods {' and '.join(f'{name}(x)' for name in methods)}, got "
            f"{loss.__name__ if isinstance(loss, type) else type(loss).__name__}; "
            "a function of the matrix becomes a loss by losses.from_callable"
        )
    own = getattr(loss, "shape", None)
    if own is not None and tuple(own) != tuple(shape):
        raise ValueError(
            f"loss must be one of {shape[0]} x {shape[1]} matrices like the point, got one of "
            f"{' x '.join(str(d) for d in own)}"
        )


def as_count(value: Any, name: str, least: int = 1) -> int:
    """Return an integer that is at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(value)}")
    if int(value) > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, got {shown(value)}")
    return int(value)


def as_flag(value: Any, name: str) -> bool:
    """Return a truth value; strings and numbers are refused."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def as_matrix_shape(shape: Any) -> tuple[int, int]:
    """Return the shape (m, n) of a matrix."""
    shape = _listed(shape)
    pair = isinstance(shape, Sequence) and not isinstance(shape, str | bytes) and len(shape) == 2
    if not pair or any(isinstance(d, bool) or not isinstance(d, numbers.Integral) for d in shape):
        raise TypeError(f"shape must be a pair of integers (m, n), got {shown(shape)}")
    m, n = (int(d) for d in shape)
    if not 1 <= min(m, n) <= max(m, n) <= LARGEST:
        raise ValueError(f"shape must be positive, got {shown((m, n))}")
    return m, n


def as_sides(shape: Any) -> tuple[int, int]:
    """Return the sides of a matrix of this shape, the longer one first."""
    sides = as_matrix_shape(shape)
    return max(sides), min(sides)


def as_size(size: Any, name: str = "size", least: int = 1) -> tuple[int, ...]:
    """Return the shape of a batch, from one number or several."""
    size = _listed(size)
    sizes = size if isinstance(size, Sequence) and not isinstance(size, str | bytes) else (size,)
    return tuple(as_count(d, name, least) for d in sizes)


def as_rank(rank: Any, largest: int, what: str) -> int:
    """Return a rank between 1 and `largest`."""
    if isinstance(rank, bool) or not isinstance(rank, numbers.Integral):
        raise TypeError(f"rank must be an integer, got {shown(rank)}")
    if not 1 <= int(rank) <= largest:
        raise ValueError(f"rank must lie between 1 and {largest} ({what}), got {shown(rank)}")
    return int(rank)


def as_widths(widths: Any, shape: tuple[int, int], layers: int, rank: int) -> tuple[int, ...]:
    """Resolve the widths `(d_0, ..., d_N)` of a network for matrices of `shape`.

    `None` makes every hidden layer as wide as the narrower side of the matrix; an integer is the
    width of every hidden layer.
    """
    m, n = shape
    widths = _listed(widths)
    if widths is None or (isinstance(widths, numbers.Integral) and not isinstance(widths, bool)):
        hidden = min(m, n) if widths is None else as_count(widths, "widths")
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
    widths = _listed(widths)
    if isinstance(widths, str | bytes | bytearray) or not isinstance(widths, Sequence):
        raise TypeError(f"widths must be a sequence (d_0, ..., d_N), got {shown(widths)}")
    if len(widths) < 2:
        raise ValueError(f"widths must hold at least two numbers (d_0, d_1), got {shown(widths)}")
    for d in widths:
        if isinstance(d, bool) or not isinstance(d, numbers.Integral):
            raise TypeError(f"widths must be integers, got {shown(widths)}")
        if not 1 <= int(d) <= LARGEST:
            raise ValueError(f"widths must be positive, got {shown(tuple(widths))}")
    return tuple(int(d) for d in widths)


def _listed(x: Any) -> Any:
    """Return the numbers of an array, a tensor or a Series as plain ones, anything else as it is.

    Arrays with entries hidden by a mask stay, to be refused.
    """
    if np.ma.is_masked(x):
        return x
    array = isinstance(x, np.ndarray | Tensor) or (hasattr(x, "__array__") and hasattr(x, "tolist"))
    try:
        return x.tolist() if array and not isinstance(x, np.generic) else x
    except (RuntimeError, NotImplementedError):  # a sparse tensor, or one without values
        return x


def as_observables(observe: Any, taken: Collection[str] = RUN_NAMES) -> Observables:
    """Return the functions by name; refuse names that a run uses itself."""
    if observe is None:
        return {}
    if not isinstance(observe, Mapping):
        raise TypeError(f"observe must be a mapping of names to functions, got {shown(observe)}")
    for name, f in observe.items():
        if not isinstance(name, str) or not callable(f) or isinstance(f, type):
            raise TypeError(
                f"observe must map names to functions of a point, got {shown(name)}: {shown(f)}"
            )
        if not name.isidentifier() or name in taken or name.startswith("batch_"):
            raise ValueError(f"observe must use names that a run does not, got {shown(name)}")
    return dict(observe)


def as_observable_value(value: Any, name: str, batch: tuple[int, ...] = ()) -> Tensor:
    """Return what an observable gave as real numbers (*batch, ...), without gradients."""
    if not isinstance(value, Tensor):
        try:
            value = torch.tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            required = f"observe[{name!r}] must return real numbers"
            raise TypeError(f"{required}, got {shown(value)}") from error
    value = value.detach()
    if value.is_complex() or tuple(value.shape[: len(batch)]) != batch:
        raise ValueError(
            f"observe[{name!r}] must return real numbers of shape {(*batch, '...')}, got "
            f"{value.dtype} {tuple(value.shape)}"
        )
    return value if value.is_floating_point() else value.double()
