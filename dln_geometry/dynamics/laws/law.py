"""A law of one number as a value: density, distribution function, quantiles, moments, samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.support import (
    as_device,
    as_dtype,
    as_float_tensor,
    as_generator,
    as_positive,
    as_real,
    as_size,
)


class ProbabilityLaw(ABC):
    """A law on the interval ``[low, high]``, without atoms.

    Functions compute in double precision and return the dtype and device of their argument.

    Examples
    --------
    >>> law = dln.laws.quarter_circle(1.0)
    >>> isinstance(law, dln.laws.ProbabilityLaw), law.low, law.high
    (True, 0.0, 1.0)
    >>> law.density([0.0, 1.0]), law.distribution([0.0, 1.0])
    (tensor([1.2732, 0.0000]), tensor([0., 1.]))
    """

    low: float
    """Where the law begins."""
    high: float
    """Where the law ends, possibly infinity."""
    least_order: float = 0.0
    """Moments are finite for orders above this, and for order 0."""

    def density(self, x: Any) -> Tensor:
        """Return the density at x, of the shape of x; 0 outside the interval, perhaps inf at 0."""
        return self._within(x, self._density, 0.0, 0.0)

    def distribution(self, x: Any) -> Tensor:
        """Return the probability of values up to x, of the shape of x."""
        return self._within(x, self._distribution, 0.0, 1.0)

    def quantile(self, q: Any) -> Tensor:
        """Return the smallest x whose distribution function reaches q in [0, 1]."""
        given = as_float_tensor(q, "q")
        if not bool(((given >= 0) & (given <= 1)).all()):
            raise ValueError(f"q must lie in [0, 1], got {given.min():g} to {given.max():g}")
        x = self._quantile(given.to(torch.float64))
        x = torch.where(given == 0, self.low, torch.where(given == 1, self.high, x))
        return x.to(given.dtype)

    def moment(self, k: float) -> float:
        """Return ``E x^k``; k is real where the law lives on positive numbers."""
        k = as_real(k, "k")
        if not (self.least_order < k < math.inf or k == 0):
            raise ValueError(f"k must be finite and above {self.least_order:g}, got {k}")
        if self.low < 0 and not k.is_integer():
            raise ValueError(f"k must be an integer where the law has negative values, got {k}")
        return 1.0 if k == 0 else self._moment(k)

    def sample(
        self,
        size: Sequence[int] | int = (),
        *,
        generator: torch.Generator | int | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Return independent numbers of this law, of shape `size`."""
        shape, dtype = as_size(size, least=0), as_dtype(dtype)
        place = as_device("cpu" if device is None else device)
        source = as_generator(generator, place)
        q = torch.rand(shape, generator=source, dtype=torch.float64, device=source.device)
        return self._quantile(q.to(place)).to(dtype)

    def power(self, exponent: float, scale: float = 1.0) -> ProbabilityLaw:
        """Return the law of ``scale x^exponent``, for a law of positive numbers.

        Examples
        --------
        Singular values from their squares:

        >>> dln.laws.fuss_catalan(1).power(0.5).quantile([0.0, 1.0])
        tensor([0., 2.])
        """
        if self.low < 0:
            raise ValueError(f"power needs a law of positive numbers, got one from {self.low:g} on")
        return PowerLaw(self, as_positive(exponent, "exponent"), as_positive(scale, "scale"))

    def _within(self, x: Any, value: Any, below: float, above: float) -> Tensor:
        """Return a function of x inside the interval, and constants outside."""
        given = as_float_tensor(x, "x")
        x = given.to(torch.float64)
        inside = (x >= self.low) & (x <= self.high)
        outside = torch.where(x > self.high, above, below)
        # Anywhere inside; what is computed there is thrown away.
        some = 1.0 if math.isinf(self.high) else 0.5 * (self.low + self.high)
        return torch.where(inside, value(torch.where(inside, x, some)), outside).to(given.dtype)

    @abstractmethod
    def _density(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _distribution(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _moment(self, k: float) -> float: ...

    def _quantile(self, q: Tensor) -> Tensor:
        """Solve by bisection in the order of floating-point numbers: to the last digit near 0."""
        low, high = (_ordered(q.new_full(q.shape, end)) for end in (self.low, self.high))
        for _ in range(64):
            # The mean without overflow.
            middle = (low >> 1) + (high >> 1) + (low & high & 1)
            reached = self._distribution(_from_order(middle)) >= q
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
        return _from_order(high)


def _ordered(x: Tensor) -> Tensor:
    """Return integers in the order of the floating-point numbers x."""
    bits = x.view(torch.int64)
    return torch.where(bits >= 0, bits, -(2**63) - bits)


def _from_order(k: Tensor) -> Tensor:
    """Return the floating-point numbers of integers from `_ordered`."""
    return torch.where(k >= 0, k, -(2**63) - k).view(torch.float64)


@dataclass(frozen=True)
class PowerLaw(ProbabilityLaw):
    """The law of ``scale y^exponent`` where y has a law of positive numbers."""

    law: ProbabilityLaw
    exponent: float
    scale: float

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            end = self.scale * getattr(self.law, name) ** self.exponent
            object.__setattr__(self, name, end)
        object.__setattr__(self, "least_order", self.law.least_order / self.exponent)

    def _base(self, x: Tensor) -> Tensor:
        return ((x / self.scale) ** (1.0 / self.exponent)).clamp(self.law.low, self.law.high)

    def _density(self, x: Tensor) -> Tensor:
        y = self._base(x)
        # At 0 the limit is taken a little beside it.
        tiny = torch.finfo(x.dtype).tiny
        y, x = y.clamp_min(tiny), x.clamp_min(self.scale * tiny**self.exponent)
        return self.law._density(y) * y / (self.exponent * x)

    def _distribution(self, x: Tensor) -> Tensor:
        return self.law._distribution(self._base(x))

    def _quantile(self, q: Tensor) -> Tensor:
        return self.scale * self.law._quantile(q) ** self.exponent

    def _moment(self, k: float) -> float:
        return self.scale**k * self.law._moment(k * self.exponent)
