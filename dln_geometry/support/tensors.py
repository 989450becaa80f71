"""Convert arguments into tensors, refuse those that are no finite real arrays; kinds of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

_Device = torch.device | str | None

# One formula serves tensors and small numpy arrays, where calls cost more than the work.
Array = TypeVar("Array", Tensor, np.ndarray)


def as_float_tensor(
    x: Any, name: str, *, dtype: torch.dtype | None = None, device: _Device = None
) -> Tensor:
    """Convert `x` to a finite real floating tensor.

    Integers and booleans become the default float, half precision becomes float32, in `x` as in
    `dtype` (no decomposition exists below it).
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
        new = not hasattr(x, "dtype")
        tensor = torch.as_tensor(x, dtype=dtype, device=device) if new else tensor.to(dtype)
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
    x: Any, name: str = "x", *, dtype: torch.dtype | None = None, device: _Device = None
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
        required = f"shape (..., {shape[0]}, {shape[1]}) like the point"
        raise ValueError(f"{name} must have {required}, got {tuple(tensor.shape)}")
    return tensor


def as_factors(factors: Any, name: str = "factors") -> tuple[Tensor, ...]:
    """Convert a sequence of layers `(W_1, ..., W_N)`, input side first, that must chain."""
    if isinstance(factors, Tensor | str) or not isinstance(factors, Sequence):
        hint = ": tuple(stack) splits a stack, EndToEnd.of(x, depth) makes a point of a matrix"
        raise TypeError(
            f"{name} must be a sequence of matrices (W_1, ..., W_N), got {type(factors).__name__}"
            + (hint if isinstance(factors, Tensor) else "")
        )
    if len(factors) == 0:
        raise ValueError(f"{name} must hold at least one matrix, got none")
    layers = tuple(as_matrix(w, f"{name}[{p}]") for p, w in enumerate(factors))
    first = layers[0]
    for p, (before, w) in enumerate(pairwise(layers), start=1):
        for kind in ("dtype", "device"):
            if (own := getattr(w, kind)) != (common := getattr(first, kind)):
                raise ValueError(f"{name} must share one {kind}, got {common} and {own} at {p}")
        if w.shape[-1] != (d := before.shape[-2]):
            shape = tuple(w.shape)
            raise ValueError(f"{name} must chain: W_{p + 1} needs {d} columns, got shape {shape}")
        if w.shape[:-2] != first.shape[:-2]:
            batches = f"{tuple(first.shape[:-2])} and {tuple(w.shape[:-2])}"
            raise ValueError(f"{name} must share their leading dimensions, got {batches}")
    return layers


def namespace(x: Tensor | np.ndarray) -> Any:
    """Return the library of an array: the two share the names of elementary functions."""
    return torch if isinstance(x, Tensor) else np


def epsilon(x: Tensor | np.ndarray) -> float:
    """Return the distance from 1 to the next number of an array's type."""
    return _of_type(x.dtype)[0]


def least(x: Tensor | np.ndarray) -> float:
    """Return sqrt(tiny): adding it changes no number except 0, and 0/0 becomes 1."""
    return _of_type(x.dtype)[1]


@cache
def _of_type(dtype: Any) -> tuple[float, float]:
    info = torch.finfo(dtype) if isinstance(dtype, torch.dtype) else np.finfo(dtype)
    return float(info.eps), float(info.tiny) ** 0.5
