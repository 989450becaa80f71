"""Exact samples: Kolmogorov and Smirnov's test against laws, and moments against exact ones."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import dln_geometry as dln
from dln_geometry import laws
from dln_geometry.testing import assert_close, assert_mean
from dln_geometry.thermodynamics import partition_function, sample_exact

F64 = torch.float64


def square(s):
    return 0.8 * s.square().sum(-1)


def double_well(s):
    return (s - 0.4).square().sum(-1) + 0.1 * s.pow(4).sum(-1)


def together(s):
    """An energy that is no sum."""
    return s.square().sum(-1) ** 1.5


def logarithms(s):
    return (0.5 * (s.log() - 0.4).square()).sum(-1)


def tilted(s):
    return logarithms(s) + 0.1 * s.sum(-1)


CASES = {
    "Laguerre, flat": (None, (4, 3), 2.5, 3, 0.7, False, "real"),
    "Laguerre, flat, quaternion": (None, (4, 3), 2, 2, 0.7, False, "quaternion"),
    "Laguerre": (square, (5, 5), 3, 5, 0.5, True, "real"),
    "Laguerre, quaternion": (square, (3, 4), 3, 2, 0.5, True, "quaternion"),
    "Muttalib-Borodin, flat": (None, (4, 3), 3, 3, 1.0, True, "complex"),
    "Muttalib-Borodin": (square, (3, 3), 2.5, 3, 1.0, True, "complex"),
    "infinite depth": (square, (3, 3), math.inf, 3, 1.0, True, "complex"),
    "biorthogonal": (double_well, (5, 4), 3, 4, 1.0, True, "complex"),
    "orthogonal": (double_well, (3, 3), 3, 3, 0.9, False, "complex"),
    "biorthogonal, infinite depth": (tilted, (3, 3), math.inf, 3, 1.0, True, "complex"),
    "Hermite": (logarithms, (4, 4), math.inf, 4, 0.9, False, "real"),
    "two values": (double_well, (2, 2), 3, 2, 0.8, True, "real"),
    "two values, no sum": (together, (2, 3), 3, 2, 0.8, True, "quaternion"),
    "two values, infinite depth": (tilted, (2, 2), math.inf, 2, 0.8, True, "real"),
    "Pfaffian": (double_well, (3, 3), 2, 3, 0.5, True, "real"),
    "Pfaffian, rectangular": (double_well, (5, 4), 2.5, 4, 0.8, False, "real"),
    "Pfaffian, infinite depth": (tilted, (3, 3), math.inf, 3, 0.9, False, "real"),
    "Pfaffian, quaternion": (double_well, (3, 4), 3, 3, 0.5, True, "quaternion"),
    "one value": (double_well, (3, 2), 3, 1, 0.8, True, "real"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_moments_are_those_of_the_partition_function(case, generator):
    loss, shape, depth, rank, kappa, entropy, field = case
    options = {"beta": 1.3, "kappa": kappa, "entropy": entropy, "field": field, "rank": rank}
    points = sample_exact(loss, shape, depth, size=1500, generator=generator, **options)
    exact = partition_function(loss, shape, depth, **options)
    s = points.s[:, ::2] if field == "quaternion" else points.s
    energy = 0.5 * depth * (s ** (2 / depth)).sum(-1) if loss is None else loss(s)
    assert_mean(energy, exact.energy)
    assert_mean((1.3 / kappa) ** 2 * (energy - exact.energy).square(), exact.heat_capacity)
    # Of the pairs; of quaternions this also looks at the structure of the matrices.
    assert_mean(dln.entropy(points, field=field), exact.entropy)
    if loss in (None, square, together) and math.isfinite(depth) and field == "real":
        degree = 2 / depth if loss is None else 2
        law = laws.gibbs_energy(
            shape, rank, depth, beta=1.3, kappa=kappa, entropy=entropy, degree=degree
        )
        shares = law.distribution(energy).clamp(0, 1)
        assert stats.kstest(shares, stats.uniform.cdf).pvalue > 1e-4


@pytest.mark.parametrize("case", ["Laguerre, flat", "two values", "two values, infinite depth"])
def test_largest_values_have_their_density(case, generator):
    """By Kolmogorov and Smirnov's test against sums over `laws.gibbs_log_density`."""
    loss, shape, depth, _, kappa, entropy, _ = CASES[case]
    options = {"beta": 1.3, "kappa": kappa, "entropy": entropy}
    points = sample_exact(loss, shape, depth, rank=2, size=1500, generator=generator, **options)
    largest = points.s[:, 0].sort().values
    top = torch.linspace(0, 1.3 * float(largest[-1]), 601, dtype=F64)[1:]
    # Quotients that crowd at zero, where some densities are infinite.
    share = ((torch.arange(300, dtype=F64) + 0.5) / 300) ** 4
    s = torch.stack((top[:, None].expand(-1, 300), top[:, None] * share), -1)
    log = laws.gibbs_log_density(s, shape, depth, energy=loss, **options)
    log = log + top.log()[:, None] + 0.75 * share.log()
    density = (log - log.max()).exp().sum(-1)
    sums = torch.cat((density.new_zeros(1), 0.5 * (density[1:] + density[:-1]).cumsum(0)))
    place = (largest / top[0] - 1).clamp_min(0)
    k = place.long()
    exact = (sums[k] + (place - k) * (sums[k + 1] - sums[k])) / sums[-1]
    assert stats.kstest(exact.clamp(0, 1), stats.uniform.cdf).pvalue > 1e-4


def test_two_values_of_a_classical_law_are_those_of_inversion(generator):
    """Different ways to one law, by Kolmogorov and Smirnov's test of each value."""
    options = {"beta": 1.1, "kappa": 1.0, "field": "complex", "size": 1000}
    one = sample_exact(square, (2, 3), 2.5, generator=generator, **options)
    # Not recognised as a power.
    bent = lambda s: square(s) + 1e-9 * s.pow(4).sum(-1)  # noqa: E731
    two = sample_exact(bent, (2, 3), 2.5, generator=generator, **options)
    for k in range(2):
        assert stats.ks_2samp(one.s[:, k], two.s[:, k]).pvalue > 1e-4


@pytest.mark.parametrize(("field", "r"), [("real", 5), ("quaternion", 3)])
def test_pfaffian_draws_have_the_law_of_matrices(field, r, generator):
    """Values, and the gaps between them, against bidiagonal matrices: not recognised as a power."""
    options = {"beta": 1.1, "kappa": 0.5, "field": field, "size": 800, "generator": generator}
    bent = lambda s: square(s) + 1e-9 * s.pow(4).sum(-1)  # noqa: E731
    one, two = (sample_exact(f, (r, r), 2.5, **options).s for f in (square, bent))
    if field == "quaternion":
        one, two = one[:, ::2], two[:, ::2]
    for a, b in ((one, two), (one.diff(dim=-1), two.diff(dim=-1))):
        for k in range(a.shape[-1]):
            assert stats.ks_2samp(a[:, k], b[:, k]).pvalue > 1e-4


def test_complex_matrices_at_kappa_one_half_are_gaussian(generator):
    """Volume and orbits cancel: ``e^{-2 beta E} dX`` at every depth, whatever the target."""
    target = torch.tensor([[1.0, 0.5j], [-0.3, 2.0 + 1j]], dtype=torch.complex128)
    loss, beta, depth = dln.losses.Quadratic(target), 1.7, 3
    options = {"beta": beta, "kappa": 0.5, "field": "complex"}
    x = sample_exact(loss, (2, 2), depth, size=3000, generator=generator, **options).matrix
    z = torch.view_as_real((x - target) * math.sqrt(2 * beta)).flatten()
    assert stats.kstest(z, stats.norm.cdf).pvalue > 1e-4
    p = dln.EndToEnd.of(x, depth)
    flat = 2 * dln.entropy(p) + dln.log_volume_density(p)
    assert_close(flat, flat[:1].expand(3000), ops=1e4)
    options |= {"method": "integration", "steps": 80, "generator": generator}
    found = partition_function(loss, (2, 2), depth, **options)
    exact = float(flat[0]) + 4 * math.log(math.pi / beta)
    assert abs(found.log_z - exact) < 4 * found.error
    assert abs(found.energy - 4 / (2 * beta)) < 4.5 * found.errors["energy"]


@pytest.mark.parametrize("depth", [1, 3])
def test_matrices_are_uniform_in_their_frames(depth, generator):
    if depth == 1:
        loss, mean = dln.losses.Quadratic(torch.eye(3, 2, dtype=F64)), torch.eye(3, 2, dtype=F64)
    else:
        loss, mean = None, torch.zeros(3, 2, dtype=F64)
    options = {"beta": 1.6, "kappa": 0.7, "entropy": False}
    points = sample_exact(loss, (3, 2), depth, size=(30, 50), generator=generator, **options)
    assert points.batch_shape == (30, 50)
    x = points.matrix.flatten(0, 1)
    error = x.std(0) / math.sqrt(len(x))
    assert bool(((x.mean(0) - mean).abs() < 4.5 * error).all())
    if depth == 1:
        z = ((x - mean) * math.sqrt(1.6 / 0.7)).flatten()
        assert stats.kstest(z, stats.norm.cdf).pvalue > 1e-4
    single = sample_exact(loss, (3, 2), depth, generator=generator, **options)
    assert single.matrix.shape == (3, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sample_exact(double_well, (3, 3), 3, beta=1.0), "no exact way .* got rank 3"),
        (
            lambda: sample_exact(dln.losses.Quadratic(torch.ones(2, 2)), (2, 2), 2, beta=1.0),
            "no exact way",
        ),
        (lambda: sample_exact(lambda s: 0 * s.sum(-1), (2, 2), 2, beta=1.0), "is infinite"),
        (
            lambda: sample_exact(logarithms, (2, 3), math.inf, beta=1.0),
            "shape must be square and rank full",
        ),
        (lambda: sample_exact(square, (2, 2), math.inf, beta=1.0), "fails with r = 2"),
    ],
)
def test_refusals_give_the_reason(call, words):
    with pytest.raises(ValueError, match=words):
        call()
