"""Laws of spectra at infinite width, as values: Fuss-Catalan, Ullman, quarter circle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.laws.densities import semicircle_density
from dln_geometry.dynamics.laws.gibbs import fuss_catalan_moment
from dln_geometry.dynamics.laws.law import ProbabilityLaw
from dln_geometry.support import as_depth, as_positive

# Where exp(-2 t) is below the rounding of 1.
_FAR = 19.0


def fuss_catalan(depth: float) -> FussCatalanLaw:
    r"""Return the Fuss-Catalan law of depth N, on ``[0, (N+1)^{N+1}/N^N]``.

    The limit law of the squared singular values of a product of N independent Gaussian n x n
    layers with entries of variance 1/n; and, as ``x = b^N s^2`` with ``beta = b n``, of the
    equilibrium of Langevin dynamics in the ridge with entropy at ``kappa = 1``. With
    ``x = sin^{N+1}((N+1)f) / (sin f sin^N(N f))``, ``0 < f < pi/(N+1)``:

    - density ``sin f sin((N+1)f) / (pi x sin(N f))``;
    - distribution ``1 - [(N+1) f - N sin f sin((N+1)f)/sin(N f)]/pi``;
    - moments ``Gamma((N+1)k+1) / (Gamma(k+1) Gamma(Nk+2))``.

    Parameters
    ----------
    depth : float
        A finite depth N >= 1, not necessarily an integer.

    Returns
    -------
    FussCatalanLaw
        With ``density(x)``, ``distribution(x)``, ``quantile(q)``, ``moment(k)``, ``sample(size)``,
        and ``power(1/2)``, the law of the singular values themselves.

    References
    ----------
    U. Haagerup, S. Moeller, arXiv 1203.2084; P. Forrester, D. Liu, J. Stat. Phys. 158 (2015).

    Examples
    --------
    >>> law = dln.laws.fuss_catalan(2)
    >>> law.high, law.moment(2)
    (6.75, 3.0)
    >>> law.distribution(law.quantile([0.25, 0.75]))
    tensor([0.2500, 0.7500])
    """
    depth = as_depth(depth)
    if depth.infinite:
        raise ValueError("depth must be finite: the law has no limit, got inf")
    return FussCatalanLaw(float(depth))


@dataclass(frozen=True)
class FussCatalanLaw(ProbabilityLaw):
    """The Fuss-Catalan law; made by `fuss_catalan`."""

    depth: float
    low = 0.0

    @property
    def high(self) -> float:
        """The right edge ``(N+1)^{N+1}/N^N``."""
        n = self.depth
        return (n + 1) * (1 + 1 / n) ** n

    @property
    def least_order(self) -> float:
        """Moments are finite above ``-1/(N+1)``."""
        return -1.0 / (self.depth + 1)

    def _sines(self, psi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sin f, sin(Nf), sin((N+1)f) at ``f = pi/(N+1) - psi``."""
        n = self.depth
        phi = math.pi / (n + 1) - psi
        return phi.sin(), (n * phi).sin(), ((n + 1) * psi).sin()

    def _psi(self, x: Tensor) -> Tensor:
        """Solve ``x(psi) = x`` by bisection; x ascends in psi."""
        n, top = self.depth, math.pi / (self.depth + 1)
        target, zero = x.log(), torch.zeros_like(x)

        def below(psi: Tensor) -> Tensor:
            one, many, more = self._sines(psi)
            return (n + 1) * more.log() - one.log() - n * many.log() < target

        return _bisected(below, zero, zero + top)

    def _density(self, x: Tensor) -> Tensor:
        # The density is that of 1e-300 below it: infinity, in effect.
        x = x.clamp_min(1e-300)
        one, many, more = self._sines(self._psi(x))
        return torch.where(x >= self.high, 0.0, one * more / (math.pi * x * many))

    def _mass(self, psi: Tensor) -> Tensor:
        n = self.depth
        one, many, more = self._sines(psi)
        return ((n + 1) * psi + n * one * more / many) / math.pi

    def _distribution(self, x: Tensor) -> Tensor:
        mass = self._mass(self._psi(x.clamp_min(1e-300))).clamp(0.0, 1.0)
        return torch.where(x <= 0, 0.0, torch.where(x >= self.high, 1.0, mass))

    def _quantile(self, q: Tensor) -> Tensor:
        n, zero = self.depth, torch.zeros_like(q)
        psi = _bisected(lambda p: self._mass(p) < q, zero, zero + math.pi / (n + 1))
        one, many, more = self._sines(psi)
        x = ((n + 1) * more.log() - one.log() - n * many.log()).exp()
        return torch.where(q <= 0, 0.0, torch.where(q >= 1, self.high, x)).clamp(0.0, self.high)

    def _moment(self, k: float) -> float:
        n = self.depth
        if n.is_integer() and k.is_integer() and k >= 0:
            return fuss_catalan_moment(int(k), int(n))
        logs = math.lgamma((n + 1) * k + 1), math.lgamma(k + 1), math.lgamma(n * k + 2)
        return math.exp(logs[0] - logs[1] - logs[2])


def _bisected(below: Any, low: Tensor, high: Tensor) -> Tensor:
    """Return where a monotone function crosses, by halving; near ``low = 0`` relative to it."""
    middle = low
    for k in range(1100):
        # Near zero halving finds the size first, then the digits.
        middle = 0.5 * (low + high)
        left = below(middle)
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
        if k > 50 and bool((high - low <= 2.3e-16 * high).all()):
            break
    return middle


def ullman(exponent: float, radius: float = 1.0) -> UllmanLaw:
    r"""Return Ullman's law on ``[0, A]``, A = `radius`, of the exponent q.

    The equilibrium of charges with pairs ``|s_i^2 - s_j^2|`` in the field of a potential ``s^q``
    (one half of a law on [-A, A]): density ``(2q/(pi A)) int_u^1 t^{q-1}/sqrt(t^2-u^2) dt``,
    ``u = s/A``; distribution ``(2/pi) asin u + s density(s)/q``; moments
    ``A^k q/(q+k) Gamma((k+1)/2)/(sqrt(pi) Gamma(k/2+1))``. It is the law of the singular values of
    wide square networks of depth N in the ridge with entropy at ``kappa = 1/2``, ``beta = b n``:
    ``q = 2/N``, ``A^q = sqrt(pi) Gamma(q/2+1) / (b Gamma((q+1)/2))``. ``q = 2`` is the quarter
    circle.

    Parameters
    ----------
    exponent : float
        The exponent q, positive.
    radius : float
        The right edge A.

    References
    ----------
    J. Ullman, Michigan Math. J. 27 (1980); E. Saff, V. Totik, Logarithmic potentials with external
    fields (1997), IV.5.

    Examples
    --------
    >>> dln.laws.ullman(2.0, 2.0).distribution([1.0]) - dln.laws.quarter_circle().distribution(1.0)
    tensor([0.])
    >>> round(6 * dln.laws.ullman(1.0, 1.0).moment(2), 12)
    1.0
    """
    return UllmanLaw(as_positive(exponent, "exponent"), as_positive(radius, "radius"))


@dataclass(frozen=True)
class UllmanLaw(ProbabilityLaw):
    """Ullman's law of positive numbers; made by `ullman`."""

    exponent: float
    radius: float
    low = 0.0

    @property
    def high(self) -> float:
        """The right edge."""
        return self.radius

    @property
    def least_order(self) -> float:
        """Moments are finite above ``-min(1, q)``."""
        return -min(1.0, self.exponent)

    def _integral(self, u: Tensor) -> Tensor:
        """Return ``int_u^1 t^{q-1}/sqrt(t^2-u^2) dt``, with ``t = u cosh(h)``."""
        near = u > 0.02
        found = self._arc_integral(torch.where(near, u, 1.0), 1)
        if not bool(near.all()):
            found = torch.where(near, found, 0.0)
            found[~near] = self._arc_integral(u[~near], 12)
        return found

    def _arc_integral(self, u: Tensor, panels: int) -> Tensor:
        """Integrate up to h = 19 by Gauss-Legendre panels; beyond, ``2 cosh h`` is ``e^h``."""
        q = self.exponent
        # arccosh(1/u) = asinh(sqrt(1-u^2)/u), without cancellation at either end.
        top = (((1 - u) * (1 + u)).sqrt() / u).asinh()
        near = top.clamp_max(_FAR)
        x, w = (torch.as_tensor(a).to(u) for a in np.polynomial.legendre.leggauss(32))
        begin = torch.arange(panels, dtype=u.dtype, device=u.device).unsqueeze(-1)
        nodes, weights = (begin + 0.5 * (x + 1)).flatten() / panels, (0.5 * w / panels)
        t = u.unsqueeze(-1) * (near.unsqueeze(-1) * nodes).cosh()
        total = (t ** (q - 1) * weights.repeat(panels)).sum(-1) * near
        rest = (top - _FAR).clamp_min(0.0)
        return total + (rest if q == 1 else torch.expm1((1 - q) * rest) / (1 - q))

    def _density(self, x: Tensor) -> Tensor:
        u = (x / self.radius).clamp_min(1e-290)
        found = (2 * self.exponent / (math.pi * self.radius)) * self._integral(u)
        return torch.where((x == 0) & (self.exponent <= 1), math.inf, found)

    def _distribution(self, x: Tensor) -> Tensor:
        u = (x / self.radius).clamp(1e-290, 1.0)
        mass = ((2 / math.pi) * (u.asin() + u * self._integral(u))).clamp(0.0, 1.0)
        return torch.where(x <= 0, 0.0, mass)

    def _moment(self, k: float) -> float:
        q = self.exponent
        arc = math.exp(math.lgamma((k + 1) / 2) - math.lgamma(k / 2 + 1)) / math.sqrt(math.pi)
        return self.radius**k * q / (q + k) * arc


def quarter_circle(radius: float = 2.0) -> QuarterCircleLaw:
    r"""Return the quarter circle: density ``4 sqrt(R^2 - x^2)/(pi R^2)`` on [0, R].

    The limit law of the singular values of a square matrix (``R = 2 sqrt(n t)`` for entries of
    variance t); and of ``rho = sqrt(N) s^{1/N}`` at equilibrium in the ridge without entropy, at
    every depth: ``R = 2 sqrt(kappa/b)`` for ``beta = b n``.

    Examples
    --------
    >>> law = dln.laws.quarter_circle()
    >>> round(law.moment(2), 12), round(law.moment(4), 12)
    (1.0, 2.0)
    >>> law.quantile([0.0, 0.5, 1.0])
    tensor([0.0000, 0.8079, 2.0000])
    """
    return QuarterCircleLaw(as_positive(radius, "radius"))


@dataclass(frozen=True)
class QuarterCircleLaw(ProbabilityLaw):
    """The quarter circle; made by `quarter_circle`."""

    radius: float
    low, least_order = 0.0, -1.0

    @property
    def high(self) -> float:
        """The right edge."""
        return self.radius

    def _density(self, x: Tensor) -> Tensor:
        return 2.0 * semicircle_density(x, self.radius)

    def _distribution(self, x: Tensor) -> Tensor:
        u = (x / self.radius).clamp(0.0, 1.0)
        return (2 / math.pi) * (u * ((1 - u) * (1 + u)).sqrt() + u.asin())

    def _moment(self, k: float) -> float:
        return quarter_circle_moment(k, self.radius)


def quarter_circle_moment(k: float, radius: float) -> float:
    """Return ``E x^k`` of the quarter circle."""
    ratio = math.exp(math.lgamma((k + 1) / 2) - math.lgamma(k / 2 + 2))
    return radius**k * ratio / math.sqrt(math.pi)
