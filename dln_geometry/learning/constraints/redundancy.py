"""Coordinates as products of factors whose squares add up to a sparse norm, for `dcs_`.

The smallest value of half the sum of squares of N factors of c is N/2 times the sum of
``size^{2/N}`` over the sizes of c: a norm for N = 2.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from functools import reduce
from operator import matmul, mul
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.support import as_count, as_positive, as_rank, shown


class Redundancy(ABC):
    """Coordinates ``c = u s_1 ... s_{N-1}`` with one number s for all coordinates that share it.

    `depth` is the number N of factors, `spread` the size of s where a coordinate is zero.
    """

    def __init__(self, depth: int, spread: float | None) -> None:
        self.depth = depth
        self.spread = spread

    @abstractmethod
    def sizes(self, c: Tensor) -> Tensor:
        """Return the sizes that the norm adds up: absolute values, lengths, singular values."""

    def shared(self, s: Tensor, c: Tensor) -> Tensor:
        """Return the numbers s, one for each size, in the places of the coordinates c."""
        return s

    def factors(self, c: Tensor) -> tuple[Tensor, ...]:
        """Return factors whose product is `c`, away from the fixed points of gradient descent."""
        others = self.others(self.sizes(c))
        first = c / self.shared(others ** (self.depth - 1), c)
        return (first, *(others.clone() for _ in range(self.depth - 1)))

    def product(self, factors: tuple[Tensor, ...]) -> Tensor:
        """Return the coordinates whose factors these are."""
        return factors[0] * self.shared(reduce(mul, factors[1:]), factors[0])

    def others(self, sizes: Tensor) -> Tensor:
        """Return the common size of all factors but the first: ``(size + spread^N)^{1/N}``.

        At balanced factors, ``size^{1/N}``, gradient descent cannot change the sign of a
        coordinate: they lie on a mirror of the product, the exchange of factors.
        """
        spread = self.spread
        if spread is None:
            # As large as balanced factors are; if all coordinates are zero there is no scale.
            spread = float(sizes.mean()) ** (1.0 / self.depth) or 0.1
        return (sizes + spread**self.depth) ** (1.0 / self.depth)


class Elementwise(Redundancy):
    """``c = u_1 * ... * u_N``: the sum of ``|c_i|^{2/N}``, for N = 2 the l_1 norm."""

    def sizes(self, c: Tensor) -> Tensor:
        return c.abs()


class Grouped(Redundancy):
    """Groups of entries, numbered from 0 on by `labels` (int64): the sum of ``|c_g|^{2/N}``."""

    def __init__(self, labels: Tensor, depth: int, spread: float | None) -> None:
        super().__init__(depth, spread)
        self.labels = labels
        self.count = int(labels.max()) + 1

    def sizes(self, c: Tensor) -> Tensor:
        labels = self.labels.to(c.device).reshape(-1)
        squares = c.new_zeros(self.count).index_add(0, labels, c.reshape(-1).square())
        return squares.sqrt()

    def shared(self, s: Tensor, c: Tensor) -> Tensor:
        return s[self.labels.to(c.device)]


class Sliced(Redundancy):
    """Groups that are the slices along one axis: `Grouped` without the cost of a gather."""

    def __init__(self, axis: int, depth: int, spread: float | None) -> None:
        super().__init__(depth, spread)
        self.axis = axis

    def sizes(self, c: Tensor) -> Tensor:
        slices = c.movedim(self.axis, 0).reshape(c.shape[self.axis], -1)
        return torch.linalg.vector_norm(slices, dim=1)

    def shared(self, s: Tensor, c: Tensor) -> Tensor:
        return s.reshape([-1 if a == self.axis else 1 for a in range(c.ndim)])


class LowRank(Redundancy):
    """``W = W_1 ... W_N``: the sum of ``s_i^{2/N}``, for N = 2 the nuclear norm.

    W is the parameter of this `shape` as a matrix (first axis, rest); `rank` is the inner width.
    """

    def __init__(self, shape: tuple[int, ...], rank: int, depth: int, spread: float | None) -> None:
        super().__init__(depth, spread)
        self.shape = shape
        self.rank = rank

    def factors(self, c: Tensor) -> tuple[Tensor, ...]:
        x = c.reshape(self.shape[0], -1)
        # svd does not exist below single precision.
        x = x if c.itemsize >= 4 else x.float()
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        s = torch.where(s > torch.finfo(s.dtype).eps * max(x.shape) * s[0], s, 0.0)
        if bool((s[self.rank :] > 0).any()):
            raise ValueError(
                f"rank must be at least that of the parameter, {int((s > 0).sum())}, to keep "
                f"its value, got {self.rank}"
            )
        u, s, vh = u[:, : self.rank], s[: self.rank], vh[: self.rank]
        others = self.others(s)
        inner = (torch.diag(others) for _ in range(self.depth - 2))
        first = u * (s / others ** (self.depth - 1))
        # LBFGS needs contiguous parameters, which singular vectors are not.
        return tuple(w.to(c.dtype).contiguous() for w in (first, *inner, others[:, None] * vh))

    def product(self, factors: tuple[Tensor, ...]) -> Tensor:
        return reduce(matmul, factors).reshape(self.shape)

    def sizes(self, c: Tensor) -> Tensor:
        return torch.linalg.svdvals(c.reshape(self.shape[0], -1))


def redundancy_of(
    parameter: Tensor, size: int | None, groups: Any, rank: Any, depth: Any, spread: Any
) -> Redundancy:
    """Return the redundancy for the arguments of `dcs_`, with an `o` of that many coordinates."""
    n = as_count(depth, "depth", 2)
    if spread is not None:
        spread = as_positive(spread, "spread")
    if isinstance(groups, np.ndarray) and groups.dtype.kind in "iu":
        groups = torch.as_tensor(groups)
    elif groups is not None and not isinstance(groups, str | tuple | Tensor):
        raise TypeError(
            f"groups must be a name, the shape of a block or a tensor of integers, got "
            f"{shown(groups)}"
        )
    if rank is not None and (not isinstance(groups, str) or groups != "nuclear"):
        raise ValueError('rank must come with groups="nuclear"')
    if groups is None:
        return Elementwise(n, spread)
    shape = tuple(parameter.shape)
    if isinstance(groups, Tensor):
        labels = _as_labels(groups, shape if size is None else (size,))
        return Grouped(labels, n, spread)
    if size is not None:
        raise ValueError(f"groups must be None or a tensor of k numbers with o, got {groups!r}")
    if groups == "nuclear":
        if len(shape) < 2:
            raise ValueError(f"the parameter must be a matrix, got shape {shape}")
        full = min(shape[0], parameter.numel() // shape[0])
        r = full if rank is None else as_rank(rank, full, "the full rank")
        return LowRank(shape, r, n, spread)
    if groups in ("row", "column"):
        axis = ("row", "column").index(groups)
        if axis >= len(shape):
            raise ValueError(f"groups must fit the parameter of shape {shape}, got {groups!r}")
        return Sliced(axis, n, spread)
    if not isinstance(groups, tuple) or not all(
        isinstance(b, numbers.Integral) and not isinstance(b, bool) and int(b) > 0 for b in groups
    ):
        raise ValueError(
            'groups must be None, "row", "column", "nuclear", the positive shape of a block, or a '
            f"tensor of integers, got {groups!r}"
        )
    if len(groups) != len(shape):
        raise ValueError(f"groups must have {len(shape)} numbers, got {groups!r}")
    return Grouped(_block_labels(shape, groups), n, spread)


def _as_labels(labels: Tensor, coordinates: tuple[int, ...]) -> Tensor:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"groups must be integers, got {labels.dtype}")
    if tuple(labels.shape) != coordinates:
        raise ValueError(f"groups must have shape {coordinates}, got {tuple(labels.shape)}")
    return torch.unique(labels, return_inverse=True)[1]


def _block_labels(shape: tuple[int, ...], block: tuple[int, ...]) -> Tensor:
    """Return the number of the block of each entry; at the end of an axis blocks may be shorter."""
    label = torch.zeros(shape, dtype=torch.int64)
    for axis, (size, length) in enumerate(zip(shape, block, strict=True)):
        along = torch.arange(size) // length
        others = len(shape) - 1 - axis
        label = label * math.ceil(size / length) + along.reshape(-1, *(1,) * others)
    return label
