"""Partition functions by chains: against closed forms and integrals over angles."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.thermodynamics import partition_function
from tests.thermodynamics.routes import double_well, square

F64 = torch.float64


@pytest.mark.parametrize("method", ["annealing", "integration"])
@pytest.mark.parametrize(
    ("loss", "shape", "rank", "field", "kappa", "entropy"),
    [
        (None, (3, 3), 3, "real", 0.8, True),
        (square, (2, 4), 2, "complex", 1.0, True),
        (None, (4, 3), 2, "real", 1.0, False),
        (double_well, (3, 3), 2, "real", 1.2, True),
        (double_well, (2, 3), 2, "quaternion", 0.9, True),
    ],
)
def test_chains_agree_within_their_errors(
    loss, shape, rank, field, kappa, entropy, method, generator
):
    options = {"beta": 1.3, "kappa": kappa, "entropy": entropy, "rank": rank, "field": field}
    exact = partition_function(loss, shape, 3, **options)
    found = partition_function(
        loss, shape, 3, method=method, steps=90, generator=generator, **options
    )
    assert 0 < found.error < 0.1
    assert abs(found.log_z - exact.log_z) < 4 * found.error
    for name, error in found.errors.items():
        assert abs(getattr(found, name) - getattr(exact, name)) <= 4.5 * error + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("method", "steps"), [("annealing", 400), ("integration", 1000)])
def test_chains_agree_at_size_10(method, steps, generator):
    loss = dln.losses.Quadratic(torch.zeros(10, 10, dtype=F64))
    options = {"beta": 1.3, "kappa": 0.5}
    exact = partition_function(loss, (10, 10), 3, **options)
    chains = {"method": method, "steps": steps, "generator": generator}
    found = partition_function(loss, (10, 10), 3, **options, **chains)
    assert found.error < 1e-3 * abs(exact.log_z)
    assert abs(found.log_z - exact.log_z) < 4 * found.error


@pytest.mark.slow
def test_short_chains_at_size_20_know_their_lag(generator):
    """Too few steps to follow: the error must say so."""
    loss = dln.losses.Quadratic(torch.zeros(20, 20, dtype=F64))
    options = {"beta": 1.3, "kappa": 0.5}
    exact = partition_function(loss, (20, 20), 3, **options)
    chains = {"method": "integration", "steps": 40, "generator": generator}
    found = partition_function(loss, (20, 20), 3, **options, **chains)
    assert abs(found.log_z - exact.log_z) < 4 * found.error


def test_a_complex_number_beside_its_target():
    """Its phase integrated: ``E = (s^2 + y^2)/2 - log I_0(b s y)/b``, a function of s."""
    y, b, depth = 0.9, 1.3 / 0.8, 3
    target = torch.tensor([[y * 1j]], dtype=torch.complex128)

    def averaged(s):
        z = b * s * y
        value = 0.5 * (s.square() + y * y) - (torch.special.i0e(z).log() + z) / b
        return value.sum(-1)

    options = {"beta": 1.3, "kappa": 0.8, "field": "complex"}
    exact = partition_function(averaged, (1, 1), depth, **options)
    loss = dln.losses.Quadratic(target)
    found = partition_function(loss, (1, 1), depth, steps=100, generator=4, **options)
    assert abs(found.log_z - exact.log_z) < 4 * found.error


def test_a_matrix_of_rank_one_beside_its_target(generator):
    """Its angles integrated: a function of s again, and hidden layers wider than the rank."""
    b, depth, target = 1.3 / 0.8, 3, torch.tensor([[0.8, 0.1], [-0.4, 0.5]], dtype=F64)
    angle = torch.arange(48, dtype=F64) * (math.pi / 24)
    frame = torch.stack((angle.cos(), angle.sin()))
    along = (frame.T @ target @ frame).flatten()

    def averaged(s):
        mean = torch.logsumexp(b * s.unsqueeze(-1) * along, -1) - math.log(len(along))
        return (0.5 * (s.square() + target.square().sum()) - mean / b).sum(-1)

    options = {"beta": 1.3, "kappa": 0.8, "rank": 1}
    exact = partition_function(averaged, (2, 2), depth, **options)
    loss = dln.losses.Quadratic(target)
    found = partition_function(
        loss, (2, 2), depth, steps=100, generator=generator, method="annealing", **options
    )
    assert abs(found.log_z - exact.log_z) < 4 * found.error


def test_losses_that_see_directions(generator):
    """At depth 1 a Gaussian integral; deeper, at ``kappa = 1/2``, a mean of ``|det X|^{1/N-1}``."""
    target = torch.randn(2, 2, generator=generator, dtype=F64)
    loss, beta = dln.losses.Quadratic(target), 1.7
    flat = partition_function(loss, (2, 2), 1, beta=beta, steps=100, generator=generator)
    assert flat.method == "annealing"
    assert abs(flat.log_z - 2 * math.log(2 * math.pi / beta)) < 4 * flat.error
    depth = 3
    found = partition_function(loss, (2, 2), depth, beta=beta, kappa=0.5, generator=generator)
    x = target + torch.randn(400_000, 2, 2, generator=generator, dtype=F64) / math.sqrt(2 * beta)
    power = torch.linalg.det(x).abs() ** (1 / depth - 1)
    constant = 2 * (depth - 1) * dln.log_stiefel_volume(2, 2) - math.log(depth)
    exact = constant + 2 * math.log(math.pi / beta) + float(power.mean().log())
    error = math.hypot(found.error, float(power.std() / power.mean()) / math.sqrt(len(power)))
    # The mean has heavy tails: three more errors for its own.
    assert abs(found.log_z - exact) < 5 * error
