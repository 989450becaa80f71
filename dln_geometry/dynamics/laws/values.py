"""The semicircle, Marchenko and Pastur's law and the energy's Gamma law, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dln_geometry.dynamics.laws.densities import (
    marchenko_pastur_density,
    marchenko_pastur_distribution,
    marchenko_pastur_edges,
    semicircle_density,
    semicircle_distribution,
)
from dln_geometry.dynamics.laws.gibbs import gibbs_energy_moment
from dln_geometry.dynamics.laws.law import ProbabilityLaw
from dln_geometry.dynamics.laws.limits import quarter_circle_moment
from dln_geometry.support import as_positive, as_sides


def semicircle(radius: float = 2.0) -> SemicircleLaw:
    """Return the semicircle on [-R, R] as a value, `semicircle_density` and its relatives.

    Examples
    --------
    >>> law = dln.laws.semicircle()
    >>> law.quantile([0.0, 1.0]), law.moment(4)
    (tensor([-2.,  2.]), 2.0)
    """
    return SemicircleLaw(as_positive(radius, "radius"))


@dataclass(frozen=True)
class SemicircleLaw(ProbabilityLaw):
    """The semicircle; made by `semicircle`."""

    radius: float
    least_order = -1.0

    @property
    def low(self) -> float:
        """The left edge."""
        return -self.radius

    @property
    def high(self) -> float:
        """The right edge."""
        return self.radius

    def _density(self, x: Tensor) -> Tensor:
        return semicircle_density(x, self.radius)

    def _distribution(self, x: Tensor) -> Tensor:
        return semicircle_distribution(x, self.radius)

    def _moment(self, k: float) -> float:
        n = int(k)
        catalan = math.comb(n, n // 2) / (n // 2 + 1)
        return 0.0 if n % 2 else (self.radius / 2) ** n * catalan


def marchenko_pastur(shape: tuple[int, int], t: float = 1.0) -> MarchenkoPasturLaw:
    """Return the limit law of the singular values of an m x n matrix of variance t, as a value.

    `marchenko_pastur_density` and its relatives; the law of the singular values, not of their
    squares, which is ``marchenko_pastur(shape, t).power(2)``.

    Examples
    --------
    >>> law = dln.laws.marchenko_pastur((9, 4))
    >>> law.low, law.high, law.moment(2)
    (1.0, 5.0, 9.0)
    """
    return MarchenkoPasturLaw(as_sides(shape), as_positive(t, "t"))


@dataclass(frozen=True)
class MarchenkoPasturLaw(ProbabilityLaw):
    """Marchenko and Pastur's law of singular values; made by `marchenko_pastur`."""

    shape: tuple[int, int]
    t: float

    @property
    def low(self) -> float:
        """The left edge."""
        return marchenko_pastur_edges(self.shape, self.t)[0]

    @property
    def high(self) -> float:
        """The right edge."""
        return marchenko_pastur_edges(self.shape, self.t)[1]

    @property
    def least_order(self) -> float:
        """Moments of all orders are finite where the law stays away from zero."""
        return -1.0 if self.shape[0] == self.shape[1] else -math.inf

    def _density(self, x: Tensor) -> Tensor:
        return marchenko_pastur_density(x, self.shape, self.t)

    def _distribution(self, x: Tensor) -> Tensor:
        return marchenko_pastur_distribution(x, self.shape, self.t)

    def _moment(self, k: float) -> float:
        m, n = self.shape
        if m == n:
            return quarter_circle_moment(k, self.high)
        # E s^k = E over the circle z = sqrt(m) + sqrt(n) e^{ia} of |z|^(k-2) 2 m sin^2 a: a sum
        # over equal angles, which converges like (n/m)^(count/2).
        count = min(1 << 22, 64 + int(80 / math.log(m / n)))
        a = (torch.arange(count, dtype=torch.float64, device="cpu") + 0.5) * (math.pi / count)
        square = m + n + 2 * math.sqrt(m * n) * a.cos()
        logs = (0.5 * k - 1) * square.log()
        return float((logs.exp() * a.sin().square()).mean()) * 2 * m * self.t ** (0.5 * k)


def gibbs_energy(
    shape: tuple[int, int],
    rank: int,
    depth: float,
    *,
    beta: float,
    kappa: float = 1.0,
    entropy: bool = True,
    degree: float | None = None,
    field: str = "real",
) -> GammaLaw:
    """Return the law of a homogeneous energy at equilibrium, a Gamma law, as a value.

    Its shape and its moments are those of `gibbs_energy_moment`, which explains the arguments.

    Examples
    --------
    >>> law = dln.laws.gibbs_energy((2, 2), 2, 3, beta=2.0)
    >>> round(law.moment(1), 12), law.order
    (1.5, 3.0)
    """
    arguments = {"beta": beta, "kappa": kappa, "entropy": entropy, "degree": degree}
    mean = gibbs_energy_moment(1, shape, rank, depth, field=field, **arguments)
    scale = as_positive(kappa, "kappa") / as_positive(beta, "beta")
    return GammaLaw(mean / scale, scale)


@dataclass(frozen=True)
class GammaLaw(ProbabilityLaw):
    """The Gamma law of shape `order` and of a scale; made by `gibbs_energy`."""

    order: float
    scale: float
    low, high = 0.0, math.inf

    @property
    def least_order(self) -> float:
        """Moments are finite above minus the shape."""
        return -self.order

    def _density(self, x: Tensor) -> Tensor:
        y = x / self.scale
        log = torch.xlogy(torch.as_tensor(self.order - 1, dtype=y.dtype), y) - y
        return (log - math.lgamma(self.order)).exp() / self.scale

    def _distribution(self, x: Tensor) -> Tensor:
        return torch.special.gammainc(torch.full_like(x, self.order), x / self.scale)

    def _quantile(self, q: Tensor) -> Tensor:
        from scipy.special import gammaincinv

        values = gammaincinv(self.order, q.cpu().numpy())
        return self.scale * torch.as_tensor(values, dtype=q.dtype, device=q.device)

    def _moment(self, k: float) -> float:
        return self.scale**k * math.exp(math.lgamma(self.order + k) - math.lgamma(self.order))
