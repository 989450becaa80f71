"""Partition functions: against each other's routes, integrals over matrices, and derivatives."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close
from dln_geometry.thermodynamics import partition_function
from tests.thermodynamics.routes import double_well, square

F64 = torch.float64
PAIRS = [(case, f) for case in ("ridge", "square") for f in ("real", "complex", "quaternion")]
SMALL = [((2, 2), 2, 3), ((2, 3), 2, 2), ((2, 2), 1, 4)]


def together(s):
    """An energy that is no sum."""
    return s.square().sum(-1) ** 1.5


def logs(loss, *arguments, methods, **options):
    found = [partition_function(loss, *arguments, method=m, **options) for m in methods]
    return found


@pytest.mark.parametrize(("shape", "rank"), [((2, 3), 2), ((2, 2), 2), ((4, 3), 1), ((1, 1), 1)])
@pytest.mark.parametrize("depth", [1, 2.5, 4])
@pytest.mark.parametrize(("case", "field"), [*PAIRS, ("kappa 1", "complex")])
def test_closed_forms_are_quadratures(case, depth, shape, rank, field):
    kappa, entropy = {"square": (0.5, True), "kappa 1": (1.0, True)}.get(case, (0.7, False))
    loss = None if case == "ridge" else square
    options = {"beta": 1.3, "kappa": kappa, "entropy": entropy, "rank": rank, "field": field}
    one, two = logs(loss, shape, depth, methods=("closed", "quadrature"), **options)
    assert abs(one.log_z - two.log_z) < 1e-11 * max(1.0, abs(two.log_z))
    assert one.error == two.error == 0.0
    for name in ("energy", "heat_capacity"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-10)
    assert one.entropy == pytest.approx(two.entropy, rel=1e-9)


@pytest.mark.parametrize(
    ("field", "kappa", "entropy"),
    [("real", 0.5, True), ("real", 1.3, False), ("complex", 1.0, True), ("quaternion", 0.5, True)],
)
@pytest.mark.parametrize(("shape", "rank", "depth"), [((3, 2), 2, 3), ((3, 4), 2, 1.7)])
def test_pfaffians_are_quadratures(shape, rank, depth, field, kappa, entropy):
    options = {"beta": 1.3, "kappa": kappa, "entropy": entropy, "rank": rank, "field": field}
    one, two = logs(double_well, shape, depth, methods=("pfaffian", "quadrature"), **options)
    assert abs(one.log_z - two.log_z) < 1e-10
    for name in ("energy", "heat_capacity", "entropy"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-8)


def test_an_odd_pfaffian_is_a_quadrature():
    options = {"beta": 0.9, "kappa": 0.5}
    one, two = logs(double_well, (3, 3), 2, methods=("pfaffian", "quadrature"), **options)
    assert abs(one.log_z - two.log_z) < 1e-9
    for name in ("energy", "heat_capacity", "entropy"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-9)


@pytest.mark.parametrize("depth", [3, 10])
def test_pfaffians_keep_their_digits_at_size_100(depth):
    loss = dln.losses.Quadratic(torch.zeros(100, 100, dtype=F64))
    options = {"beta": 1.3, "kappa": 0.5}
    one, two = logs(loss, (100, 100), depth, methods=("closed", "pfaffian"), **options)
    assert abs(one.log_z - two.log_z) < 1e-12 * abs(one.log_z)
    assert two.error == 0.0


@pytest.mark.parametrize(
    ("shape", "rank", "depth"), [((2, 2), 2, 3), ((2, 3), 2, 2), ((2, 2), 1, 4)]
)
@pytest.mark.parametrize("entropy", [True, False])
def test_normalisation_is_that_of_volume_and_entropy(shape, rank, depth, entropy, generator):
    """By importance sampling over matrices, with the package's own volume and entropy."""
    m, n = shape
    beta, kappa, count = 1.4, 0.8, 40_000
    options = {"beta": beta, "kappa": kappa, "entropy": entropy, "rank": rank}
    exact = partition_function(None, shape, depth, **options).log_z
    if rank < min(shape):
        # The volume of rank r: angles times rho^(m+n-2r), as the mass of a ridge at depth 1.
        gauss = torch.randn(count, m + n - rank, rank, generator=generator, dtype=F64)
        rho = torch.linalg.svdvals(gauss)
        other = partition_function(None, shape, 1, beta=1.0, entropy=False, rank=rank).log_z
        s = (rho / math.sqrt(depth)) ** depth
        u = torch.eye(m, rank, dtype=F64).expand(count, m, rank)
        vh = torch.eye(rank, n, dtype=F64).expand(count, rank, n)
        point = dln.EndToEnd(u, s, vh, depth)
        power = 0.5 * rank * (m + n - rank - 1) * math.log(depth)
        log = -(beta / kappa) * 0.5 * rho.square().sum(-1) + 0.5 * rho.square().sum(-1)
        log = log - power + other
    else:
        # X = U (rho/sqrt N)^N V^T of a Gaussian Y: both have densities in their entries.
        y = torch.randn(count, m, n, generator=generator, dtype=F64)
        u, rho, vh = torch.linalg.svd(y, full_matrices=False)
        point = dln.EndToEnd(u, (rho / math.sqrt(depth)) ** depth, vh, depth)
        i, j = torch.triu_indices(rank, rank, 1)
        pairs = lambda x: (x[:, i] ** 2 - x[:, j] ** 2).abs().log().sum(-1)  # noqa: E731
        s = point.s
        # dX/dY: radial parts, pairs, and the side of the long dimension.
        slope = math.sqrt(depth) * (rho / math.sqrt(depth)) ** (depth - 1)
        jacobian = slope.log().sum(-1) + pairs(s) - pairs(rho)
        jacobian = jacobian + abs(m - n) * (s / rho).log().sum(-1)
        log = jacobian + dln.log_volume_density(point)
        log = log + (0.5 - 0.5 * beta / kappa) * rho.square().sum(-1)
        log = log + 0.5 * m * n * math.log(2 * math.pi)
    if entropy:
        log = log + dln.entropy(point) / kappa
    weights = (log - log.max()).exp()
    error = float(weights.std() / weights.mean()) / math.sqrt(count)
    assert abs(float(log.max() + weights.mean().log()) - exact) < 4 * error + 1e-12


def test_energy_and_heat_capacity_are_derivatives_of_log_z():
    betas, h = 1.1, 1e-3
    options = {"kappa": 0.5, "method": "pfaffian"}
    found = [
        partition_function(double_well, (4, 4), 3, beta=betas + k * h, **options)
        for k in (-1, 0, 1)
    ]
    low, here, high = (f.log_z for f in found)
    assert -0.5 * (high - low) / (2 * h) == pytest.approx(found[1].energy, rel=1e-5)
    curvature = betas**2 * (high - 2 * here + low) / h**2
    assert curvature == pytest.approx(found[1].heat_capacity, rel=1e-5)


def test_entropy_is_the_derivative_in_its_weight():
    """At fixed ``b = beta/kappa``, ``d log Z / d(1/kappa)`` is the mean entropy."""
    b, h = 1.2, 1e-4
    shares = [1.4 - h, 1.4, 1.4 + h]
    found = [partition_function(double_well, (2, 2), 3, beta=b / q, kappa=1 / q) for q in shares]
    slope = (found[2].log_z - found[0].log_z) / (2 * h)
    assert slope == pytest.approx(found[1].entropy, rel=1e-6)


def test_complex_and_quaternion_volumes_are_gram_determinants(generator):
    """``sqrt(det g)`` of the metric and the orbit volume, from their Gram matrices."""
    depth, d = 3, 2
    lam = torch.tensor([1.3, 0.7], dtype=F64)
    s = lam**depth
    # Complex d x d matrices as real vectors: A acts on the entries of U^* Z V by the kernel.
    a = dln.depth_kernel(s, depth)
    volume = -0.5 * 2 * a.log().sum()
    # In singular values and angles: 2 (d^2 - d) pairs, d phases, d radii.
    pairs = (s[0] ** 2 - s[1] ** 2).abs().log()
    flat = volume + 2 * pairs + s.log().sum() + (depth * lam ** (depth - 1)).log().sum()
    mine = 2 * (lam[0] ** 2 - lam[1] ** 2).abs().log() + lam.log().sum() + 0 * d * math.log(depth)
    assert_close(flat, mine)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: partition_function(lambda s: 0 * s.sum(-1), (2, 2), 2, beta=1.0),
            r"infinite: where 1 singular values .* 0 > .* fails",
        ),
        (
            lambda: partition_function(
                dln.losses.Completion([0], [0], [1.0], (2, 2)), (2, 2), 2, beta=1.0
            ),
            "partition function is infinite",
        ),
        (
            lambda: partition_function(
                dln.losses.Regression(torch.ones(1, 2), torch.ones(1, 2)), (2, 2), 2, beta=1.0
            ),
            "does not depend on 2 directions",
        ),
        (
            lambda: partition_function(square, (3, 3), math.inf, beta=1.0),
            r"\(r-1\)\(1/\(2 kappa\) - 1\) > 1 fails with r = 3",
        ),
        (
            lambda: partition_function(together, (2, 2), math.inf, beta=1.0, entropy=False),
            "fails with r = 2 and no entropy",
        ),
        (
            lambda: partition_function(
                lambda s: s.log().abs().sum(-1), (2, 2), math.inf, beta=1.0, kappa=0.5
            ),
            r"1 singular values grow like e\^T .* fails",
        ),
        (
            lambda: partition_function(
                dln.losses.Quadratic(torch.ones(2, 3)), (2, 3), math.inf, beta=1.0
            ),
            "shape must be square",
        ),
        (lambda: partition_function(None, (2, 2), math.inf, beta=1.0), "loss must be given"),
        (lambda: partition_function(together, (4, 4), 2, beta=1.0, method="closed"), "'closed'"),
        (lambda: partition_function(square, (4, 4), 2, beta=1.0, method="pfaffian"), "'pfaffian'"),
        (lambda: partition_function(square, (4, 4), 2, beta=1.0, method="quadrature"), "at most 3"),
        (
            lambda: partition_function(
                dln.losses.Quadratic(torch.ones(2, 2)), (2, 2), 2, beta=1.0, field="quaternion"
            ),
            "field must be 'real' or 'complex'",
        ),
        (
            lambda: partition_function(
                dln.losses.Regression(torch.ones(1, 2) * 1j, torch.ones(1, 2) * 1j),
                (2, 2),
                2,
                beta=1.0,
                field="complex",
            ),
            "does not depend on 4 directions",
        ),
        (lambda: partition_function(lambda s: s, (2, 2), 2, beta=1.0), "one value for each row"),
        (lambda: partition_function(None, (2, 2), 2, beta=1.0, rank=3), "rank must be at most 2"),
    ],
)
def test_errors_of_the_partition_function(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_weight_that_is_a_step_is_refused_in_words():
    with pytest.raises(ValueError, match="choose units in which the loss is about 1"):
        dln.thermodynamics.partition_function(None, (3, 2), 3, beta=1e300)
