"""The equilibrium: its density against quadratures and samples, its moments against the density."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry import laws
from dln_geometry.testing import assert_close

F64 = torch.float64


def quadrature(shape, rank, depth, energy, order, **law):
    """Return ``E[energy^order]`` by the density on a grid in ``s^{1/N}``, rank at most 2."""
    x = np.polynomial.legendre.leggauss(400)
    rho = torch.tensor((x[0] + 1) * 3.2, dtype=F64)
    weight = torch.tensor(x[1], dtype=F64)
    grid = torch.cartesian_prod(*[rho] * rank).view(-1, rank)
    w = torch.cartesian_prod(*[weight] * rank).view(-1, rank).prod(-1)
    s = grid**depth
    # ds = N rho^(N-1) drho
    log = laws.gibbs_log_density(s, shape, depth, energy=energy, **law)
    log = log + (depth - 1) * grid.log().sum(-1)
    p = w * torch.exp(log - log[log.isfinite()].max()).nan_to_num(0.0)
    e = energy(s) if energy else 0.5 * depth * (s ** (2 / depth)).sum(-1)
    return float((p * e**order).sum() / p.sum())


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize(("shape", "rank"), [((3, 2), 2), ((2, 2), 2), ((4, 3), 2), ((3, 5), 1)])
@pytest.mark.parametrize("depth", [1, 2.5, 4])
def test_moments_of_the_energy_are_those_of_the_density(shape, rank, depth, entropy):
    law = {"beta": 2.3, "kappa": 0.8, "entropy": entropy}
    square = lambda s: 0.5 * s.square().sum(-1)  # noqa: E731
    for energy, degree in ((None, None), (square, 2.0)):
        for order in (1, 2, 0.5):
            exact = laws.gibbs_energy_moment(order, shape, rank, depth, degree=degree, **law)
            found = quadrature(shape, rank, depth, energy, order, **law)
            # The kernels have kinks where two singular values are equal.
            assert abs(found / exact - 1) < 1e-3


@pytest.mark.parametrize("field", ["complex", "quaternion"])
@pytest.mark.parametrize(("shape", "depth", "entropy"), [((4, 3), 2.5, True), ((2, 2), 3, False)])
def test_moments_over_other_fields_are_those_of_the_density(shape, depth, entropy, field):
    law = {"beta": 4.3, "kappa": 0.8, "entropy": entropy, "field": field}
    exact = laws.gibbs_energy_moment(1, shape, 2, depth, **law)
    assert abs(quadrature(shape, 2, depth, None, 1, **law) / exact - 1) < 1e-6
    found = dln.thermodynamics.partition_function(None, shape, depth, rank=2, **law)
    assert found.energy == pytest.approx(exact, rel=1e-12)
    assert laws.gibbs_energy(shape, 2, depth, **law).moment(1) == pytest.approx(exact, rel=1e-12)
    assert laws.ridge_mean_square(shape, 2, depth, **law) == pytest.approx(2 * exact, rel=1e-12)


def test_density_is_the_law_of_samples(generator):
    start = dln.Collapsed.random((3, 2), 2, 3, generator=generator, dtype=F64)
    loss = dln.losses.Quadratic(torch.zeros(3, 2, dtype=F64))
    path = dln.sample_gibbs(
        loss, start.expand((300,)), beta=2.0, kappa=0.8, draws=40, thin=5, generator=generator
    )
    means = path.singular_values.mean((0, -1))
    square = lambda s: 0.5 * s.square().sum(-1)  # noqa: E731
    x = np.polynomial.legendre.leggauss(300)
    rho = torch.tensor((x[0] + 1) * 0.9, dtype=F64)
    s = torch.cartesian_prod(rho, rho) ** 3
    log = laws.gibbs_log_density(s, (3, 2), 3, beta=2.0, kappa=0.8, energy=square)
    weight = torch.tensor(np.outer(x[1], x[1]).ravel(), dtype=F64) * (s ** (2 / 3)).prod(-1)
    p = weight * torch.exp(log - log[log.isfinite()].max()).nan_to_num(0.0)
    exact = float((p * s.mean(-1)).sum() / p.sum())
    error = float(means.std()) / math.sqrt(len(means))
    assert abs(float(means.mean()) - exact) < 4 * error


def test_ridge_without_entropy_is_laguerre_in_flat_coordinates(generator):
    """In ``rho = sqrt(N) s^{1/N}`` the density is that of a Gaussian m x n matrix."""
    s = torch.rand(7, 3, generator=generator, dtype=F64) + 0.1
    for depth in (1, 3.5):
        found = laws.gibbs_log_density(s, (5, 3), depth, beta=1.7, entropy=False)
        rho = math.sqrt(depth) * s ** (1 / depth)
        i, j = torch.triu_indices(3, 3, 1)
        pairs = (rho[:, i] ** 2 - rho[:, j] ** 2).abs().log().sum(-1)
        log = pairs + 2 * rho.log().sum(-1) - 0.85 * rho.square().sum(-1)
        log = log + (1 / depth - 1) * s.log().sum(-1)
        assert_close(found - found[0], log - log[0], scale=30.0)


def test_infinite_depth_is_the_limit(generator):
    s = torch.rand(6, 2, generator=generator, dtype=F64) + 0.2
    energy = lambda s: s.square().sum(-1)  # noqa: E731
    law = {"beta": 1.4, "kappa": 0.3, "energy": energy}
    gaps = [laws.gibbs_log_density(s, (2, 2), depth, **law) for depth in (1e7, math.inf)]
    gaps = [gap - gap[0] for gap in gaps]
    assert float((gaps[0] - gaps[1]).abs().max()) < 1e-5


def test_gradients_go_through_the_density(generator):
    s = (torch.rand(2, 3, generator=generator, dtype=F64) + 0.3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: laws.gibbs_log_density(s, (4, 3), 2.5, beta=1.3, kappa=0.7), s
    )


def test_fuss_catalan_moments_are_those_of_products_of_gaussian_layers(generator):
    size, depth = 400, 2
    layers = torch.randn(depth, size, size, generator=generator, dtype=F64) / math.sqrt(size)
    x = torch.linalg.svdvals(layers[1] @ layers[0]).square()
    for order in (1, 2, 3):
        exact = laws.fuss_catalan_moment(order, depth)
        assert abs(float((x**order).mean()) / exact - 1) < 0.05
    assert [laws.fuss_catalan_moment(k, 1) for k in range(5)] == [1, 1, 2, 5, 14]


def test_semicircle_of_particles_at_a_time():
    x = [0.3, 1.2]
    radius = laws.semicircle_radius(5, 0.7)
    for law in (laws.semicircle_density, laws.semicircle_distribution):
        assert (law(x, n=5, t=0.7) == law(x, radius)).all()
        assert (law(x) == law(x, 2.0)).all()
        with pytest.raises(ValueError, match="radius must come without n and t"):
            law(x, 2.5, n=5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: laws.gibbs_log_density([1.0], (2, 2), math.inf, beta=1.0), "energy must be given"),
        (lambda: laws.gibbs_log_density([0.0], (2, 2), 2, beta=1.0), "s must be positive"),
        (lambda: laws.gibbs_log_density([1.0] * 3, (2, 2), 2, beta=1.0), "1 <= r <= 2"),
        (lambda: laws.gibbs_energy_moment(-9, (2, 2), 2, 2, beta=1.0), "order must be finite"),
        (lambda: laws.gibbs_energy_moment(1, (2, 2), 2, math.inf, beta=1.0), "depth finite"),
    ],
)
def test_errors_of_the_equilibrium(call, words):
    with pytest.raises(ValueError, match=words):
        call()
