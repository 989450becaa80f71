"""Functions of numbers, spectra and losses in units of c, with the powers by which they scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dln_geometry as dln
from dln_geometry import exact, landscape, laws, losses, thermodynamics
from tests.properties.cases import F64, normal


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def of(*x: Any) -> Tensor:
    return torch.tensor([float(v) for v in x], dtype=F64)


S, X5, SHARES = of(1.7, 0.9, 0.2), of(-1.5, -0.3, 0.0, 0.4, 1.2), of(0.1, 0.5, 0.8)
X, A, B = normal(seed(), 3, 2), normal(seed(), 4, 2), normal(seed(), 4, 3)
Y, H = X + 0.3 * normal(seed(), 3, 2), normal(seed(), 3, 3)
PAIR = [normal(seed(), 3, 2), normal(seed(), 3, 3)]
TRIPLE = [*PAIR, normal(seed(), 3, 3)]
ROOT = dln.balanced_factors(dln.EndToEnd.of(X, 2))
PLACES = ([0, 1, 2], [1, 0, 1])


def path(c: float) -> dict[str, Any]:
    """Return the times of a short random motion of particles of size c, and its generator."""
    return {"t_end": 0.01 * c * c, "dt": 0.005 * c * c, "generator": seed()}


def both(loss: Callable[[float], Any]) -> Callable[[float], Tensor]:
    """Return the gradient of a loss at X in units of c."""

    def gradient(c: float) -> Tensor:
        g = loss(c).gradient(c * X)
        return g if g.layout == torch.strided else g.to_dense()

    return gradient


def law(make: Callable[[float], Any]) -> dict[str, tuple[Callable[[float], Any], float]]:
    """Return functions of a law on lengths c."""
    return {
        "density": (lambda c: make(c).density(c * S), -1.0),
        "distribution": (lambda c: make(c).distribution(c * S), 0.0),
        "quantile": (lambda c: make(c).quantile(SHARES), 1.0),
        "moment": (lambda c: of(make(c).moment(1)), 1.0),
        "sample": (lambda c: make(c).sample(4, generator=seed()), 1.0),
    }


def completion(c: float) -> Any:
    return losses.Completion(*PLACES, c * S, (3, 2))


def critical(c: float, size: float = 1.0) -> Any:
    layers = landscape.critical_factors(
        losses.Quadratic(size * Y), (2, 3, 3), [1], generator=seed()
    )
    return [c * w for w in layers]


QUANTITIES: dict[str, tuple[Callable[[float], Any], float]] = {
    "laws.beta_hermite": (lambda c: laws.beta_hermite(4, 1.5, t=c * c, generator=seed()), 1),
    "laws.beta_laguerre": (
        lambda c: laws.beta_laguerre((4, 3), 1.5, t=c * c, generator=seed()), 1
    ),
    "laws.semicircle_radius": (lambda c: of(laws.semicircle_radius(4, c * c)), 1),
    "laws.semicircle_density": (lambda c: laws.semicircle_density(c * X5, 2 * c), -1),
    "laws.semicircle_distribution": (lambda c: laws.semicircle_distribution(c * X5, 2 * c), 0),
    "laws.marchenko_pastur_edges": (
        lambda c: of(*laws.marchenko_pastur_edges((5, 3), c * c)), 1
    ),
    "laws.marchenko_pastur_density": (
        lambda c: laws.marchenko_pastur_density(c * S, (5, 3), c * c), -1
    ),
    "laws.marchenko_pastur_density of square matrices": (
        lambda c: laws.marchenko_pastur_density(c * S, (3, 3), c * c), -1
    ),
    "laws.marchenko_pastur_distribution": (
        lambda c: laws.marchenko_pastur_distribution(c * S, (5, 3), c * c), 0
    ),
    "laws.tridiagonal_eigenvalues": (
        lambda c: laws.tridiagonal_eigenvalues(c * X5, c * of(0.5, 0.1, 0.7, 0.2)), 1
    ),
    "laws.gibbs_log_density": (
        lambda c: laws.gibbs_log_density(c * S, (3, 3), 2, beta=1 / c)
        - laws.gibbs_log_density(2 * c * S, (3, 3), 2, beta=1 / c), 0
    ),
    "laws.gibbs_energy_moment": (
        lambda c: of(laws.gibbs_energy_moment(-0.5, (3, 3), 3, 3, beta=1 / c)), -0.5
    ),
    "laws.ridge_mean_square": (
        lambda c: of(laws.ridge_mean_square((3, 3), 3, 3, beta=1 / c)), 1
    ),
    "exact.quadratic": (
        lambda c: exact.quadratic(c * S, c * of(1.0, 2.0, 0.5), 2, of(0.0, 0.3, 2.0) / c), 1
    ),
    "exact.quadratic_residual": (
        lambda c: exact.quadratic_residual(
            c * S, c * of(1.0, 2.0, 0.5), 2, of(0.0, 0.3, 2.0) / c
        ), 1
    ),
    "exact.two_layers": (
        lambda c: exact.two_layers([c * w for w in ROOT], c * c * Y, of(0.0, 0.3) / c / c), 2
    ),
    "dyson": (lambda c: dln.dyson(c * X5, dyson_index=2.0, **path(c)).states[-1], 1),
    "dyson, tridiagonal": (
        lambda c: dln.dyson(
            c * X5, dyson_index=2.0, scheme="tridiagonal", **path(c)
        ).states[-1], 1
    ),
    "singular_dyson": (lambda c: dln.singular_dyson(c * S, (4, 3), **path(c)).states[-1], 1),
    "isospectral_flow": (
        lambda c: dln.isospectral_flow(c * (H + H.T), dyson_index=2.0, **path(c)).states[-1], 1
    ),
    "dln_dyson": (
        lambda c: dln.dln_dyson(c * c * S, 2, beta=2.0, **path(c)).singular_values[-1], 2
    ),
    "losses.Quadratic": (lambda c: losses.Quadratic(c * Y).value(c * X), 2),
    "losses.Quadratic, gradient": (both(lambda c: losses.Quadratic(c * Y)), 1),
    "losses.Regression": (lambda c: losses.Regression(A, c * B).value(c * X), 2),
    "losses.Regression, gradient": (both(lambda c: losses.Regression(A, c * B)), 1),
    "losses.Sensing": (
        lambda c: losses.Sensing(normal(seed(), 4, 3, 2), c * S.repeat(2)[:4]).value(c * X), 2
    ),
    "losses.Completion": (lambda c: completion(c).value(c * X), 2),
    "losses.Completion, gradient": (both(completion), 1),
    "losses.Huber": (lambda c: losses.Huber(c * Y, delta=0.2 * c).value(c * X), 2),
    "losses.Huber, gradient": (both(lambda c: losses.Huber(c * Y, delta=0.2 * c)), 1),
    "losses.LpNorm": (lambda c: losses.LpNorm(c * Y, 1.5).value(c * X), 1.5),
    "losses.LpNorm, gradient": (both(lambda c: losses.LpNorm(c * Y, 1.5)), 0.5),
    "losses.from_callable": (
        lambda c: losses.from_callable(lambda x: (x - c * Y).square().sum((-2, -1))).value(c * X),
        2,
    ),
    "landscape.layer_hessian": (
        lambda c: landscape.layer_hessian(losses.Quadratic(c * c * c * Y), [c * w for w in TRIPLE]),
        4,
    ),
    "landscape.saddle_index": (
        lambda c: of(landscape.saddle_index(c * S, (3, 4, 3), [1])), 0
    ),
    "landscape.classify": (
        lambda c: of(landscape.classify(losses.Quadratic(c * c * Y), critical(c)).index), 0
    ),
    "landscape.critical_factors": (lambda c: dln.end_to_end(critical(1.0, c)), 1),
    "gauge_noise": (
        lambda c: dln.gauge_noise(
            [c * w for w in PAIR], beta=1.0, t_end=1e-3 * c * c, steps=3, generator=seed()
        ).final.matrix, 2
    ),
    "langevin": (
        lambda c: dln.langevin(
            losses.Quadratic(c * c * Y), dln.EndToEnd.of(c * c * X, 2), beta=2.0 / c**4,
            t_end=2e-3 / c**2, dt=1e-3 / c**2, generator=seed(),
        ).singular_values[-1], 2
    ),
    "langevin, splitting": (
        lambda c: dln.langevin(
            None, dln.EndToEnd.of(c * c * X, 2), beta=2.0, method="splitting", **path(c)
        ).singular_values[-1], 2
    ),
    "langevin, upstairs": (
        lambda c: dln.langevin(
            None, [c * w for w in ROOT], beta=2.0, upstairs=True, **path(c)
        ).singular_values[-1], 2
    ),
    "free_energy_flow": (
        lambda c: dln.free_energy_flow(
            losses.Quadratic(c * Y), dln.EndToEnd.of(c * X, 2), beta=3.0 / c / c, t_end=0.05 / c
        ).final.matrix, 1
    ),
    "random_balanced": (
        lambda c: dln.random_balanced((2, 3, 3), spectrum=c * S[:2], generator=seed()).matrix, 1
    ),
    "thermodynamics.partition_function": (
        lambda c: of(thermodynamics.partition_function(None, (3, 3), 3, beta=1 / c).energy), 1
    ),
    **{
        f"laws.{name}, {what}": entry
        for name, make in {
            "semicircle": lambda c: laws.semicircle(2 * c),
            "quarter_circle": lambda c: laws.quarter_circle(2 * c),
            "ullman": lambda c: laws.ullman(1.5, 2 * c),
            "marchenko_pastur": lambda c: laws.marchenko_pastur((5, 3), c * c),
            "gibbs_energy": lambda c: laws.gibbs_energy((3, 3), 3, 3, beta=1 / c),
        }.items()
        for what, entry in law(make).items()
    },
}  # fmt: skip

SHORT = {
    "free_energy_flow", "langevin", "landscape.classify", "thermodynamics.partition_function",
    "landscape.layer_hessian", "laws.marchenko_pastur_distribution",
}  # fmt: skip
"""Names whose squares of velocities, or powers of c, leave the range, which is told or refused.

At the time 0 of a law all its values are 0.
"""
