"""Laws in closed form: Z by Selberg's integral and its biorthogonal relative, and exact samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dln_geometry.dynamics.laws import tridiagonal_eigenvalues
from dln_geometry.support import chi, normal
from dln_geometry.thermodynamics.energies import Energy
from dln_geometry.thermodynamics.measure import SpectralMeasure


@dataclass(frozen=True)
class Classical:
    r"""The law ``prod |y_i - y_j|^{f-1} |y_i^theta - y_j^theta| prod y_i^{a-1} e^{-y_i}``.

    ``y = c e^{size x}`` in the coordinate x of the measure; theta = 1 is Laguerre's ensemble, other
    theta, with f = 2, Muttalib's and Borodin's; ``theta = 0`` is its limit, ``log (y_i/y_j)``.
    """

    count: int
    index: int
    a: float
    c: float
    size: float
    theta: float = 1.0

    @property
    def log_z(self) -> float:
        """The log of the integral over x, all orders of the values counted."""
        r, f, a, theta = self.count, self.index, self.a, self.theta
        if theta == 1.0:
            power, total = r * a + 0.5 * f * r * (r - 1), log_selberg(r, a, 0.5 * f)
        else:
            power = r * a + 0.5 * r * (r - 1) * (1 + theta)
            total = math.lgamma(r + 1) + 0.5 * r * (r - 1) * math.log(theta or 1.0)
            total += sum(math.lgamma(j + 1) + math.lgamma(a + theta * j) for j in range(r))
        # Of the difference of logarithms, that of y is `size` times that of x.
        return total - power * math.log(self.c) - r * math.log(self.size)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw x, (count, r), ascending.

        Laguerre's ensemble by its bidiagonal model; the other by the triangular matrix T with
        ``|T_ii|^2`` of Gamma laws of order ``a + theta (i-1)`` and standard complex normal numbers
        above, ``y = eig(T T^*)``.
        """
        r, f = self.count, self.index
        k = torch.arange(r, dtype=torch.float64, device="cpu")
        if self.theta == 1.0:
            main = chi(2 * self.a + f * k.flip(0), (count,), generator)
            off = chi(f * k[1:].flip(0), (count,), generator)
            # The eigenvalues of this tridiagonal matrix are plus and minus the singular values.
            both = main.new_zeros(count, 2 * r - 1)
            both[:, ::2], both[:, 1::2] = main, off
            root = tridiagonal_eigenvalues(main.new_zeros(count, 2 * r), both)[:, r:]
            log_y = 2 * root.log() - math.log(2.0)
        else:
            main = chi(2 * self.a + 2 * self.theta * k, (count,), generator)
            z = [normal((count, r, r), generator, torch.float64) for _ in range(2)]
            t = torch.complex(*z).triu(1) + torch.diag_embed(main.to(torch.complex128))
            log_y = 2 * torch.linalg.svdvals(t).flip(-1).log() - math.log(2.0)
        return (log_y - math.log(self.c)) / self.size


def classical(measure: SpectralMeasure, energy: Energy, b: float) -> Classical | None:
    r"""Return the law of ``E = w sum s_i^q`` where it is classical, else None.

    - one singular value: a Gamma law;
    - ``q = 2/N`` without entropy: ``y = b w lam^2`` is a Laguerre ensemble;
    - ``q = 2`` at ``kappa = 1/2``: ``y = b w s^2`` is one, as ``prod (lam_i^2 - lam_j^2) a_ij =
      prod (s_i^2 - s_j^2)``;
    - the complex field at ``kappa = 1``, q either: the Muttalib-Borodin ensemble
      ``prod (y_i - y_j)(y_i^N - y_j^N)``, ``y = lam^2``.
    """
    if energy.coefficient is None or energy.degree is None or energy.coefficient <= 0:
        return None
    r, f, n, nu = measure.rank, measure.index, measure.span, measure.nu
    c, q = b * energy.coefficient, energy.degree
    one = measure.power + (0 if measure.deep else 1)
    flat, matrix = not measure.deep and math.isclose(q * n, 2.0), math.isclose(q, 2.0)
    if r == 1:
        return Classical(r, f, one / (q * n), c, q * n)
    if nu == 0 and flat:
        return Classical(r, f, 0.5 * one, c, 2.0)
    if nu == 1 and matrix:
        return Classical(r, f, 0.5 * one / n, c, 2.0 * n)
    if nu == 0.5 and f == 2 and flat:
        return Classical(r, f, 0.5 * one, c, 2.0, n)
    if nu == 0.5 and f == 2 and matrix:
        return Classical(r, f, 0.5 * one / n, c, 2.0 * n, 0.0 if measure.deep else 1 / n)
    return None


def log_closed(measure: SpectralMeasure, energy: Energy, b: float) -> float | None:
    """Return log Z where the law is classical, else None."""
    law = classical(measure, energy, b)
    if law is None:
        return None
    return measure.log_constant - math.lgamma(measure.rank + 1) + law.log_z


def log_selberg(r: int, a: float, g: float) -> float:
    """Return ``log int prod x^{a-1} e^{-x} prod |x_i - x_j|^{2g} dx`` over positive x."""
    return sum(math.lgamma(a + j * g) for j in range(r)) + log_mehta(r, g)


def log_mehta(r: int, g: float) -> float:
    """Return ``log prod Gamma(1 + jg)/Gamma(1 + g)``, j = 1..r.

    Up to ``(r/2) log 2 pi`` the log of ``int prod |x_i - x_j|^{2g} e^{-|x|^2/2} dx``.
    """
    return sum(math.lgamma(1 + (j + 1) * g) - math.lgamma(1 + g) for j in range(r))


def log_gaussian(measure: SpectralMeasure, variance: float) -> float:
    """Return log Z of the Gaussian of chains, without entropy.

    Of ``exp(-|rho|^2/(2 variance))``; at infinite depth of ``exp(-|log s|^2/(2 variance))``.
    """
    r, f = measure.rank, measure.index
    if measure.deep:
        pairs = 0.5 * f * r * (r - 1)
        total = pairs * math.log(2.0) + 0.5 * (r + pairs) * math.log(variance)
        total += 0.5 * r * math.log(2 * math.pi) + log_mehta(r, 0.5 * f)
        return measure.log_constant - math.lgamma(r + 1) + total
    free = SpectralMeasure(measure.sides, r, measure.depth, measure.kappa, False, f)
    n = float(measure.depth)
    ridge = Energy(None, None, 2 / n, 0.5 * n)
    found = log_closed(free, ridge, 1 / variance)
    assert found is not None
    return found
