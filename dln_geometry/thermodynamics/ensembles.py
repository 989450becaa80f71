"""Partition functions of sums over singular values, by Pfaffians and determinants.

Without entropy the law of ``x = lam^2``, at ``kappa = 1/2`` that of ``x = s^2``, is
``prod |x_i - x_j|^f prod w``: real matrices have de Bruijn's Pfaffian, complex ones a determinant,
quaternion ones a Pfaffian with derivatives. Complex matrices at ``kappa = 1`` have the determinant
of ``int x^j y^k w`` with both. Polynomials are orthonormal on the nodes, so that the matrices stay
well conditioned at size 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dln_geometry.thermodynamics.energies import Energy
from dln_geometry.thermodynamics.measure import SpectralMeasure
from dln_geometry.thermodynamics.nodes import gauss_panels, running, support, wide_support

_MOST_NODES = 12_000


@dataclass(frozen=True)
class Ensemble:
    """Log Z of a determinantal or Pfaffian law and its correlations of one and two values.

    `one` is ``rho_1``, (n,); ``two(rows)`` is ``rho_2`` on a slice of the nodes and all of them,
    times the weights of the latter; `x`, `weights` and `matrix` belong to the `nodes`. `kernel`
    holds the factors (r, n) of the kernel of a determinantal law; of a Pfaffian one the functions
    tau and psi on the nodes, and the inverse matrix between them. `digits` tells by how much log Z
    moved when the nodes were doubled.
    """

    log_z: float
    nodes: Tensor
    x: Tensor
    weights: Tensor
    matrix: Tensor
    one: Tensor
    two: Callable[[slice], Tensor]
    kernel: tuple[Tensor, ...] = ()
    digits: float = 0.0

    def mean(self, values: Tensor) -> float:
        """Return ``E sum f(x_i)``."""
        return float((values * self.one * self.weights).sum())

    def variance(self, values: Tensor) -> float:
        """Return the variance of ``sum f(x_i)``."""
        pairs = self.pair_mean(lambda rows: values[rows, None] * values)
        return self.mean(values * values) + pairs - self.mean(values) ** 2

    def pair_mean(self, values: Callable[[slice], Tensor]) -> float:
        """Return ``E sum_{i != j} f(x_i, x_j)``, f on a slice of the nodes and all of them."""
        total, w = 0.0, self.weights
        for k in range(0, len(w), 256):
            rows = slice(k, k + 256)
            total += float(w[rows] @ (values(rows) * self.two(rows)).sum(-1))
        return total


def solvable(measure: SpectralMeasure, energy: Energy) -> bool:
    """Tell whether the law is one of those here."""
    return energy.single is not None and (
        measure.nu in (0.0, 1.0) or (measure.index == 2 and measure.nu == 0.5)
    )


def polynomial_ensemble(measure: SpectralMeasure, energy: Energy, b: float) -> Ensemble:
    """Return the law, with nodes doubled until log Z stands still."""
    span, single = measure.span, energy.single
    assert single is not None

    def log_weight(x: Tensor) -> Tensor:
        return measure.power * x - b * single((span * x).exp())

    # Powers up to which polynomials grow.
    count = (measure.rank - 1) * max(measure.index, 1)
    first = 0.0 if measure.deep else 2.0
    most = count * {0.0: first, 0.5: first + 2 * span, 1.0: 2 * span}[measure.nu]
    powers = (0.0, most)
    if measure.deep:
        low, high = wide_support(log_weight, powers, 2.0 * count if measure.nu < 1 else 0.0)
    else:
        low, high = support(log_weight, powers)
    count, before = 8 + measure.rank // 2, None
    while True:
        found = _on_nodes(measure, log_weight, low, high, count)
        lost = abs(found.mean(torch.ones_like(found.one)) - measure.rank)
        if not (lost < 1e-6 and found.digits < 1e-6):
            raise ArithmeticError("the polynomials leave the range of floating-point numbers")
        if before is not None:
            move = abs(found.log_z - before.log_z)
            if move <= 1e-11 * max(1.0, abs(found.log_z)) or 32 * count > _MOST_NODES:
                # Half the nodes gave the same: they are enough for the moments.
                return replace(before, log_z=found.log_z, digits=max(move, found.digits))
        before, count = found, 2 * count


def _on_nodes(measure: Any, log_weight: Any, low: float, high: float, count: int) -> Ensemble:
    nodes, weights, matrix = gauss_panels(low, high, count)
    x, r, f = measure.coordinates(nodes), measure.rank, measure.index
    w = log_weight(x)
    shift = float(w.max())
    w, variables = w - shift, measure.variables(x)
    if f == 1:
        law = _real_law(w, weights, matrix, variables[-1], r)
    elif f == 4:
        law = _quaternion_law(w, weights, variables[-1], r)
    else:
        law = _complex_law(w, weights, variables, r)
    log, one, two, kernel, lost = law
    log += measure.log_constant + r * shift
    return Ensemble(log, nodes, x, weights, matrix, one, two, kernel, lost)


def _orthonormal(
    variable: tuple[Tensor, float], start: Tensor, count: int
) -> tuple[Tensor, float, Any]:
    """Return orthonormal vectors of polynomials in a variable times `start`, (count, n).

    And the log of the product of ``monic / orthonormal``, and the three-term recurrence.
    """
    z, size = variable
    norm = float(start.norm())
    rows, log = [start / norm], math.log(norm)
    recurrence, total = [], log
    for j in range(1, count):
        v = z * rows[-1]
        along = float(v @ rows[-1])
        v = v - along * rows[-1]
        if j > 1:
            v = v - recurrence[-1][1] * rows[-2]
        for _ in range(2):
            basis = torch.stack(rows)
            v = v - (basis @ v) @ basis
        norm = float(v.norm())
        recurrence.append((along, norm))
        rows.append(v / norm)
        log += math.log(norm)
        total += log + j * size
    return torch.stack(rows), total, recurrence


def _real_law(w: Tensor, weights: Tensor, matrix: Tensor, variable: Any, r: int) -> Any:
    """De Bruijn: ``Z = Pf[ int int sgn(y - x) psi_j(x) psi_k(y) ]``, bordered for odd r."""
    root = weights.sqrt()
    rows, log, _ = _orthonormal(variable, w.exp() * root, r)
    psi = rows / root
    up_to = running(psi, weights, matrix)
    total = (psi * weights).sum(-1, keepdim=True)
    after = total - 2 * up_to
    form = (psi * weights) @ after.T
    if r % 2:
        psi = torch.cat((psi, torch.zeros_like(psi[:1])))
        after = torch.cat((after, torch.ones_like(after[:1])))
        form = torch.cat(
            (torch.cat((form, total), 1), torch.cat((-total.T, total.new_zeros(1, 1)), 1))
        )
    return _pfaffian(0.5 * (form - form.T), log, psi, after, weights, matrix)


def _quaternion_law(w: Tensor, weights: Tensor, variable: Any, r: int) -> Any:
    """``Z = Pf[ int (phi_j phi_k' - phi_j' phi_k) w ]`` of size 2r."""
    root = weights.sqrt()
    rows, log, recurrence = _orthonormal(variable, (0.5 * w).exp() * root, 2 * r)
    z, size = variable
    slopes = [torch.zeros_like(z)]
    for j, (along, norm) in enumerate(recurrence):
        v = rows[j] + (z - along) * slopes[j]
        if j:
            v = v - recurrence[j - 1][1] * slopes[j - 1]
        slopes.append(v / norm)
    slope = torch.stack(slopes)
    form = rows @ slope.T
    log = log - r * size
    return _pfaffian(form - form.T, log, rows / root, slope / root, weights, None)


def _pfaffian(
    form: Tensor, log: float, psi: Tensor, tau: Tensor, weights: Tensor, matrix: Tensor | None
) -> Any:
    """Return the log of the Pfaffian and the correlations, which come of its derivatives."""
    found = log + 0.5 * float(torch.linalg.slogdet(form).logabsdet)
    inverse = torch.linalg.inv(form)
    inverse = 0.5 * (inverse - inverse.T)

    first, second = inverse @ psi, inverse @ tau
    one = (tau * first).sum(0)

    def two(rows: slice) -> Tensor:
        s, back = tau[:, rows].T @ first, -psi[:, rows].T @ second
        d, j = psi[:, rows].T @ first, tau[:, rows].T @ second
        pairs = (one[rows, None] * one - s * back - j * d) * weights
        if matrix is None:
            return pairs
        # The term sgn(x - y) D(x, y): in its own panel a node has integrals to its left and right.
        here = torch.arange(len(weights), device=weights.device)
        sign = torch.sign(here[rows, None] - here) * weights
        points = len(matrix)
        for k in range(rows.start, min(rows.stop, len(weights)), points):
            own = slice(k, k + points)
            inside = slice(k - rows.start, k - rows.start + points)
            sign[inside, own] = weights[own].sum() * matrix - weights[own]
        return pairs + sign * d

    return found, one, two, (tau, psi, inverse), _lost(form)


def _complex_law(w: Tensor, weights: Tensor, variables: Any, r: int) -> Any:
    """``Z = det[ int phi_j chi_k w ]``."""
    root = weights.sqrt()
    start = (0.5 * w).exp() * root
    rows, log, _ = _orthonormal(variables[0], start, r)
    if len(variables) == 1:
        other, log = rows, 2 * log
    else:
        other, more, _ = _orthonormal(variables[1], start, r)
        log += more
    gram = rows @ other.T
    log += float(torch.linalg.slogdet(gram).logabsdet)
    first, second = rows / root, torch.linalg.solve(gram.T, other / root)
    one = (first * second).sum(0)

    def two(part: slice) -> Tensor:
        kernel, back = first[:, part].T @ second, second[:, part].T @ first
        return (one[part, None] * one - kernel * back) * weights

    return log, one, two, (first, second), _lost(gram)


def _lost(form: Tensor) -> float:
    """Return how much of a log determinant roundings may have taken."""
    return 1e-16 * float(torch.linalg.cond(form))
