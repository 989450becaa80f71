"""Convert arguments into tensors, refuse those that are no finite real arrays; kinds of arrays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dln_geometry.support.arguments import as_choice, shown
from dln_geometry.support.array_likes import read_array

_Device = torch.device | str | None

# One formula serves tensors and small numpy arrays, where calls cost more than the work.
Array = TypeVar("Array", Tensor, np.ndarray)

FIELDS = {"real": 1, "complex": 2, "quaternion": 4}
"""The fields of the entries of a matrix, with their dimensions over the real numbers."""


def as_float_tensor(
    x: Any,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: _Device = None,
    holes: bool = False,
    complex: bool = False,
) -> Tensor:
    """Convert `x`, an array-like, to a finite real floating tensor, or a `complex` one if allowed.

    Integers and booleans become the default float, half precision becomes float32, in `x` as in
    `dtype` (no decomposition exists below it). Tensors and arrays stay where they are unless a
    `device` is asked for, whatever the default device is; plain numbers go to the default device.
    With `holes`, masked entries and missing values become NaN, and NaN is accepted.
    """
    tensor, own = read_array(x, name, holes=holes, complex=complex)
    if dtype is None:
        floating = own and (tensor.is_floating_point() or tensor.is_complex())
        dtype = tensor.dtype if floating else torch.get_default_dtype()
        dtype = dtype.to_complex() if tensor.is_complex() else dtype
    if device is None and not own:
        # torch.get_default_device() of torch 2.6 fails after set_default_device(None).
        device = torch.empty(0).device
    here = device is None or (isinstance(device, torch.device) and device == tensor.device)
    place = tensor.device if here else as_device(device)
    dtype = as_dtype(dtype, complex=complex)
    if tensor.is_complex() and not dtype.is_complex:
        raise TypeError(f"{name} must be real where {dtype} is asked for, got {tensor.dtype}")
    tensor = tensor.to(place, dtype)
    # Double precision and complex numbers are left alone by autocast.
    rounded = tensor.dtype != torch.float64 and not tensor.is_complex()
    if rounded and torch.is_autocast_enabled(place.type):
        raise ValueError(
            f"{name} must be used outside torch.autocast, which rounds products of {tensor.dtype} "
            f"to {torch.get_autocast_dtype(place.type)}: wrap the call in torch.autocast(..., "
            "enabled=False), or use float64"
        )
    try:
        known = tensor.detach()
        # A sum takes a tenth of the time; it may overflow where all numbers are finite.
        finite = bool(torch.isfinite(known.sum()))
        if not finite:
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


def as_alike(*, complex: bool = False, real: Collection[str] = (), **arrays: Any) -> list[Tensor]:
    """Convert arrays of one argument each; plain numbers take the type of the others.

    They may be complex if that is allowed, but for those whose names are in `real`.
    """
    allowed = {name: complex and name not in real for name in arrays}
    read = {name: read_array(x, name, complex=allowed[name]) for name, x in arrays.items()}
    typed = (x for x, own in read.values() if own and (x.is_floating_point() or x.is_complex()))
    like = next(typed, None)
    if any(x.is_complex() for x, own in read.values() if not own):
        dtype = (torch.get_default_dtype() if like is None else like.dtype).to_complex()
        like = torch.empty(0, dtype=dtype, device=None if like is None else like.device)
    return [
        as_float_tensor(
            arrays[name]
            if own or like is None
            else x.to(like if allowed[name] or not like.is_complex() else like.real),
            name,
            complex=allowed[name],
        )
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


def as_dtype(dtype: Any, *, complex: bool = False) -> torch.dtype:
    """Return the floating type to compute in: single precision in place of what is narrower."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    if complex and dtype.is_complex:
        return torch.complex64 if dtype.itemsize < 8 else dtype
    if not dtype.is_floating_point:
        kinds = "floating or complex" if complex else "real floating"
        raise TypeError(f"dtype must be a {kinds} type, got {dtype}")
    return torch.float32 if dtype.itemsize < 4 else dtype


def as_matrix(
    x: Any,
    name: str = "x",
    *,
    dtype: torch.dtype | None = None,
    device: _Device = None,
    complex: bool = False,
) -> Tensor:
    """Convert `x` to a finite, non-empty tensor of shape (..., m, n)."""
    tensor = as_float_tensor(x, name, dtype=dtype, device=device, complex=complex)
    if tensor.ndim < 2:
        raise ValueError(f"{name} must have shape (..., m, n), got {tuple(tensor.shape)}")
    if tensor.shape[-1] == 0 or tensor.shape[-2] == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(tensor.shape)}")
    return tensor


def as_covector(
    g: Any, like: Tensor, shape: tuple[int, int], name: str, batch: Sequence[int] = ()
) -> Tensor:
    """Convert a matrix that goes with a point of this type: its last two dimensions are `shape`.

    It may be complex where the point, a matrix or a layer `like` of it, is.
    Its leading dimensions must broadcast with `batch`, those of the point.
    """
    tensor = as_matrix(g, name, dtype=like.dtype, device=like.device, complex=like.is_complex())
    if tuple(tensor.shape[-2:]) != tuple(shape):
        required = f"shape (..., {shape[0]}, {shape[1]}) like the point"
        raise ValueError(f"{name} must have {required}, got {tuple(tensor.shape)}")
    common_batch(**{"point": batch, name: tensor.shape[:-2]})
    return tensor


def broadcast_shapes(*shapes: Sequence[int]) -> torch.Size:
    """Return the common shape; the first call of torch's function takes a second for imports."""
    try:
        return torch.Size(np.broadcast_shapes(*map(tuple, shapes)))
    except ValueError as error:
        raise RuntimeError(str(error)) from None


def common_batch(**batches: Sequence[int]) -> torch.Size:
    """Return the leading dimensions of arguments broadcast together; refuse those that do not."""
    common = torch.Size()
    for name, batch in batches.items():
        if batch and common and tuple(batch) != tuple(common):
            try:
                common = broadcast_shapes(common, batch)
            except RuntimeError:
                required = f"leading dimensions that broadcast with {tuple(common)}"
                raise ValueError(f"{name} must have {required}, got {tuple(batch)}") from None
        else:
            common = torch.Size(batch) or common
    return common


def as_factors(factors: Any, name: str = "factors", *, complex: bool = False) -> tuple[Tensor, ...]:
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
    layers = tuple(as_matrix(w, f"{name}[{p}]", complex=complex) for p, w in enumerate(factors))
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


def field_dimension(field: Any, dtype: torch.dtype) -> int:
    """Return the real dimension of a field by its name; of None, that of the numbers of a type."""
    if field is None:
        return 2 if dtype.is_complex else 1
    return FIELDS[as_choice(field, tuple(FIELDS), "field")]


def refuse_complex(what: str, dtype: torch.dtype) -> None:
    """Raise TypeError for a complex type where a function is made for real numbers alone."""
    if dtype.is_complex:
        raise TypeError(f"{what} must be real here, got {dtype}")


def absolute_square(x: Tensor) -> Tensor:
    """Return ``|x|^2`` of every entry, real."""
    return x.real.square() + x.imag.square() if x.is_complex() else x.square()


def real_product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``Re(conj(a) b)`` of every entry, the summands of the inner product."""
    if a.is_complex() and b.is_complex():
        return a.real * b.real + a.imag * b.imag
    return a.real * b.real if a.is_complex() or b.is_complex() else a * b


def as_double(x: Tensor) -> Tensor:
    """Return a tensor in double precision, real or complex as it is."""
    return x.to(torch.complex128) if x.is_complex() else x.double()


def phases(x: Tensor) -> Tensor:
    """Return ``x / |x|``, the signs of real numbers, and 1 for 0."""
    if not x.is_complex():
        return torch.where(x < 0, -1.0, 1.0).to(x.dtype)
    size = x.abs()
    return torch.where(size > 0, x / torch.where(size > 0, size, 1.0), 1.0)


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
    rows, cols = (torch.as_tensor(x, device=left.device) for x in (rows, cols))
    # Pieces that stay in the cache are ten times faster than all entries at once.
    budget = 2**15 if left.device.type == "cpu" else 2**24
    wide = left.shape[-1] * max(left.shape[:-2].numel(), right.shape[:-2].numel(), 1)
    places = zip(*(side.split(max(256, budget // wide)) for side in (rows, cols)), strict=True)
    pairs = ((left.index_select(-2, i), right.index_select(-2, j)) for i, j in places)
    return torch.cat([(a * b).sum(-1) for a, b in pairs], dim=-1)


def matrix_exponential(m: Tensor) -> Tensor:
    """Return the exponential of matrices, shape (..., n, n), to rounding.

    Torch's is accurate for two matrices or more only: that of a single one in double precision,
    of norm 0.01 to 0.05, has errors up to 1e-9.
    """
    if m.numel() != m.shape[-1] ** 2:
        return torch.linalg.matrix_exp(m)
    return torch.linalg.matrix_exp(torch.stack([m, m]))[0]
