"""Checks at the doors: what enters the library is converted and validated here, once."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_float_tensor(
    x: Any,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Convert `x` to a finite real floating tensor.

    Integers and booleans become the default float, half precision becomes float32, in `x` as in
    `dtype` (no decomposition exists below it).

    Raises
    ------
    TypeError
        If `x` is not numeric, is complex or sparse, or `dtype` is no floating type.
    ValueError
        If an entry is NaN or infinite.
    """
    if isinstance(x, str | bytes) or x is None:
        raise TypeError(f"{name} must be a real array or tensor, got {type(x).__name__}")
    if dtype is not None:
        dtype = as_dtype(dtype)
    if isinstance(x, np.ndarray | np.generic):
        x = _shareable(np.asarray(x))
    try:
        tensor = torch.as_tensor(x, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a real array or tensor, got {type(x).__name__}: {error}"
        ) from None
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got the layout {tensor.layout}")
    working = tensor.dtype if tensor.is_floating_point() else torch.get_default_dtype()
    tensor = tensor.to(as_dtype(working))
    if dtype is not None and tensor.dtype != dtype:
        # Python numbers are read anew: they came in as the default float.
        own = hasattr(x, "dtype")
        tensor = tensor.to(dtype) if own else torch.as_tensor(x, dtype=dtype, device=device)
    if not bool(torch.isfinite(tensor.detach()).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    return tensor


def as_dtype(dtype: Any) -> torch.dtype:
    """Return the floating type to compute in: float32 in place of what is narrower."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a real floating type, got {dtype}")
    return torch.float32 if dtype.itemsize < 4 else dtype


def _shareable(x: np.ndarray) -> np.ndarray:
    """Return an array that torch can share: native numbers, plain strides, writeable."""
    if x.dtype.kind == "f" and x.dtype.itemsize > 8:
        x = x.astype(np.float64)
    elif x.dtype.kind == "c" or not x.dtype.isnative:
        # Complex numbers of any width: they are refused by their type.
        x = x.astype(np.complex128 if x.dtype.kind == "c" else x.dtype.newbyteorder("="))
    if not x.flags.writeable or any(step < 0 or step % x.itemsize for step in x.strides):
        x = np.array(x, order="C")
    return x


def as_matrix(
    x: Any,
    name: str = "x",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Convert `x` to a finite, non-empty tensor of shape (..., m, n)."""
    tensor = as_float_tensor(x, name, dtype=dtype, device=device)
    if tensor.ndim < 2:
        raise ValueError(f"{name} must have shape (..., m, n), got {tuple(tensor.shape)}")
    if tensor.shape[-1] == 0 or tensor.shape[-2] == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(tensor.shape)}")
    return tensor


def as_covector(g: Any, like: Tensor, shape: tuple[int, int], name: str) -> Tensor:
    """Convert a matrix that goes with a point: its last two dimensions must be `shape`."""
    tensor = as_matrix(g, name, dtype=like.dtype, device=like.device)
    if tuple(tensor.shape[-2:]) != tuple(shape):
        raise ValueError(
            f"{name} must have shape (..., {shape[0]}, {shape[1]}) like the point, "
            f"got {tuple(tensor.shape)}"
        )
    return tensor


def as_depth(depth: Any) -> float:
    """Return a depth in [1, inf] as a float."""
    if isinstance(depth, bool) or not isinstance(depth, numbers.Real):
        raise TypeError(f"depth must be a real number >= 1 or inf, got {depth!r}")
    value = float(depth)
    if math.isnan(value) or value < 1:
        raise ValueError(f"depth must be a real number >= 1 or inf, got {depth!r}")
    return value


def as_layer_count(depth: Any) -> int:
    """Return a depth that counts layers: a finite integer >= 1."""
    value = as_depth(depth)
    if not value.is_integer():
        raise ValueError(f"depth must be a finite integer where factors are made, got {depth!r}")
    return int(value)


def as_normalized(normalized: bool | None, depth: float) -> bool:
    """Resolve the normalisation of the metric: no 1/N at finite depth, A/N at infinity."""
    if normalized is None:
        return math.isinf(depth)
    if not isinstance(normalized, bool):
        raise TypeError(f"normalized must be True, False or None, got {normalized!r}")
    if math.isinf(depth) and not normalized:
        raise ValueError(
            "normalized must be True or None at infinite depth: only A/N has a limit, got False"
        )
    return normalized


def as_rank(rank: Any, largest: int, what: str) -> int:
    """Return a rank between 1 and `largest`."""
    if isinstance(rank, bool) or not isinstance(rank, numbers.Integral):
        raise TypeError(f"rank must be an integer, got {rank!r}")
    value = int(rank)
    if not 1 <= value <= largest:
        raise ValueError(f"rank must lie between 1 and {largest} ({what}), got {value}")
    return value


def as_widths(widths: Any, shape: tuple[int, int], layers: int, rank: int) -> tuple[int, ...]:
    """Resolve the widths `(d_0, ..., d_N)` of a network for matrices of `shape`.

    `None` makes every hidden layer as wide as the narrower side of the matrix, the least width
    that holds every matrix of that shape; an integer is the width of every hidden layer.
    """
    m, n = shape
    if isinstance(widths, np.ndarray | Tensor):
        widths = widths.tolist()
    if widths is None or (isinstance(widths, numbers.Integral) and not isinstance(widths, bool)):
        hidden = min(m, n) if widths is None else int(widths)
        resolved = (n, *(hidden,) * (layers - 1), m)
    else:
        resolved = as_width_sequence(widths)
        if len(resolved) != layers + 1:
            raise ValueError(
                f"widths must hold depth + 1 = {layers + 1} numbers (d_0, ..., d_N), "
                f"got {len(resolved)}"
            )
        if (resolved[0], resolved[-1]) != (n, m):
            raise ValueError(
                f"widths must start with {n} and end with {m} for a matrix of shape {(m, n)}, "
                f"got {resolved}"
            )
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


def as_factors(factors: Any, name: str = "factors") -> tuple[Tensor, ...]:
    """Convert a sequence of layers `(W_1, ..., W_N)`, input side first, that must chain."""
    if isinstance(factors, Tensor | str) or not isinstance(factors, Sequence):
        raise TypeError(
            f"{name} must be a sequence of matrices (W_1, ..., W_N), got {type(factors).__name__}"
            + (
                ": tuple(stack) splits a stack, EndToEnd.of(x, depth) makes a point of a matrix"
                if isinstance(factors, Tensor)
                else ""
            )
        )
    if len(factors) == 0:
        raise ValueError(f"{name} must hold at least one matrix, got none")
    layers = tuple(as_matrix(w, f"{name}[{p}]") for p, w in enumerate(factors))
    first = layers[0]
    for p, w in enumerate(layers[1:], start=1):
        if w.dtype != first.dtype:
            raise ValueError(f"{name} must share one dtype, got {first.dtype} and {w.dtype} at {p}")
        if w.device != first.device:
            raise ValueError(
                f"{name} must share one device, got {first.device} and {w.device} at {p}"
            )
        before = layers[p - 1]
        if w.shape[-1] != before.shape[-2]:
            raise ValueError(
                f"{name} must chain: W_{p + 1} needs {before.shape[-2]} columns, "
                f"got shape {tuple(w.shape)}"
            )
        if w.shape[:-2] != first.shape[:-2]:
            raise ValueError(
                f"{name} must share their leading dimensions, got {tuple(first.shape[:-2])} "
                f"and {tuple(w.shape[:-2])}"
            )
    return layers


def as_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """Return the user's generator, or a fresh one; the global one is never touched."""
    if generator is None:
        generator = torch.Generator(device=device)
        generator.seed()
    elif not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    return generator
