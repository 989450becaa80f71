"""Random tensors like given ones, for parameters, buffers and inputs; other batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

from dln_geometry.support import normal

# The rows of a batch, and about how many entries they may have.
_LEAST_ROWS, _MOST_ROWS = 4, 16
_ENTRIES = 2**12

_COARSE = {torch.float32, torch.float16, torch.bfloat16}
_COARSER = {Tensor.float, Tensor.half, Tensor.bfloat16}
# Products of which torch has none in double precision.
_GROUPED_PRODUCTS = {torch._grouped_mm, functional.grouped_mm}


def in_double(x: Any) -> Any:
    """Return a real or complex tensor in double precision, anything else as it is."""
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
        return x
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def kept_double(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Return a call that keeps double precision where it asked for less, or has none."""
    if func in _COARSER:
        # A conversion would be a copy, with strides of its own.
        same = isinstance(args[0], Tensor) and args[0].dtype is torch.float64
        return (torch.clone if same else Tensor.double), args[:1], {}
    if func in _GROUPED_PRODUCTS:
        return _grouped_product, args, kwargs
    args = tuple(torch.float64 if isinstance(a, torch.dtype) and a in _COARSE else a for a in args)
    if kwargs.get("dtype") in _COARSE:
        kwargs["dtype"] = torch.float64
    return func, args, kwargs


def _grouped_product(
    x: Tensor, weight: Tensor, offs: Tensor | None = None, **others: Any
) -> Tensor:
    """Multiply runs of rows, up to each offset, by matrices of their own."""
    if others.get("bias") is not None or offs is None or x.ndim != 2 or weight.ndim != 3:
        return functional.grouped_mm(x, weight, offs=offs, **others)
    ends = [min(n, len(x)) for n in offs.tolist()]
    runs = zip([0, *ends], ends, weight, strict=False)
    parts = [x[start:end] @ w for start, end, w in runs]
    # Rows after the last offset belong to no matrix.
    rest = x.new_zeros(len(x) - ends[-1], weight.shape[-1])
    return torch.cat([*parts, rest])


def _is_dense(x: Any) -> bool:
    """Tell whether a value is a tensor with all its entries; sparse ones stay as they are."""
    return isinstance(x, Tensor) and x.layout is torch.strided


def shaken(x: Any, size: float, generator: torch.Generator, *, signs: bool = True) -> Any:
    """Return a tensor plus noise of `size` times its own; whole numbers stay as they are.

    With `signs`, what has one sign keeps it (variances, temperatures). Zeros get numbers of the
    size that initialisations give. From a size of 1 on, a few large entries do not stay, since they
    may turn units off. Tensors with infinite entries stay as they are (masks).
    """
    if not _is_dense(x) or not (x.is_floating_point() or x.is_complex()) or not x.numel():
        return x
    if not bool(torch.isfinite(x).all()):
        return x
    noise = normal(x.shape, generator, x.dtype, x.device)
    if signs and not x.is_complex() and bool((x > 0).all() | (x < 0).all()):
        return x * torch.exp(min(size, 1.0) * noise)
    entries = x.abs()[x != 0]
    if not entries.numel():
        return (x[0].numel() if x.ndim > 1 else 1) ** -0.5 * min(size, 1.0) * noise
    # The median does not see a few large entries; the other one sees through many tiny ones.
    some = entries[:: 1 + entries.numel() // 10_000]
    typical = torch.maximum(some.median(), 0.01 * entries.square().mean().sqrt())
    if size >= 1:
        x = x * (3 * typical / x.abs().clamp(min=3 * typical))
    return x + size * typical * noise


def shaken_data(x: Any, size: float, generator: torch.Generator) -> Any:
    """Return buffers or inputs plus noise as `shaken`; those of two values are masks, and stay."""
    if not _is_dense(x) or not x.is_floating_point() or not x.numel():
        return x
    return x if is_mask(x) else shaken(x, size, generator)


def is_mask(x: Any) -> bool:
    """Tell whether a real tensor has two values."""
    if not _is_dense(x) or not x.is_floating_point() or not x.numel():
        return False
    low, high = x.min(), x.max()
    return bool(low < high) and bool(((x == low) | (x == high)).all())


def reordered(x: Any, generator: torch.Generator) -> Any:
    """Return the entries of a mask in random order, anything else as it is."""
    if not is_mask(x):
        return x
    order = torch.randperm(x.numel(), generator=generator, device=generator.device)
    return x.flatten()[order.to(x.device)].reshape(x.shape)


def resampled(x: Any, generator: torch.Generator, rows: int = 0) -> Any:
    """Return whole numbers drawn anew among those of a tensor, anything else as it is.

    If they are the rows of a table, all its rows are drawn from.
    """
    kinds = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
    if not _is_dense(x) or x.dtype not in kinds or (x.numel() < 2 and not rows):
        return x
    options: Any = {"generator": generator, "device": generator.device}
    if rows:
        return torch.randint(rows, x.shape, **options).to(x)
    chosen = torch.randint(x.numel(), (x.numel(),), **options).to(x.device)
    return x.flatten()[chosen].reshape(x.shape)


def with_some_rows(call: Any, most: int = _MOST_ROWS) -> Any:
    """Return arguments with rows repeated or left out: 16, fewer if rows are long, at least 4."""
    tensors = [x for x in tree_leaves(call) if isinstance(x, Tensor) and x.ndim and x.numel()]
    if not tensors or not all(map(_is_dense, tensors)):
        return call
    rows = tensors[0].shape[0]
    count = min(max(_ENTRIES * rows // sum(x.numel() for x in tensors), _LEAST_ROWS), most)

    def chosen(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] != rows:
            return x
        return x[torch.arange(count, device=x.device) % rows]

    return tree_map(chosen, call)


@contextmanager
def same_draws(devices: Sequence[int] = ()) -> Iterator[None]:
    """Put the global states of random numbers back afterwards, those of GPUs by their numbers."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
