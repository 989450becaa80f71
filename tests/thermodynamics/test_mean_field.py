"""The limit of infinite width: against laws, paths of many particles, and its own order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry import laws
from dln_geometry.testing import assert_close

F64 = torch.float64
WIDE = [(3, 1, True), (2, 2, True), (math.inf, 1, False), (math.inf, 1, True)]
START = laws.quarter_circle(1.0)


def ridge(depth):
    return lambda s: 0.5 * depth * (s ** (2 / depth)).sum(-1)


def far(path, exact):
    """Return the mean distance of the last quantiles from exact ones."""
    return float(((path.states[-1] - exact).abs() * path.weights).sum())


@pytest.mark.parametrize("depth", [1, 3.5])
def test_quarter_circle_spreads_and_the_error_is_of_second_order(depth):
    """``R^2`` grows by ``8 kappa t/beta`` at every depth."""
    beta, kappa, t = 1.3, 0.7, 0.3
    scale = depth ** (-depth / 2)
    start = START.power(depth, scale)
    errors, sizes = [], (40, 80, 160, 320)
    for n in sizes:
        path = dln.mean_field_flow(
            start, depth, beta=beta, kappa=kappa, entropy=False, t_end=t, points=n, rtol=1e-9
        )
        radius = math.sqrt(1 + 8 * kappa * t / beta)
        errors.append(far(path, laws.quarter_circle(radius).quantile(path.probabilities)))
        assert_close(path.weights.sum(), 1.0)
        assert bool((path.states.diff(dim=-1) > 0).all())
        assert bool((path.density > 0).all())
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert abs(slope + 2) < 0.15
    assert errors[-1] < 2e-6


def test_complex_burgers_equation_holds():
    """``G_t(z) = G_0(z - (2 kappa t/beta) G_t(z))`` of a density that is no law of ours."""
    s = torch.linspace(0, 1, 4002, dtype=F64)[1:-1]
    values = 0.4 + 0.5 * s + 0.25 * torch.sin(2 * math.pi * s) / math.pi
    beta, kappa, t = 1.6, 0.9, 0.2
    path = dln.mean_field_flow(
        values, 1, beta=beta, kappa=kappa, entropy=False, t_end=t, save_at=[0.0, t]
    )
    z = torch.tensor([0.3 + 0.4j, 0.9 + 0.3j, 1.6 + 0.5j, 0.1 + 1.0j], dtype=torch.complex128)

    def transform(x, z):
        return (path.weights * z[:, None] / (z[:, None] ** 2 - x**2)).sum(-1)

    g = transform(path.states[1], z)
    assert float((g - transform(path.states[0], z - 2 * kappa * t / beta * g)).abs().max()) < 2e-5


@dataclass(frozen=True)
class Uniform(laws.ProbabilityLaw):
    """Uniform on [0.4, 1.2]: jumps at both ends."""

    low, high = 0.4, 1.2

    def _density(self, x):
        return torch.full_like(x, 1.25)

    def _distribution(self, x):
        return (x - 0.4) * 1.25

    def _quantile(self, q):
        return 0.4 + 0.8 * q

    def _moment(self, k):
        return (1.2 ** (k + 1) - 0.4 ** (k + 1)) * 1.25 / (k + 1)


@pytest.mark.parametrize("t", [0.2, 0.8])
def test_the_order_is_two_from_jumps_and_where_the_density_meets_zero(t):
    beta, kappa, sizes = 1.6, 0.9, (40, 80, 160, 320)
    z = torch.tensor([0.3 + 0.4j, 0.9 + 0.3j, 1.6 + 0.5j, 0.1 + 1.0j], dtype=torch.complex128)

    def first(z):
        return 0.625 * ((z - 0.4).log() - (z - 1.2).log() + (z + 1.2).log() - (z + 0.4).log())

    g = first(z)
    for _ in range(800):
        g = 0.7 * g + 0.3 * first(z - 2 * kappa * t / beta * g)
    errors = []
    for n in sizes:
        path = dln.mean_field_flow(
            Uniform(), 1, beta=beta, kappa=kappa, entropy=False, t_end=t, points=n, rtol=1e-8,
            save_at=[0.0, 0.3 * t, t],
        )  # fmt: skip
        assert bool((path.states.diff(dim=-1) > 0).all())
        assert path.states[0, 0] > 0.4
        x = path.states[-1]
        found = (path.weights * z[:, None] / (z[:, None] ** 2 - x**2)).sum(-1)
        errors.append(float((found - g).abs().max()))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert abs(slope + 2) < 0.2


@pytest.mark.parametrize("depth", [2, 3.5])
@pytest.mark.parametrize("case", ["no entropy", "kappa 1", "kappa 1/2"])
def test_equilibria_under_the_ridge(case, depth):
    b = 1.3
    kappa = {"no entropy": 0.7, "kappa 1": 1.0, "kappa 1/2": 0.5}[case]
    if case == "no entropy":
        law = laws.quarter_circle(2 * math.sqrt(kappa / b)).power(depth, depth ** (-depth / 2))
    elif case == "kappa 1":
        law = laws.fuss_catalan(depth).power(0.5, b ** (-depth / 2))
    else:
        q = 2 / depth
        power = math.sqrt(math.pi) * math.gamma(q / 2 + 1) / (b * math.gamma((q + 1) / 2))
        law = laws.ullman(q, power ** (1 / q))
    path = dln.mean_field_flow(
        START, depth, loss=ridge(depth), beta=b, kappa=kappa, entropy=case != "no entropy",
        t_end=12.0, points=150, save_at=[12.0],
    )  # fmt: skip
    exact = math.sqrt(depth) * law.quantile(path.probabilities) ** (1 / depth)
    assert far(path, exact) < 1e-4
    assert float(path.moment(2)[-1]) == pytest.approx(law.moment(2), rel=1e-3)


def test_rectangular_matrices_spread_by_marchenko_and_pastur():
    """From far below: ``rho^2`` of an m x n Brownian motion, ``aspect = m/n``."""
    aspect, beta, t0, t = 2.5, 2.0, 0.2, 0.7
    # Entries have the variance 2 t/(beta n) at n columns.
    shape = (5, 2)
    start = laws.marchenko_pastur(shape, 2 * t0 / (beta * 2))
    path = dln.mean_field_flow(
        start, 1, beta=beta, entropy=False, aspect=aspect, t_end=t - t0, points=200
    )
    exact = laws.marchenko_pastur(shape, 2 * t / (beta * 2)).quantile(path.probabilities)
    assert far(path, exact) < 2e-5


@pytest.mark.parametrize(
    ("depth", "aspect", "kappa", "entropy"), [(2, 2.5, 1.0, True), (3, 1.5, 0.7, True)]
)
def test_rectangular_ridge_has_the_energy_of_equipartition(depth, aspect, kappa, entropy):
    """``kappa D/beta`` of finite matrices, divided by ``r^2``."""
    b = 1.3
    path = dln.mean_field_flow(
        laws.marchenko_pastur((5, 2), 0.1), depth, loss=ridge(depth), beta=b, kappa=kappa,
        entropy=entropy, aspect=aspect, t_end=12.0, points=100, save_at=[12.0],
    )  # fmt: skip
    exact = kappa / b * (aspect + 0.5 * (depth - 1) / kappa)
    assert float((path.states[-1].square() * path.weights).sum()) == pytest.approx(exact, rel=5e-6)


def test_transform_of_rectangular_matrices_solves_its_equation():
    """``M_t + (2 kappa/b) d_w (w M^2 + alpha M) = 2 d_w (w M)`` under the ridge, no entropy."""
    aspect, kappa, b, h = 1.8, 0.7, 1.3, 1e-3
    path = dln.mean_field_flow(
        laws.marchenko_pastur((5, 2), 0.1), 1, loss=ridge(1), beta=b, kappa=kappa, entropy=False,
        aspect=aspect, t_end=0.3, points=400, save_at=[0.3 - 2 * h, 0.3 - h, 0.3], rtol=1e-10,
    )  # fmt: skip
    w = torch.tensor([-0.5 + 0.4j, 0.7 + 0.8j, 3.0 + 0.6j], dtype=torch.complex128)
    resolvent = 1 / (w[:, None] - path.states[:, None, :].square())
    first = (path.weights * resolvent).sum(-1)
    slope = -(path.weights * resolvent[1].square()).sum(-1)
    m, rate = first[1], (first[2] - first[0]) / (2 * h)
    alpha = aspect - 1
    flow = 2 * kappa / b * (m * m + 2 * w * m * slope + alpha * slope) - 2 * (m + w * slope)
    assert float((rate + flow).abs().max()) < 2e-5 * float(rate.abs().max() + flow.abs().max())


def test_infinite_depth_spreads_like_a_semicircle():
    beta, kappa, t = 1.5, 0.8, 0.6
    q = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    path = dln.mean_field_flow(
        laws.semicircle(1.0).quantile(q).exp(), math.inf, beta=beta, kappa=kappa, entropy=False,
        t_end=t, points=150,
    )  # fmt: skip
    # The variance grows by kappa t/beta.
    radius = math.sqrt(1 + 4 * kappa * t / beta)
    assert far(path, laws.semicircle(radius).quantile(path.probabilities)) < 2e-4


@pytest.mark.parametrize(("depth", "aspect", "entropy"), WIDE)
def test_wide_matrices_follow_the_limit(depth, aspect, entropy, generator):
    """One path of 300 particles: linear statistics deviate by O(1/300)."""
    r, b, t = 300, 1.4, 0.25
    start = laws.quarter_circle(1.0) if aspect == 1 else laws.marchenko_pastur((4, 2), 0.2)
    if math.isinf(depth):
        start = start.power(0.3)
    loss = lambda s: 0.5 * (s - 0.6).square().sum(-1)  # noqa: E731
    q = (torch.arange(r, dtype=F64) + 0.5) / r
    options = {"loss": loss, "kappa": 0.8, "entropy": entropy, "t_end": t}
    path = dln.mean_field_flow(start, depth, beta=b, aspect=aspect, points=200, **options)
    paths = dln.dln_dyson(
        start.quantile(q), depth, beta=b * r, shape=(round(aspect * r), r), dt=0.005,
        generator=generator, **options,
    )  # fmt: skip
    for k in (1, 2):
        wide = float(paths.final.pow(k).mean())
        assert abs(wide - float(path.moment(k)[-1])) < 8 / r


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dln.mean_field_flow([1.0, 1.0, 2.0, 2.0], 2, beta=1.0, t_end=1.0), "no atoms"),
        (lambda: dln.mean_field_flow([1.0, 2.0], 2, beta=1.0, t_end=1.0), "at least four"),
        (lambda: dln.mean_field_flow(START, 2, beta=1.0, aspect=0.5, t_end=1.0), "aspect must be"),
        (
            lambda: dln.mean_field_flow(START, math.inf, beta=1.0, aspect=2.0, t_end=1.0),
            "aspect must be 1 at infinite depth",
        ),
        (
            lambda: dln.mean_field_flow(START, 2, beta=1.0, t_end=1.0, save_at=[0.0, 2.0]),
            "save_at must ascend within",
        ),
        (
            lambda: dln.mean_field_flow(laws.semicircle(), 2, beta=1.0, t_end=1.0),
            "density must be one of positive",
        ),
        (
            lambda: dln.mean_field_flow(START, 2, beta=1.0, t_end=1.0, loss=lambda s: 1.0),
            "loss must return one value",
        ),
    ],
)
def test_errors_of_the_mean_field(call, words):
    with pytest.raises(ValueError, match=words):
        call()
