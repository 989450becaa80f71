"""One formula for tensors and for small numpy arrays, where the calls cost more than the work."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["Array", "epsilon", "least", "namespace"]

Array = TypeVar("Array", Tensor, np.ndarray)


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
