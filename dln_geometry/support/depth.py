"""A depth: a real number N >= 1 or infinity, with what the formulas need of it."""

from __future__ import annotations

import math
import numbers
from decimal import Decimal
from typing import Any, Self

import numpy as np
import torch

from dln_geometry.support.arguments import shown
from dln_geometry.support.tensors import Array, namespace

__all__ = ["Depth", "as_depth", "as_layer_count", "as_normalized"]


class Depth(float):
    """A depth N in [1, inf]: a float whose limit at infinity is taken here and nowhere else.

    numpy takes a `Depth` for a number in double precision: multiply float32 arrays by
    ``float(depth)``.

    Examples
    --------
    >>> from dln_geometry.support import Depth
    >>> Depth(4) == 4.0, Depth(4).layers, Depth(4).inverse
    (True, 4, 0.25)
    """

    __slots__ = ("exponent", "infinite", "inverse", "log")
    infinite: bool  # row and column space of X are frozen then
    inverse: float  # 1/N
    exponent: float  # 2 - 2/N, the degree of the kernel in the singular values
    log: float  # log N; 0 at infinity, where the kernel is that of A/N

    def __new__(cls, value: float | str) -> Self:
        self = super().__new__(cls, value)
        self.infinite = math.isinf(self)
        self.inverse = 1.0 / self
        self.exponent = 2.0 * (1.0 - 1.0 / self)
        self.log = 0.0 if self.infinite else math.log(self)
        return self

    def __reduce__(self) -> Any:
        return Depth, (float(self),)

    @property
    def layers(self) -> int:
        """N as a number of layers; ValueError if it is no finite integer."""
        if not self.is_integer():
            raise ValueError(
                f"depth must be a finite integer where factors are made, got {float(self)!r}"
            )
        return int(self)

    def unit(self, normalized: bool) -> float:
        """Return what the metric is divided by, N or 1; the limit of A/N counts as undivided."""
        return float(self) if normalized and not self.infinite else 1.0

    def root(self, s: Array) -> Array:
        """Return the flat coordinate ``s^{1/N}``; ``log s`` at infinity."""
        root: Any = namespace(s).log(s) if self.infinite else s ** (1.0 / self)
        return root

    def power(self, x: Array) -> Array:
        """Return ``s`` of the flat coordinate ``x = root(s)``."""
        power: Any = namespace(x).exp(x) if self.infinite else x ** float(self)
        return power


# A depth among the numbers of a file does not stop torch.load(weights_only=True).
torch.serialization.add_safe_globals([Depth])


def as_depth(depth: Any) -> Depth:
    """Return a depth in [1, inf]."""
    if isinstance(depth, Depth):
        return depth
    required = "depth must be a real number >= 1 or inf, got"
    if isinstance(depth, bool) or not isinstance(depth, numbers.Real | Decimal):
        raise TypeError(f"{required} {shown(depth)}")
    try:
        value = float(depth)
    except (OverflowError, ValueError):
        raise ValueError(f"{required} {shown(depth)}") from None
    if not value >= 1:
        raise ValueError(f"{required} {shown(depth)}")
    return Depth(value)


def as_layer_count(depth: Any) -> int:
    """Return a depth that counts layers: a finite integer >= 1."""
    return as_depth(depth).layers


def as_normalized(normalized: bool | None, depth: float) -> bool:
    """Resolve the normalisation of the metric: no 1/N at finite depth, A/N at infinity."""
    if normalized is None:
        return math.isinf(depth)
    if not isinstance(normalized, bool | np.bool_):
        raise TypeError(f"normalized must be True, False or None, got {shown(normalized)}")
    if math.isinf(depth) and not normalized:
        raise ValueError(
            "normalized must be True or None at infinite depth: only A/N has a limit, got False"
        )
    return bool(normalized)
