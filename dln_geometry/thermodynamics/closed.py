"""Partition functions in closed form, by Selberg's integral and its biorthogonal relative."""

from __future__ import annotations

import math

from dln_geometry.thermodynamics.energies import Energy
from dln_geometry.thermodynamics.measure import SpectralMeasure


def log_closed(measure: SpectralMeasure, energy: Energy, b: float) -> float | None:
    r"""Return log Z for ``E = w sum s_i^q``, None where no closed form is known.

    - one singular value: a Gamma function;
    - ``q = 2/N`` without entropy: ``x = b w lam^2`` is a Laguerre ensemble;
    - ``q = 2`` at ``kappa = 1/2``: ``x = b w s^2`` is one, as ``prod (lam_i^2 - lam_j^2) a_ij =
      prod (s_i^2 - s_j^2)``;
    - the complex field at ``kappa = 1``, q either: the Muttalib-Borodin ensemble
      ``prod (y_i - y_j)(y_i^N - y_j^N)``, ``y = lam^2``.
    """
    if energy.coefficient is None or energy.degree is None or energy.coefficient <= 0:
        return None
    r, f, n, nu = measure.rank, measure.index, float(measure.depth), measure.nu
    c, q, one = b * energy.coefficient, energy.degree, measure.power + 1
    flat, matrix = math.isclose(q * n, 2.0), math.isclose(q, 2.0)
    log = measure.log_constant - math.lgamma(r + 1)
    if r == 1:
        a = one / (q * n)
        return log + math.lgamma(a) - a * math.log(c) - math.log(q * n)
    if nu == 0 and flat:
        a, size = 0.5 * one, 2.0
    elif nu == 1 and matrix:
        a, size = 0.5 * one / n, 2.0 * n
    elif nu == 0.5 and f == 2 and (flat or matrix):
        # Weight y^{a-1} e^{-y} in y = c lam^2, or in y = c s^2, and y^theta beside it.
        theta, a, size = (n, 0.5 * one, 2.0) if flat else (1 / n, 0.5 * one / n, 2.0 * n)
        total = math.lgamma(r + 1) + 0.5 * r * (r - 1) * math.log(theta)
        total += sum(math.lgamma(j + 1) + math.lgamma(a + theta * j) for j in range(r))
        power = r * a + 0.5 * r * (r - 1) * (1 + theta)
        return log + total - power * math.log(c) - r * math.log(size)
    else:
        return None
    power = r * a + 0.5 * f * r * (r - 1)
    return log + log_selberg(r, a, 0.5 * f) - power * math.log(c) - r * math.log(size)


def log_selberg(r: int, a: float, g: float) -> float:
    """Return ``log int prod x^{a-1} e^{-x} prod |x_i - x_j|^{2g} dx`` over positive x."""
    return sum(
        math.lgamma(a + j * g) + math.lgamma(1 + (j + 1) * g) - math.lgamma(1 + g) for j in range(r)
    )


def log_gaussian(measure: SpectralMeasure, variance: float) -> float:
    """Return log Z of ``exp(-|rho|^2/(2 variance))`` without entropy."""
    free = SpectralMeasure(
        measure.sides, measure.rank, measure.depth, measure.kappa, False, measure.index
    )
    n = float(measure.depth)
    ridge = Energy(None, None, 2 / n, 0.5 * n)
    found = log_closed(free, ridge, 1 / variance)
    assert found is not None
    return found
