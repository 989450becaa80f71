"""Every way to hold the state gives one flow, and keeps the invariants of its layers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

import dln_geometry as dln
from dln_geometry import exact, losses
from dln_geometry.dynamics import engines
from dln_geometry.ode import integrate
from dln_geometry.testing import assert_close, assert_order
from tests.dynamics.flows.routes import F64, layer_velocity, quadratic, relative, scipy_flow, start


@pytest.mark.parametrize("depth", range(2, 9))
@pytest.mark.parametrize("rank", [5, 3])
def test_collapsed_flow_is_the_flow_of_the_layers(depth, rank, generator):
    loss, point = quadratic(generator), start(generator, depth, rank)
    widths = (5, *(rank + p % 3 for p in range(depth - 1)), 6)
    factors = point.factors(widths=widths, generator=generator)
    layers = scipy_flow(layer_velocity(loss), factors, 0.7)
    expected = dln.end_to_end(layers)
    for engine in ("spectral", "products"):
        path = dln.gradient_flow(loss, point, t_end=0.7, rtol=1e-11, engine=engine)
        assert relative(path.final.matrix, expected) < 1e-8
        assert float(path.defect.max()) < 1e-8
    # The same from the factors themselves, and by the pair engine of very large depths.
    path = dln.gradient_flow(loss, factors, t_end=0.7, rtol=1e-11)
    assert relative(path.final.matrix, expected) < 1e-8
    pair = engines.PairEngine(loss, point)
    solution = integrate(pair.field, pair.rows(), t_end=0.7, rtol=1e-11, blocks=pair.sizes)
    assert relative(pair.point(solution.y).matrix[0], expected) < 1e-8


def test_unbalanced_factors_flow_by_layers_and_keep_their_moments(generator):
    widths = (5, 3, 7, 4, 6)
    factors = [
        0.6 * torch.randn(b, a, generator=generator, dtype=F64)
        for a, b in itertools.pairwise(widths)
    ]
    loss = quadratic(generator)
    path = dln.gradient_flow(loss, factors, t_end=0.6, rtol=1e-11)
    expected = scipy_flow(layer_velocity(loss), factors, 0.6)
    for got, want in zip(path.final, expected, strict=True):
        assert relative(got, want) < 1e-8
    for got, want in zip(dln.moments(path.final), dln.moments(factors), strict=True):
        assert float((got - want).abs().max()) < 1e-9
    assert float(path.defect.max()) < 1e-9
    assert path.depth == 4.0


def test_scalar_unbalanced_level_has_a_closed_metric(generator):
    """Depth 2 with G_1 = g I: dX = -( sqrt(XX^T + g^2/4) E' + E' sqrt(X^TX + g^2/4) )."""
    gap = 0.8
    u, v = (torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=F64)).Q for _ in "uv")
    low = torch.tensor([0.2, 0.5, 0.9, 1.4], dtype=F64)
    factors = (low.diag() @ v.mT, u @ (low.square() + gap).sqrt().diag())
    assert_close(dln.moments(factors)[0], gap * torch.eye(4, dtype=F64), ops=300)
    loss = quadratic(generator, (4, 4))

    def velocity(y):
        x, eye = y[0], torch.eye(4, dtype=F64)
        left = torch.from_numpy(np.real(sqrtm((x @ x.mT + gap**2 / 4 * eye).numpy())))
        right = torch.from_numpy(np.real(sqrtm((x.mT @ x + gap**2 / 4 * eye).numpy())))
        e = loss.gradient(x)
        return [-(left @ e + e @ right)]

    (expected,) = scipy_flow(velocity, [dln.end_to_end(factors)], 0.5, rtol=1e-11)
    path = dln.gradient_flow(loss, factors, t_end=0.5, rtol=1e-11)
    assert relative(dln.end_to_end(path.final), expected) < 1e-8


@pytest.mark.parametrize("engine", ["spectral", "products"])
def test_error_follows_the_tolerance(engine, generator):
    loss, point = quadratic(generator), start(generator, 5)
    best = dln.gradient_flow(loss, point, t_end=0.5, rtol=1e-13).final.matrix
    tolerances = [1e-4, 1e-5, 1e-6, 1e-7, 1e-8]
    paths = [
        dln.gradient_flow(loss, point, t_end=0.5, rtol=r, engine=engine, method="rk5")
        for r in tolerances
    ]
    errors = [relative(path.final.matrix, best) for path in paths]
    assert_order(tolerances, errors, 1.0, tol=0.35)
    assert max(e / r for e, r in zip(errors, tolerances, strict=True)) < 100


@pytest.mark.parametrize("depth", [2, 7, 8, 3.3, 150])
def test_rebalancing_restores_the_invariants_and_keeps_x(depth, generator):
    loss, point = quadratic(generator), start(generator, depth)
    t = 1.5 / depth
    loose = dln.gradient_flow(loss, point, t_end=t, rtol=1e-3, method="rk5")
    kept = dln.gradient_flow(loss, point, t_end=t, rtol=1e-3, method="rk5", rebalance=1e-9)
    assert float(loose.defect.max()) > 1e-9
    assert float(kept.defect.max()) <= 1e-9
    assert kept.stats["corrections"] > 0
    exact_path = dln.gradient_flow(loss, point, t_end=t, rtol=1e-11)
    assert relative(kept.final.matrix, exact_path.final.matrix) < 2e-2


def test_layers_on_request(generator):
    loss, point = quadratic(generator), start(generator, 4, rank=3)
    pair = dln.gradient_flow(loss, point, t_end=0.5, rtol=1e-10, save_at=5)
    for begin in (point, point.point(), point.factors(widths=4, generator=generator)):
        layers = dln.gradient_flow(loss, begin, t_end=0.5, rtol=1e-10, save_at=5, engine="layers")
        assert isinstance(layers.final, tuple)
        assert relative(dln.end_to_end(layers.final), pair.final.matrix) < 1e-8
        assert float((layers.t - pair.t).abs().max()) == 0.0
    assert pair.t.tolist() == [0.0, 0.125, 0.25, 0.375, 0.5]


def test_a_batch_of_unbalanced_networks_keeps_each_its_moments(generator):
    """Samples that reach the saved times at different steps."""
    scales = torch.tensor([0.2, 1.0, 1.7], dtype=F64)[:, None, None]
    factors = [
        scales * torch.randn(3, b, a, generator=generator, dtype=F64)
        for a, b in itertools.pairwise((5, 4, 3, 6))
    ]
    path = dln.gradient_flow(quadratic(generator), factors, t_end=0.5, rtol=1e-10)
    assert path.defect.shape == (101, 3)
    assert float(path.defect.max()) < 1e-8


@pytest.mark.filterwarnings("ignore:a singular value reached zero and grew again")
def test_depths_just_above_one_and_exact_zeros(generator):
    x, y = (torch.randn(3, 3, generator=generator, dtype=F64) for _ in "xy")
    loss = losses.Quadratic(y)
    for depth in (1.05, 1.1):
        path = dln.gradient_flow(loss, dln.EndToEnd.of(x, depth), t_end=1.0, rtol=1e-6)
        assert path.status == "t_end"
        assert bool((path.loss.diff() <= 1e-12).all())
    for depth in (1.5, 2, 2.5, 3, 4, 101, 1e6, math.inf):
        zero = dln.EndToEnd.of(torch.diag(torch.tensor([1.0, 0.7, 0.0], dtype=F64)), depth)
        t = 0.1 if math.isinf(depth) else 0.1 / depth
        path = dln.gradient_flow(loss, zero, t_end=t)
        thin = dln.EndToEnd.of(zero.matrix, depth, rank=2)
        other = dln.gradient_flow(loss, thin, t_end=t)
        assert relative(path.final.matrix, other.final.matrix) < 1e-6


def test_very_large_depth_in_single_precision():
    """N-th roots that are 1 up to rounding are never formed."""
    s0, target = torch.tensor([1.0, 1e-2, 1e-4]), torch.tensor([0.5, 0.3, 0.2])
    depth, t = 1e6, 2e-6
    path = dln.gradient_flow(
        losses.Quadratic(torch.diag(target)),
        dln.EndToEnd.of(torch.diag(s0), depth),
        t_end=t,
        rtol=1e-6,
        save_at=[0.0, t],
    )
    assert isinstance(path.final, dln.EndToEnd)
    expected = exact.quadratic(s0, target, depth, t)
    assert_close(path.singular_values[-1] / expected, torch.ones(3), ops=1000)
