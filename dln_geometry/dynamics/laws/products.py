"""The spectrum of products of wide Gaussian layers of any widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.laws.law import ProbabilityLaw
from dln_geometry.support import as_positive, as_width_sequence, shown


def gaussian_product(widths: Any, variances: Any = None) -> GaussianProductLaw:
    r"""Return the limit law of the squared singular values of a product of Gaussian layers.

    ``X = W_N ... W_1`` with independent entries, W_p of shape ``(d_p, d_{p-1})``, as all widths
    grow in proportion; zeros of X beyond its rank ``r = min_p d_p`` are left out. With the moments
    ``m_k`` of the law, ``w = sum_k m_k z^k`` solves ``w = z c prod_p (d_p/r + w)``, where
    ``c = r^N prod_p variance_p`` (free multiplicative convolution of N laws of Marchenko and
    Pastur). At ``x = 1/z``, with w in the upper half plane:

    - density ``Im w/(pi x)``;
    - distribution ``1 - [sum_p (d_p/r) arg(d_p/r + w) - N Im w]/pi``;
    - moments ``(c^k/k) [w^{k-1}] prod_p (d_p/r + w)^k``.

    Equal widths n and variances 1/n have `fuss_catalan`, one layer `marchenko_pastur`.

    Parameters
    ----------
    widths : sequence of int, shape (N + 1,)
        Widths ``(d_0, ..., d_N)``, input side first, N >= 1. Where the variances are given,
        only their quotients and the least width matter.
    variances : sequence of float, shape (N,), or float, optional
        Variances of the entries of each layer, by default ``1/d_{p-1}``.

    Returns
    -------
    GaussianProductLaw
        With ``density(x)``, ``distribution(x)``, ``quantile(q)``, ``moment(k)``, ``sample(size)``,
        and ``power(1/2)``, the law of the singular values themselves.

    References
    ----------
    R. Mueller, IEEE Trans. Inform. Theory 48 (2002); Z. Burda et al., Phys. Rev. E 82 (2010),
    arXiv 1007.3594.

    Examples
    --------
    >>> law = dln.laws.gaussian_product((200, 100, 300))
    >>> round(law.moment(1), 12), round(law.moment(2), 12)  # of the 100 squares that are not zero
    (3.0, 16.5)
    >>> law.distribution(law.quantile([0.25, 0.75]))
    tensor([0.2500, 0.7500])
    """
    sides = as_width_sequence(widths)
    if len(sides) < 2:
        raise ValueError(f"widths must be at least two, (d_0, ..., d_N), got {shown(widths)}")
    if variances is None:
        each = [1.0 / d for d in sides[:-1]]
    elif isinstance(variances, Sequence | np.ndarray | Tensor) and not isinstance(variances, str):
        each = [as_positive(v, "variances") for v in _listed_numbers(variances, "variances")]
    else:
        each = [as_positive(variances, "variances")] * (len(sides) - 1)
    if len(each) != len(sides) - 1:
        raise ValueError(f"variances must be {len(sides) - 1}, one for each layer, got {len(each)}")
    r = min(sides)
    scale = math.prod(r * v for v in each)
    return GaussianProductLaw(tuple(sorted(d / r for d in sides)), scale)


def _listed_numbers(values: Any, name: str) -> list[Any]:
    """Return the numbers of a sequence, an array or a tensor of one dimension."""
    found = values.tolist() if isinstance(values, np.ndarray | Tensor) else list(values)
    if not isinstance(found, list):
        raise TypeError(f"{name} must be a sequence of numbers, got {shown(values)}")
    return found


@dataclass(frozen=True)
class GaussianProductLaw(ProbabilityLaw):
    """The law of squared singular values of a product of layers; made by `gaussian_product`.

    With k widths equal to r the curve of w is ``w = -1 + e exp(i f)``, ``f = (pi - psi)/k``,
    ``0 < psi < pi``; x ascends with psi, and e solves
    ``sum_p' arg(d_p/r + w) + pi - arg w = psi`` over the wider layers, whose left side ascends
    with e.
    """

    ratios: tuple[float, ...]
    scale: float

    @property
    def equal(self) -> int:
        """The number of layers' sides as narrow as the rank."""
        return self.ratios.count(1.0)

    @cached_property
    def low(self) -> float:
        """The left edge: 0 if two widths are the least."""
        return 0.0 if self.equal > 1 else self._edge(1e-9)

    @cached_property
    def high(self) -> float:
        """The right edge."""
        return self._edge(math.pi)

    @property
    def least_order(self) -> float:
        """Moments are finite above minus one over the number of least widths."""
        return -1.0 / self.equal if self.equal > 1 else -math.inf

    def _edge(self, psi: float) -> float:
        at = torch.tensor([min(psi, math.pi - 1e-9)], dtype=torch.float64, device="cpu")
        return float(self._point(at)[0].exp())

    def _gaps(self, like: Tensor) -> Tensor:
        """Return ``d_p/r - 1`` of the wider layers."""
        return like.new_tensor([a - 1.0 for a in self.ratios[self.equal :]])

    def _direction(self, psi: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosine and sine of f, exact where f comes to pi."""
        k = self.equal
        c, s = (math.cos(math.pi / k), math.sin(math.pi / k)) if k > 1 else (-1.0, 0.0)
        turn = psi / k
        return c * turn.cos() + s * turn.sin(), s * turn.cos() - c * turn.sin()

    def _radius(self, psi: Tensor, c: Tensor, s: Tensor, start: Tensor | None) -> Tensor:
        """Solve for e, by Newton's method inside a bracket, perhaps from near by."""
        gaps = self._gaps(psi)
        low, high = torch.zeros_like(psi), torch.full_like(psi, 2.0 + 2.0 * self.ratios[-1])
        e = 0.5 * torch.minimum(psi, high) if start is None else start
        for _ in range(80):
            x, y = 1 - e * c, e * s
            others = gaps + (e * c).unsqueeze(-1)
            angles = torch.atan2(y.unsqueeze(-1), others).sum(-1) + torch.atan2(y, x)
            size = others.square() + y.square().unsqueeze(-1)
            slope = s * ((gaps / size).sum(-1) + 1 / (x * x + y * y))
            below = angles < psi
            low, high = torch.where(below, e, low), torch.where(below, high, e)
            new = e - (angles - psi) / slope
            middle = torch.where(low > 0, (low * high).sqrt(), 0.5 * high * 1e-3)
            middle = torch.where(high < 4 * low, 0.5 * (low + high), middle)
            new = torch.where((new > low) & (new < high), new, middle)
            if bool(((new - e).abs() <= 1e-14 * e).all()):
                break
            e = new
        # One more step of a method that doubles digits.
        return new

    def _point(self, psi: Tensor, start: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return log x, Im w, the distribution function, and e."""
        c, s = self._direction(psi)
        e = self._radius(psi, c, s, start)
        gaps, y = self._gaps(psi), e * s
        others = gaps + (e * c).unsqueeze(-1)
        sizes = 0.5 * (others.square() + y.square().unsqueeze(-1)).log().sum(-1)
        x = 1 - e * c
        log = math.log(self.scale) + self.equal * e.log() + sizes
        log = log - 0.5 * (x.square() + y.square()).log()
        mass = torch.atan2(y, x) + (len(self.ratios) - 1) * y
        mass = mass - (gaps * torch.atan2(y.unsqueeze(-1), others)).sum(-1)
        return log, y, (mass / math.pi).clamp(0.0, 1.0), e

    def _slope(self, psi: Tensor, im: Tensor, e: Tensor) -> Tensor:
        """Return ``d log x/d psi``."""
        c, _ = self._direction(psi)
        near, gaps = torch.complex(e * c, im), self._gaps(psi)
        # With near = 1 + w: log x is real along the curve, and d psi = -k Im dw/(1 + w).
        rest = (1 / (gaps + near.unsqueeze(-1))).sum(-1) - 1 / (near - 1)
        return (1 / (self.equal * (1 / (self.equal + near * rest)).imag)).abs()

    def _solve(self, target: Tensor, which: int) -> Tensor:
        """Return psi at which log x (0) or the distribution (2) reaches a target.

        Newton's method in log psi, for log x or the logarithm of the distribution, in a bracket.
        """
        flat = target.flatten()
        low, high = torch.zeros_like(flat), torch.full_like(flat, math.pi)
        psi, e = torch.full_like(flat, 1.5), None
        for k in range(60):
            found = self._point(psi, e)
            value, im, e = found[which], found[1], found[3]
            left = value < flat
            low, high = torch.where(left, psi, low), torch.where(left, high, psi)
            rate = psi * self._slope(psi, im, e)
            if which == 2:
                step = (flat / value).log() * value / (rate * im / math.pi)
            else:
                step = (flat - value) / rate
            new = psi * step.exp()
            middle = torch.where(high > 4 * low, (low * high).sqrt(), 0.5 * (low + high))
            middle = torch.where(low > 0, middle, 1e-3 * high)
            good = (new > low) & (new < high) & (k % 4 < 3)
            new = torch.where(good, new, middle)
            # Near an edge psi is not that well determined, but its value is.
            least = 1.0 if which == 0 else 0.1 * (self.equal == 1)
            reached = (value - flat).abs() <= 2e-15 * flat.abs().clamp_min(least)
            close = ((new - psi).abs() <= 2e-15 * psi) | (high - low <= 4e-16 * high)
            still = reached | close
            if bool(still.all()):
                break
            psi = torch.where(still, psi, new)
        return psi.view(target.shape).clamp(max=math.pi * (1 - 1e-15))

    def _density(self, x: Tensor) -> Tensor:
        x = x.clamp_min(1e-300)
        y = self._point(self._solve(x.log(), 0))[1]
        return torch.where((x <= self.low) | (x >= self.high), 0.0, y / (math.pi * x))

    def _distribution(self, x: Tensor) -> Tensor:
        mass = self._point(self._solve(x.clamp_min(1e-300).log(), 0))[2]
        return torch.where(x <= self.low, 0.0, torch.where(x >= self.high, 1.0, mass))

    def _quantile(self, q: Tensor) -> Tensor:
        x = self._point(self._solve(q, 2))[0].exp().clamp(self.low, self.high)
        return torch.where(q <= 0, self.low, torch.where(q >= 1, self.high, x))

    def _moment(self, k: float) -> float:
        if k.is_integer() and 0 < k <= 60:
            # The coefficient of w^{k-1}, by the logarithm's derivative: sums of positive numbers.
            return self._whole_moment(int(k))
        # Powers near 0 may be nearly not integrable: nodes that go there further than to pi.
        y = torch.linspace(-5.6, 3.4, 641, dtype=torch.float64, device="cpu")
        share = torch.sigmoid(math.pi * y.sinh())
        psi = math.pi * share
        speed = psi * torch.sigmoid(-math.pi * y.sinh()) * math.pi * y.cosh() * (y[1] - y[0])
        log, im, _, e = self._point(psi)
        slope = self._slope(psi, im, e)
        values = (k * log).exp() * im * slope * speed / math.pi
        return float(values[torch.isfinite(values)].sum())

    def _whole_moment(self, k: int) -> float:
        row = np.zeros(k)
        row[0] = 1.0
        for a in self.ratios:
            # The series of (a + w)^k over a^k.
            factor = [math.comb(k, j) / a**j for j in range(k)]
            row = np.convolve(row, factor)[:k]
        logs = k * (math.log(self.scale) + math.fsum(map(math.log, self.ratios)))
        return math.exp(logs + math.log(row[k - 1]) - math.log(k))
