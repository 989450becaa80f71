"""Redundant factors whose squares add up to a sparse norm: what `dcs_` is made of.

Each kind writes coordinates c as a product of N factors. The smallest value of half the sum of
squares of the factors is then N/2 times the sum of ``size^{2/N}``: a norm for N = 2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

__all__ = ["Elementwise", "Grouped", "LowRank", "Redundancy", "Sliced", "block_labels"]


class Redundancy(ABC):
    """A way to write coordinates as a product of `depth` factors.

    Parameters
    ----------
    depth : int
        Number N of factors, at least 2.
    spread : float or None
        Size of the factors but the first where a coordinate is zero.
    """

    def __init__(self, depth: int, spread: float | None) -> None:
        self.depth = depth
        self.spread = spread

    @abstractmethod
    def factors(self, c: Tensor) -> tuple[Tensor, ...]:
        """Return factors whose product is `c`, away from the fixed points of gradient descent."""

    @abstractmethod
    def product(self, factors: tuple[Tensor, ...]) -> Tensor:
        """Return the coordinates that the factors multiply to."""

    @abstractmethod
    def sizes(self, c: Tensor) -> Tensor:
        """Return the sizes that the norm adds up: absolute values, lengths, singular values."""

    def _others(self, sizes: Tensor) -> Tensor:
        """Return the common size of all factors but the first, which carries the rest.

        It is ``(size + spread^N)^{1/N}``: larger than balance would have it. Balanced factors, and
        zeros most of all, lie on a mirror of the product (the exchange of factors), where gradient
        descent cannot change the sign of a coordinate.
        """
        spread = self.spread
        if spread is None:
            # As large as balanced factors are; but where all are zero there is no scale.
            typical = float(sizes.mean()) ** (1.0 / self.depth)
            spread = typical if typical > 0 else 0.1
        return (sizes + spread**self.depth) ** (1.0 / self.depth)


class Elementwise(Redundancy):
    """``c = u_1 * ... * u_N``: the sum of ``|c_i|^{2/N}``, for N = 2 the l_1 norm."""

    def factors(self, c: Tensor) -> tuple[Tensor, ...]:
        others = self._others(c.abs())
        first = c / others ** (self.depth - 1)
        return (first, *(others.clone() for _ in range(self.depth - 1)))

    def product(self, factors: tuple[Tensor, ...]) -> Tensor:
        return _multiply(factors)

    def sizes(self, c: Tensor) -> Tensor:
        return c.abs()


class Grouped(Redundancy):
    """``c_g = u_g s_1,g ... s_{N-1},g``, one number s for a group: the sum of ``|c_g|^{2/N}``.

    Parameters
    ----------
    labels : Tensor of int64, the shape of the coordinates
        Number of the group of each entry, from 0 on.
    depth, spread
        As in `Redundancy`.
    """

    def __init__(self, labels: Tensor, depth: int, spread: float | None) -> None:
        super().__init__(depth, spread)
        self.labels = labels
        self.count = int(labels.max()) + 1

    def factors(self, c: Tensor) -> tuple[Tensor, ...]:
        others = self._others(self.sizes(c))
        first = c / (others ** (self.depth - 1))[self.labels.to(c.device)]
        return (first, *(others.clone() for _ in range(self.depth - 1)))

    def product(self, factors: tuple[Tensor, ...]) -> Tensor:
        return factors[0] * _multiply(factors[1:])[self.labels.to(factors[0].device)]

    def sizes(self, c: Tensor) -> Tensor:
        labels = self.labels.to(c.device).reshape(-1)
        squares = c.new_zeros(self.count).index_add(0, labels, c.reshape(-1).square())
        return squares.sqrt()


class Sliced(Redundancy):
    """Groups that are the slices along one axis, as in `Grouped` but without a gather.

    Parameters
    ----------
    axis : int
        The slices ``c[k]`` of axis 0, ``c[:, k]`` of axis 1.
    depth, spread
        As in `Redundancy`.
    """

    def __init__(self, axis: int, depth: int, spread: float | None) -> None:
        super().__init__(depth, spread)
        self.axis = axis

    def factors(self, c: Tensor) -> tuple[Tensor, ...]:
        others = self._others(self.sizes(c))
        first = c / self._spread_out(others ** (self.depth - 1), c)
        return (first, *(others.clone() for _ in range(self.depth - 1)))

    def product(self, factors: tuple[Tensor, ...]) -> Tensor:
        return factors[0] * self._spread_out(_multiply(factors[1:]), factors[0])

    def sizes(self, c: Tensor) -> Tensor:
        return torch.linalg.vector_norm(
            c.movedim(self.axis, 0).reshape(c.shape[self.axis], -1), dim=1
        )

    def _spread_out(self, s: Tensor, c: Tensor) -> Tensor:
        return s.reshape([-1 if a == self.axis else 1 for a in range(c.ndim)])


class LowRank(Redundancy):
    """``W = W_1 ... W_N``: the sum of ``s_i^{2/N}``, for N = 2 the nuclear norm.

    Parameters
    ----------
    shape : tuple of int
        Of the parameter: a matrix (first, rest).
    rank : int
        Inner width of the factors.
    depth, spread
        As in `Redundancy`.
    """

    def __init__(self, shape: tuple[int, ...], rank: int, depth: int, spread: float | None) -> None:
        super().__init__(depth, spread)
        self.shape = shape
        self.rank = rank

    def factors(self, c: Tensor) -> tuple[Tensor, ...]:
        x = c.reshape(self.shape[0], -1)
        dtype = x.dtype
        # No decomposition exists below single precision.
        x = x if dtype.itemsize >= 4 else x.float()
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        s = torch.where(s > torch.finfo(s.dtype).eps * max(x.shape) * s[0], s, 0.0)
        if bool((s[self.rank :] > 0).any()):
            raise ValueError(
                f"rank must be at least that of the parameter, {int((s > 0).sum())}, to keep "
                f"its value, got {self.rank}"
            )
        u, s, vh = u[:, : self.rank], s[: self.rank], vh[: self.rank]
        others = self._others(s)
        inner = (torch.diag(others) for _ in range(self.depth - 2))
        first = u * (s / others ** (self.depth - 1))
        last = others.unsqueeze(-1) * vh
        # Some optimisers (LBFGS) want their parameters contiguous, which singular vectors are not.
        return tuple(w.to(dtype).contiguous() for w in (first, *inner, last))

    def product(self, factors: tuple[Tensor, ...]) -> Tensor:
        x = factors[0]
        for factor in factors[1:]:
            x = x @ factor
        return x.reshape(self.shape)

    def sizes(self, c: Tensor) -> Tensor:
        return torch.linalg.svdvals(c.reshape(self.shape[0], -1))


def block_labels(shape: tuple[int, ...], block: tuple[int, ...]) -> Tensor:
    """Return the number of the block of each entry of a tensor, blocks being cut off at its end.

    Parameters
    ----------
    shape, block : tuple of int
        Of the tensor and of a block, as many numbers.
    """
    label = torch.zeros(shape, dtype=torch.int64)
    for axis, (size, length) in enumerate(zip(shape, block, strict=True)):
        along = torch.arange(size) // length
        count = math.ceil(size / length)
        view = [1] * len(shape)
        view[axis] = size
        label = label * count + along.reshape(view)
    return label


def _multiply(factors: tuple[Any, ...]) -> Tensor:
    x = factors[0]
    for factor in factors[1:]:
        x = x * factor
    return x
