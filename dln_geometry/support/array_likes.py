"""Read array-likes: whatever holds numbers becomes a tensor, on the device where it lies.

Accepted: tensors and parameters, numpy arrays of every byte order, stride and width (more than
double precision is rounded to it), pandas and xarray objects, what has `__dlpack__`, `__array__`
or a buffer, points of this library (their matrix), numbers with `Fraction` and `Decimal`, and
nested sequences of all these. Refused, each with a sentence: masked entries and missing values
where nothing may be unknown, sparse and nested layouts, text, dates, bytes, sets, mappings.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.support.arguments import shown


def read_array(
    x: Any, name: str, *, holes: bool = False, complex: bool = False
) -> tuple[Tensor, bool]:
    """Return a dense tensor of the numbers of `x`, and whether its type was the user's choice.

    Plain numbers have no type of their own: they become float64, int64 or bool on the CPU.
    With `holes`, masked entries and missing values become NaN; complex numbers must be asked for.
    """
    try:
        tensor, own = _read(x, name, holes)
    except RecursionError:
        raise TypeError(f"{name} must be a real array or tensor, got a list in itself") from None
    if tensor.is_complex() and not complex:
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    return tensor, own


def sparse_places(x: Any, name: str) -> tuple[Tensor, Any, tuple[int, ...]] | None:
    """Return places (2, k), values (k,) and shape of a sparse matrix; None if `x` is none.

    Stored zeros stay, and so do places that are stored more than once.
    """
    if isinstance(x, Tensor) and x.layout != torch.strided:
        x = x if x.layout == torch.sparse_coo else x.to_sparse()
        if x.dense_dim() or x.sparse_dim() != 2:
            raise ValueError(f"{name} must have shape (m, n), got {tuple(x.shape)}")
        return x._indices(), x._values(), tuple(x.shape)
    coordinates = getattr(x, "tocoo", None)
    if coordinates is None:
        return None
    listed = coordinates()
    if len(listed.shape) != 2:
        raise ValueError(f"{name} must have shape (m, n), got {tuple(listed.shape)}")
    places = np.stack([np.asarray(k, np.int64) for k in (listed.row, listed.col)])
    return torch.from_numpy(places), listed.data, tuple(listed.shape)


def _read(x: Any, name: str, holes: bool) -> tuple[Tensor, bool]:
    if isinstance(x, Tensor):
        return _plain_tensor(x, name), True
    if isinstance(x, np.ndarray | np.generic):
        return _from_numpy(x, name, holes), True
    if isinstance(x, type) or (isinstance(x, memoryview) and isinstance(x.obj, bytes | bytearray)):
        raise _refusal(x, name)
    if isinstance(x, numbers.Number) or (holes and _is_missing(x)):
        return _number(x, name, holes), False
    # Points stand for their matrix, which keeps the graph of gradients that an array would lose.
    point = getattr(x, "differentiable_matrix", None)
    if isinstance(point, Tensor):
        return point, True
    if hasattr(x, "tocoo"):
        raise TypeError(f"{name} must be dense, got a {type(x).__name__}: pass its toarray()")
    if hasattr(x, "__dlpack__"):
        # Fails for types that torch has not; those may still be arrays.
        with suppress(Exception):
            return _plain_tensor(torch.from_dlpack(x), name), True
    if hasattr(x, "__array__") or hasattr(x, "__array_interface__") or _is_buffer(x):
        try:
            array = np.asarray(x)
        except Exception as error:
            raise _refusal(x, name, str(error)) from None
        return _from_numpy(array, name, holes), True
    if isinstance(x, Sequence) and not isinstance(x, str | bytes | bytearray):
        return _from_sequence(x, name, holes)
    raise _refusal(x, name)


def _plain_tensor(x: Tensor, name: str) -> Tensor:
    if isinstance(x, torch.masked.MaskedTensor):
        raise TypeError(f"{name} must be a plain tensor, got a MaskedTensor: pass its to_tensor()")
    if x.is_nested or x.layout != torch.strided:
        kind = "that of nested tensors" if x.is_nested else str(x.layout)
        raise TypeError(f"{name} must be dense, got the layout {kind}: pass its to_dense()")
    if x.is_quantized:
        raise TypeError(f"{name} must be a plain tensor, got {x.dtype}: pass its dequantize()")
    if x.is_meta:
        raise ValueError(f"{name} must hold numbers, got a tensor on the device meta")
    return x


def _from_numpy(x: Any, name: str, holes: bool) -> Tensor:
    """Return a tensor that shares the numbers of an array if torch can, else a copy."""
    if isinstance(x, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(x)
        if hidden.dtype != bool:
            raise _refusal(x, name)
        count = int(hidden.sum())
        if count and not holes:
            raise ValueError(f"{name} must have no masked entries, got {count}: fill or drop them")
        plain = x.data
        if count:
            plain = np.array(plain, dtype=None if plain.dtype.kind in "fcO" else np.float64)
            plain[hidden] = np.nan
        x = plain
    x = np.asarray(x)
    kind, size = x.dtype.kind, x.dtype.itemsize
    if kind == "O":
        values = [_number(v, name, holes, " in an array") for v in x.ravel().tolist()]
        return _in_one_type(values).reshape(x.shape)
    if kind not in "biufc":
        raise _refusal(x, name, f"its entries are {x.dtype}")
    if kind in "fc" and size > (8 if kind == "f" else 16):
        with np.errstate(over="ignore"):  # what overflows is refused as infinite
            x = x.astype(np.float64 if kind == "f" else np.complex128)
    elif kind == "u" and size > 1:
        fits = x.size == 0 or int(x.max()) < 2**63
        x = x.astype(np.int64 if fits else np.float64)
    elif not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    if not x.flags.writeable or any(step < 0 or step % x.itemsize for step in x.strides):
        x = np.array(x, order="C")
    return torch.from_numpy(x)


def _from_sequence(x: Sequence[Any], name: str, holes: bool) -> tuple[Tensor, bool]:
    kinds = set(map(type, x))
    if kinds <= {float, int, bool}:
        dtype = torch.float64 if float in kinds else None
        # An integer that is too large for torch raises, and is told below.
        with suppress(ValueError, RuntimeError, OverflowError):
            return torch.tensor(list(x), dtype=dtype, device="cpu"), False
    elif all(issubclass(kind, np.generic | float | int) for kind in kinds):
        return _from_numpy(np.asarray(x), name, holes), True
    parts = [_read(e, name, holes) for e in x]
    shapes = sorted({tuple(tensor.shape) for tensor, _ in parts})
    if len(shapes) > 1:
        raise ValueError(
            f"{name} must be rectangular, got parts of shapes {shapes[0]}, {shapes[1]}"
        )
    devices = sorted({str(tensor.device) for tensor, own in parts if own})
    if len(devices) > 1:
        raise ValueError(f"{name} must lie on one device, got {' and '.join(devices)}")
    typed = [tensor for tensor, own in parts if own]
    if typed and any(tensor.is_floating_point() or tensor.is_complex() for tensor in typed):
        # Plain numbers beside arrays take the type of the arrays.
        kind = _in_one_type([tensor[None][:0] for tensor in typed]).dtype
        kind = kind.to_complex() if any(tensor.is_complex() for tensor, _ in parts) else kind
        parts = [(tensor if own else tensor.to(kind), own) for tensor, own in parts]
    device = typed[0].device if typed else torch.device("cpu")
    return _in_one_type([tensor.to(device) for tensor, _ in parts]), bool(typed)


def _in_one_type(parts: Sequence[Tensor]) -> Tensor:
    """Stack tensors of one shape in the smallest type that holds all of theirs."""
    if not parts:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    return torch.stack([part.to(dtype) for part in parts])


def _number(x: Any, name: str, holes: bool, place: str = "") -> Tensor:
    """Return one number; None, NA and NaT are NaN where there may be `holes`."""
    if holes and _is_missing(x):
        x = np.nan
    if not isinstance(x, numbers.Number | np.bool_):
        raise TypeError(f"{name} must be a real array or tensor, got {shown(x)}{place}")
    if isinstance(x, bool | np.bool_):
        return torch.tensor(bool(x), device="cpu")
    if isinstance(x, numbers.Complex) and not isinstance(x, numbers.Real):
        return torch.tensor(x.__complex__(), dtype=torch.complex128, device="cpu")
    if isinstance(x, numbers.Integral) and -(2**63) <= int(x) < 2**63:
        return torch.tensor(int(x), device="cpu")
    try:
        value = float(x)  # pyright: ignore[reportArgumentType]
    except (OverflowError, ValueError, TypeError):
        raise ValueError(f"{name} must be finite, got {shown(x)}") from None
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def _is_missing(x: Any) -> bool:
    return x is None or type(x).__name__ in ("NAType", "NaTType")


def _is_buffer(x: Any) -> bool:
    if isinstance(x, bytes | bytearray):
        return False
    try:
        memoryview(x).release()
    except TypeError:
        return False
    return True


def _refusal(x: Any, name: str, why: str = "") -> TypeError:
    got = type(x).__name__ if not isinstance(x, type) else f"the class {x.__name__}"
    return TypeError(f"{name} must be a real array or tensor, got {got}{why and f': {why}'}")
