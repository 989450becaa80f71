"""Convert arguments into tensors, refuse those that are no finite real arrays; kinds of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dln_geometry.support.arguments import shown
from dln_geometry.support.array_likes import read_array

_Device = torch.device | str | None

# One formula serves tensors and small numpy arrays, where calls cost more than the work.
Array = TypeVar("Array", Tensor, np.ndarray)


def as_float_tensor(
    x: Any,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: _Device = None,
    holes: bool = False,
) -> Tensor:
    """Convert `x`, an array-like, to a finite real floating tensor.

    Integers and booleans become the default float, half precision becomes float32, in `x` as in
    `dtype` (no decomposition exists below it). Tensors and arrays stay where they are unless a
    `device` is asked for, whatever the default device is; plain numbers go to the default device.
    With `holes`, masked entries and missing values become NaN, and NaN is accepted.
    """
    tensor, own = read_array(x, name, holes=holes)
    if dtype is None:
        floating = own and tensor.is_floating_point()
        dtype = tensor.dtype if floating else torch.get_default_dtype()
    if device is None and not own:
        # torch.get_default_device() of torch 2.6 fails after set_default_device(None).
        device = torch.empty(0).device
    here = device is None or (isinstance(device, torch.device) and device == tensor.device)
    place = tensor.device if here else as_device(device)
    tensor = tensor.to(place, as_dtype(dtype))
    # Double precision is left alone by autocast.
    if tensor.dtype != torch.float64 and torch.is_autocast_enabled(place.type):
        raise ValueError(
            f"{name} must be used outside torch.autocast, which rounds products of {tensor.dtype} "
            f"to {torch.get_autocast_dtype(place.type)}: wrap the call in torch.autocast(..., "
            "enabled=False), or use float64"
        )
    try:
        known = tensor.detach()
        finite = bool((~torch.isinf(known) if holes else torch.isfinite(known)).all())
    except RuntimeError as error:
        # Tensors of torch.func.vmap and fake ones have no numbers that a program may look at.
        if type(tensor) is Tensor and not str(error).startswith("vmap"):
            raise
        raise TypeError(
            f"{name} must hold numbers, got a fake tensor or one inside torch.func.vmap: points "
            "take batches as leading dimensions"
        ) from error
    if not finite:
        refused = "finite or NaN, got" if holes else "finite, got NaN or"
        raise ValueError(f"{name} must be {refused} infinite entries")
    return tensor


def as_alike(**arrays: Any) -> list[Tensor]:
    """Convert arrays of one argument each; plain numbers take the type of the others."""
    read = {name: read_array(x, name) for name, x in arrays.items()}
    like = next((x for x, own in read.values() if own and x.is_floating_point()), None)
    return [
        as_float_tensor(arrays[name] if own or like is None else x.to(like), name)
        for name, (x, own) in read.items()
    ]


def as_device(device: Any, name: str = "device") -> torch.device:
    """Return a device that is there, with its index."""
    required = f"{name} must be one that is there, got {shown(device)}"
    if isinstance(device, bool) or not isinstance(device, str | torch.device | int):
        raise TypeError(f"{required}: it is no device")
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        if reason.startswith("Expected one of"):  # torch lists all that it was ever built for
            reason = "devices are cpu, cuda, cuda:1, mps and others that torch names"
        raise ValueError(f"{required}: {reason}") from None
    if place.type == "meta":
        raise ValueError(f"{required}: it holds no numbers")
    return place


def as_dtype(dtype: Any) -> torch.dtype:
    """Return the floating type to compute in: float32 in place of what is narrower."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a real floating type, got {dtype}")
    return torch.float32 if dtype.itemsize < 4 else dtype


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


def as_covector(
    g: Any, like: Tensor, shape: tuple[int, int], name: str, batch: Sequence[int] = ()
) -> Tensor:
    """Convert a matrix that goes with a point of this type: its last two dimensions are `shape`.

    Its leading dimensions must broadcast with `batch`, those of the point.
    """
    tensor = as_matrix(g, name, dtype=like.dtype, device=like.device)
    if tuple(tensor.shape[-2:]) != tuple(shape):
        required = f"shape (..., {shape[0]}, {shape[1]}) like the point"
        raise ValueError(f"{name} must have {required}, got {tuple(tensor.shape)}")
    common_batch(**{"point": batch, name: tensor.shape[:-2]})
    return tensor


def common_batch(**batches: Sequence[int]) -> torch.Size:
    """Return the leading dimensions of arguments broadcast together; refuse those that do not."""
    common = torch.Size()
    for name, batch in batches.items():
        if batch and common and tuple(batch) != tuple(common):
            try:
                common = torch.broadcast_shapes(common, batch)
            except RuntimeError:
                required = f"leading dimensions that broadcast with {tuple(common)}"
                raise ValueError(f"{name} must have {required}, got {tuple(batch)}") from None
        else:
            common = torch.Size(batch) or common
    return common


def as_factors(factors: Any, name: str = "factors") -> tuple[Tensor, ...]:
    """Convert a sequence of layers `(W_1, ..., W_N)`, input side first, that must chain."""
    if isinstance(factors, torch.nn.ParameterList):
        factors = tuple(factors)
    if isinstance(factors, Tensor | str | bytes | bytearray) or not isinstance(factors, Sequence):
        hint = ": tuple(stack) splits a stack, EndToEnd.of(x, depth) makes a point of a matrix"
        raise TypeError(
            f"{name} must be a sequence of matrices (W_1, ..., W_N), got {type(factors).__name__}"
            + (hint if isinstance(factors, Tensor | np.ndarray) else "")
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


def on_device(x: Tensor | np.ndarray) -> bool:
    """Tell whether an array lies on an accelerator, where reading a number makes the host wait."""
    return isinstance(x, Tensor) and x.device.type != "cpu"


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


def entries_of_product(left: Tensor, right: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return ``(left right^T)[..., rows, cols]``, shape (..., k), by gathering rows."""
    # Pieces that stay in the cache are ten times faster than all entries at once.
    budget = 2**15 if left.device.type == "cpu" else 2**24
    wide = left.shape[-1] * max(left.shape[:-2].numel(), right.shape[:-2].numel(), 1)
    places = zip(*(side.split(max(256, budget // wide)) for side in (rows, cols)), strict=True)
    pairs = ((left.index_select(-2, i), right.index_select(-2, j)) for i, j in places)
    return torch.cat([(a * b).sum(-1) for a, b in pairs], dim=-1)
