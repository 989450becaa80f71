"""Between the hosts' arrays and tensors: values, nesting, dtype and device are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_torch(x: Any, *, like: Tensor | None = None) -> Any:
    """Convert arrays to tensors, with the dtype and device of `like` if given.

    Tensors keep their graph, arrays their dtype, and where torch can their memory; numbers become
    0-dimensional tensors of numpy's dtype. Tuples and lists of arrays, named tuples included, keep
    their type and nesting; a list of plain numbers is one vector.
    """
    if _is_nested(x):
        return _map(lambda item: to_torch(item, like=like), x)
    if not isinstance(x, Tensor):
        array = np.asarray(x)
        if array.dtype.kind not in "biufc":
            raise TypeError(f"x must be made of numeric arrays, got {type(x).__name__}")
        # torch knows neither negative strides, nor read-only memory, nor foreign byte orders.
        if min(array.strides, default=0) < 0 or not array.flags.writeable:
            array = array.copy()
        x = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    return x if like is None else x.to(dtype=like.dtype, device=like.device)


def to_numpy(x: Any) -> Any:
    """Detach tensors and convert them to arrays; bfloat16, which numpy lacks, becomes float32.

    Tuples and lists keep their type and nesting, as in `to_torch`.
    """
    if _is_nested(x):
        return _map(to_numpy, x)
    if isinstance(x, Tensor):
        x = x.detach().cpu().resolve_conj().resolve_neg()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    array = np.asarray(x)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"x must be made of numeric tensors, got {type(x).__name__}")
    return array


def as_random(rng: Any) -> np.random.Generator:
    """Return numpy's generator that a user gave, or one of a seed; None is a fresh one."""
    try:
        if isinstance(rng, bool):
            raise TypeError("a bool is no seed")
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        got = f"{type(rng).__name__}: {error}"
        raise type(error)(f"rng must be a numpy.random.Generator or a seed, got {got}") from None


def _is_nested(x: Any) -> bool:
    """Tell whether `x` holds arrays (or nothing), unlike a list of numbers, which is one."""
    return isinstance(x, tuple | list) and (
        not x or any(isinstance(item, Tensor | np.ndarray) or _is_nested(item) for item in x)
    )


def _map(function: Any, x: tuple | list) -> Any:
    items = [function(item) for item in x]
    return type(x)(*items) if hasattr(x, "_fields") else type(x)(items)
