"""Partition functions at infinite depth: ways to them, their normalisation, and large depths."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.thermodynamics import partition_function

F64 = torch.float64


def square(s):
    return 0.8 * s.square().sum(-1)


def tilted(s):
    return (0.5 * (s.log() - 0.4).square() + 0.1 * s).sum(-1)


@pytest.mark.parametrize(
    ("loss", "r", "field", "kappa", "entropy"),
    [
        (square, 2, "complex", 0.5, True),
        (square, 2, "complex", 1.0, True),
        (square, 2, "quaternion", 0.5, True),
        (tilted, 3, "real", 0.7, False),
        (tilted, 2, "real", 0.5, True),
        (tilted, 2, "complex", 1.0, True),
        (tilted, 2, "quaternion", 0.5, True),
    ],
)
def test_ways_agree(loss, r, field, kappa, entropy):
    options = {"beta": 1.3, "kappa": kappa, "entropy": entropy, "field": field}
    one, two = (
        partition_function(loss, (r, r), math.inf, method=m, **options)
        for m in ("pfaffian", "quadrature")
    )
    found = [one]
    if loss is square:
        found.append(partition_function(loss, (r, r), math.inf, method="closed", **options))
    for value in found:
        assert abs(value.log_z - two.log_z) < 1e-10
        for name in ("energy", "heat_capacity", "entropy"):
            assert getattr(value, name) == pytest.approx(getattr(two, name), rel=1e-8)


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("r", [1, 3])
def test_normalisation_is_that_of_volume_and_entropy(r, entropy, generator):
    """By importance sampling over matrices, with the package's own volume and entropy."""
    kappa, count = 0.8, 20_000
    options = {"beta": 1.4, "kappa": kappa, "entropy": entropy}
    exact = partition_function(tilted, (r, r), math.inf, **options).log_z
    # Gaussian exponents and uniform bases spread as the measure does.
    h = torch.randn(count, r, r, generator=generator, dtype=F64)
    u = 0.5 * (h + h.mT) + 0.6 * torch.eye(r, dtype=F64)
    values, w = torch.linalg.eigh(u)
    s = values.flip(-1).exp()
    w = w.flip(-1)
    point = dln.EndToEnd(w, s, w.mT, math.inf, check=False)
    # dX over dH times the uniform measure of O, of mass vol(O(r)) in unit generators.
    i, j = torch.triu_indices(r, r, 1)
    x = s.log()
    flat = ((s[:, i] ** 2 - s[:, j] ** 2) / (x[:, i] - x[:, j])).log().sum(-1) + x.sum(-1)
    # Generators E_ij - E_ji in O have the length sqrt 2, and so have symmetric ones in H.
    mass = dln.log_stiefel_volume(r, r) - 0.25 * r * (r - 1) * math.log(2.0)
    log = dln.log_volume_density(point) + flat + mass - 0.25 * r * (r - 1) * math.log(2.0)
    log = log - (1.4 / kappa) * tilted(s)
    if entropy:
        log = log + dln.entropy(point) / kappa
    gauss = -0.5 * (u - 0.6 * torch.eye(r, dtype=F64)).square().sum((-2, -1))
    free = 0.25 * r * (r + 1) * math.log(2 * math.pi)
    log = log - gauss + free
    weights = (log - log.max()).exp()
    error = float(weights.std() / weights.mean()) / math.sqrt(count)
    found = float(log.max() + weights.mean().log())
    assert error < 0.05
    assert abs(found - exact) < 4 * error


def test_it_is_the_limit_of_depth():
    options = {"beta": 1.3, "kappa": 0.5}
    limit = partition_function(tilted, (2, 2), math.inf, **options)
    gaps = []
    for depth in (20, 40, 80):
        deep = partition_function(tilted, (2, 2), depth, **options)
        gaps.append((deep.energy - limit.energy, deep.heat_capacity - limit.heat_capacity))
    for k in range(2):
        assert gaps[1][k] / gaps[2][k] == pytest.approx(2, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "r", "field", "kappa", "method"),
    [(tilted, 3, "real", 0.5, "annealing"), (square, 2, "complex", 1.0, "integration")],
)
def test_chains_agree_within_their_errors(loss, r, field, kappa, method, generator):
    options = {"beta": 1.3, "kappa": kappa, "field": field}
    exact = partition_function(loss, (r, r), math.inf, **options)
    found = partition_function(
        loss, (r, r), math.inf, method=method, steps=40, generator=generator, **options
    )
    assert 0 < found.error < 0.3
    assert abs(found.log_z - exact.log_z) < 4 * found.error
    for name, error in found.errors.items():
        assert abs(getattr(found, name) - getattr(exact, name)) <= 4.5 * error + 1e-6
