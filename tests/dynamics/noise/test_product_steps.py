from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

import dln_geometry as dln
from dln_geometry.testing import assert_close, assert_mean, assert_order
from tests.dynamics.noise.routes import BETA, F64, KAPPA, Ridge, quadratic, start_at

CASES = [(3, (3, 3), 3), (4, (4, 3), 3), (2.7, (3, 4), 2), (math.inf, (3, 3), 3), (3, (4, 4), 2)]


def _both_ways(loss, start, shape, h, chains, generator, **options):
    """One step with increments of both signs: even and odd part of the motion."""
    dw = math.sqrt(h) * torch.randn(1, chains, *shape, generator=generator, dtype=F64)
    plus, minus = (
        dln.langevin(
            loss, start, beta=BETA, kappa=KAPPA, t_end=h, increments=z, **options
        ).final.matrix
        for z in (dw, -dw)
    )
    return (plus + minus) / 2, (plus - minus) / 2


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize(
    ("depth", "shape", "rank"),
    [*CASES, (1.5, (3, 3), 3), (2, (2, 4), 1), (12, (3, 3), 3), (math.inf, (4, 5), 2)],
    ids=str,
)
def test_generator_of_one_step(depth, shape, rank, entropy, generator):
    """Drift and covariance of theory, every parameter generic."""
    chains, h = 8000, 1e-4
    p = start_at(shape, rank, depth, generator)
    loss = quadratic(shape, generator)
    even, odd = _both_ways(
        loss, p.expand((chains,)), shape, h, chains, generator, entropy=entropy, widths=rank
    )
    layers = 1.0 if math.isinf(depth) else depth - 1.0
    q = p.point()
    drift = -dln.cometric(q, loss.gradient(q.matrix))
    drift = drift + KAPPA / BETA * layers * (q.u * q.s ** (1 - 2 / depth)) @ q.vh
    if entropy:
        drift = drift + dln.cometric(q, dln.entropy_gradient(q, widths=rank)) / BETA
    assert_mean((even - p.matrix) / h, drift, sigmas=4.5)
    m, n = shape
    basis = torch.eye(m * n, dtype=F64).reshape(-1, m, n)
    covariance = 2 * KAPPA / BETA * dln.cometric(q, basis).flatten(1)
    moved = odd.flatten(1) / math.sqrt(h)
    samples = moved.unsqueeze(-1) * moved.unsqueeze(-2)
    # What has no noise has only the rounding of X over sqrt(h).
    error = (samples.mean(0) - covariance).abs()
    assert bool((error < 5 * samples.std(0) / chains**0.5 + 1e-9).all())


def test_depth_one_is_plain_langevin(generator):
    p = start_at((3, 2), 2, 1, generator, chains=4)
    loss = quadratic((3, 2), generator)
    dw = torch.randn(5, 4, 3, 2, generator=generator, dtype=F64) * math.sqrt(0.02)
    path = dln.langevin(loss, p, beta=BETA, kappa=KAPPA, t_end=0.1, increments=dw)
    x = p.matrix
    for z in dw:
        x = x - 0.02 * loss.gradient(x) + math.sqrt(2 * KAPPA / BETA) * z
    assert_close(path.final.matrix, x)
    assert path.loss.shape == (6, 4)


def test_hidden_widths_add_their_drift(generator):
    """At rank r in width d: ``sum_p (d_p - r) U Sigma^{1-2/N} V^T / beta``."""
    p = start_at((4, 4), 2, 3, generator)
    h, zero = 1e-6, torch.zeros(1, 4, 4, dtype=F64)
    narrow, wide = (
        dln.langevin(None, p, beta=BETA, t_end=h, increments=zero, widths=d).final.matrix
        for d in (2, (4, 3, 7, 4))
    )
    q = p.point()
    drift = (1 + 5) / BETA * (q.u * q.s ** (1 / 3)) @ q.vh
    assert float(((wide - narrow) / h - drift).abs().max()) < 1e-4


@pytest.mark.parametrize("depth", [3, 2.7, 5])
def test_brownian_motion_in_rho_is_that_of_a_matrix(depth, generator):
    chains, t = 3000, 0.3
    start = start_at((3, 2), 2, depth, generator, chains)
    path = dln.brownian_motion(start, t_end=t, dt=0.01, generator=generator, save_at=[t])
    rho = math.sqrt(depth) * path.singular_values[-1] ** (1 / depth)
    first = torch.zeros(3, 2, dtype=F64)
    first[:2] = torch.diag(math.sqrt(depth) * start.singular_values()[0] ** (1 / depth))
    exact = torch.linalg.svdvals(
        first + math.sqrt(t) * torch.randn(chains, 3, 2, generator=generator, dtype=F64)
    )
    for k in range(2):
        assert stats.ks_2samp(rho[:, k], exact[:, k]).pvalue > 1e-3


def test_logarithms_at_infinite_depth_are_dyson_of_index_one(generator):
    """``du_i = sqrt(2/beta) dB_i + (1/beta) sum_j dt/(u_i - u_j)``."""
    chains, h = 20000, 1e-4
    start = start_at((3, 3), 3, math.inf, generator, chains)
    dw = math.sqrt(h) * torch.randn(1, chains, 3, 3, generator=generator, dtype=F64)
    u0 = start.singular_values()[0].log()
    plus, minus = (
        dln.langevin(None, start, beta=BETA, entropy=False, t_end=h, increments=z)
        .singular_values[-1]
        .log()
        for z in (dw, -dw)
    )
    gap = u0.unsqueeze(-1) - u0 + torch.diag(torch.full((3,), math.inf, dtype=F64))
    assert_mean(((plus + minus) / 2 - u0) / h, (1 / gap).sum(-1) / BETA)
    odd = (plus - minus) / 2 / math.sqrt(h)
    expected = 2 / BETA * torch.eye(3, dtype=F64)
    assert_mean(odd.unsqueeze(-1) * odd.unsqueeze(-2), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "rank", "depth", "beta", "entropy", "exact"),
    [
        ((2, 2), 2, 3, 1.0, False, 4.0),
        ((2, 2), 2, 3, 1.0, True, 6.0),
        ((3, 3), 3, 4, 2.5, True, 7.2),
        ((4, 3), 2, 3, 1.3, False, 10 / 1.3),
        ((2, 2), 2, 2.7, 1.0, False, 4.0),
    ],
)
def test_equilibria_after_extrapolation(shape, rank, depth, beta, entropy, exact, generator):
    """``E|rho|^2`` is the dimension over beta; the error at step h is of the first order."""
    chains, means = 800, []
    sizes = [0.04, 0.02, 0.01]
    spectrum = tuple((exact / depth / rank) ** (depth / 2) for _ in range(rank))
    for dt in sizes:
        start = start_at(shape, rank, depth, generator, chains, spectrum=spectrum)
        path = dln.langevin(
            Ridge(depth), start, beta=beta, entropy=entropy, t_end=4.0, dt=dt, generator=generator
        )
        rho2 = depth * (path.singular_values ** (2 / depth)).sum(-1)
        means.append(rho2[30:].mean(0))
    # The line through three steps, at zero: 2 m(h/4) - ... by least squares.
    h = torch.tensor(sizes, dtype=F64)
    weights = 1 / 3 - (h - h.mean()) * h.mean() / ((h - h.mean()) ** 2).sum()
    value = sum(w * m.mean() for w, m in zip(weights, means, strict=True))
    error = math.sqrt(
        sum(float(w**2 * m.var() / chains) for w, m in zip(weights, means, strict=True))
    )
    assert abs(float(value) - exact) < 4 * error
    for dt, m in zip(sizes, means, strict=True):
        # No worse than a step's own share.
        assert abs(float(m.mean()) - exact) < 4 * float(m.std()) / chains**0.5 + 3 * dt * exact


@pytest.mark.slow
@pytest.mark.parametrize("depth", [3, 2.7])
def test_weak_order_one_and_refinement_by_shared_increments(depth, generator):
    chains, t, levels = 4000, 0.6, 5
    p = start_at((3, 3), 3, depth, generator, chains)
    loss = quadratic((3, 3), generator)
    finest = 8 * 2**levels
    dw = math.sqrt(t / finest) * torch.randn(finest, chains, 3, 3, generator=generator, dtype=F64)
    means, ends = [], []
    for _ in range(levels):
        options = {"beta": BETA, "kappa": KAPPA, "t_end": t, "save_at": [t]}
        path = dln.langevin(loss, p, increments=dw, **options)
        means.append((path.singular_values[-1] ** (2 / depth)).sum(-1))
        ends.append(path.final.matrix)
        dw = dw[0::2] + dw[1::2]
    weak = [float((a - b).mean().abs()) for a, b in pairwise(means)]
    strong = [float((a - b).square().mean().sqrt()) for a, b in pairwise(ends)]
    steps = [t / finest * 2**k for k in range(1, levels)]
    assert_order(steps, weak, 1, tol=0.35)
    assert_order(steps, strong, 0.5, tol=0.15, at_least=True)


@pytest.mark.parametrize(("depth", "shape", "rank"), CASES, ids=str)
def test_without_noise_across_it_is_the_flow_of_the_free_energy(depth, shape, rank, generator):
    p = start_at(shape, rank, depth, generator)
    loss = quadratic(shape, generator)
    path = dln.langevin(loss, p, beta=BETA, kappa=0.0, t_end=0.3)
    assert path.loss.diff().max() < 0
    # The product step with ever less noise, which still has its entropic drift.
    steps, errors = [], []
    for count in (20, 40, 80, 160):
        zero = torch.zeros(count, *shape, dtype=F64)
        small = dln.langevin(loss, p, beta=BETA, kappa=1e-12, t_end=0.3, increments=zero)
        steps.append(0.3 / count)
        errors.append(float((small.final.matrix - path.final.matrix).norm()))
    assert_order(steps, errors, 1)


def test_the_determinant_keeps_its_sign_at_even_depths_alone(generator):
    for depth, kept in ((2, True), (4, True), (3, False), (2.7, False), (math.inf, True)):
        p = start_at((2, 2), 2, depth, generator, chains=50, spectrum=(1.0, 0.2))
        path = dln.brownian_motion(p, t_end=2.0, dt=0.02, generator=generator)
        signs = torch.linalg.det(path.final.matrix).sign()
        assert (len(signs.unique()) == 1) == kept, depth


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_sparse_completion_of_low_rank(dtype, generator):
    loss = dln.losses.Completion([0, 3, 7], [1, 1, 5], [1.0, -2.0, 0.5], shape=(10, 8))
    p = dln.Collapsed.random((10, 8), 2, 3, generator=generator, dtype=dtype)
    path = dln.langevin(loss, p, beta=20.0, t_end=0.5, dt=0.05, generator=generator, chains=7)
    assert isinstance(path.final, dln.Collapsed)
    assert path.final.L.shape == (7, 10, 2)
    assert path.final.L.dtype == dtype
    assert path.loss.shape == (11, 7)
    assert_close(path.loss[-1], loss.value(path.final), ops=1000)
    assert bool(path.loss[-1].mean() < path.loss[0].mean())
