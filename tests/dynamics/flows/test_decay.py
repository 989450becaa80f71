"""The flow with weight decay: against the layers, closed forms, and its own energy."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import solve_ivp

import dln_geometry as dln
from dln_geometry import exact, losses
from dln_geometry.dynamics import engines
from dln_geometry.dynamics.flows import collapsed_engine
from dln_geometry.ode import integrate
from dln_geometry.testing import assert_close
from tests.dynamics.flows.routes import F64, layer_velocity, quadratic, relative, scipy_flow, start

K = 0.37
EPS = torch.finfo(F64).eps


def decayed_velocity(loss, k):
    plain = layer_velocity(loss)
    return lambda ws: [v - k * w for v, w in zip(plain(ws), ws, strict=True)]


@pytest.mark.parametrize("depth", range(2, 9))
def test_every_engine_decays_as_the_layers_do(depth, generator):
    loss, point = quadratic(generator), start(generator, depth, 3)
    factors = point.factors(widths=4, generator=generator)
    expected = dln.end_to_end(scipy_flow(decayed_velocity(loss, K), factors, 0.6))
    for engine in ("auto", "spectral", "products", "layers"):
        path = dln.gradient_flow(loss, point, t_end=0.6, rtol=1e-11, engine=engine, decay=K)
        end = path.final if engine != "layers" else dln.Network(path.final)
        assert relative(end.matrix, expected) < 1e-8
        assert float(path.defect.max()) < 1e-8
    pair = engines.PairEngine(loss, point)
    pair.decay = torch.tensor([K], dtype=F64)
    solution = integrate(pair.field, pair.rows(), t_end=0.6, rtol=1e-11, blocks=pair.sizes)
    assert relative(pair.point(solution.y).matrix[0], expected) < 1e-8


def test_moments_of_unbalanced_layers_shrink_and_the_defect_knows(generator):
    factors = [0.6 * torch.randn(4, 4, generator=generator, dtype=F64) for _ in range(3)]
    loss = losses.Quadratic(torch.randn(4, 4, generator=generator, dtype=F64))
    path = dln.gradient_flow(loss, factors, t_end=0.8, rtol=1e-11, decay=K)
    for got, begun in zip(dln.moments(path.final), dln.moments(factors), strict=True):
        assert_close(got, math.exp(-2 * K * 0.8) * begun, ops=1e6)
    assert float(path.defect.max()) < 1e-9


@pytest.mark.parametrize("depth", [1, 1.6, 2, 2.7, 3, 4, 150, math.inf])
def test_modes_follow_their_own_equation(depth, generator):
    """ds/dt = -N s^{2-2/N} (s - m) - N k s, without the factors N at infinite depth."""
    target = torch.tensor([1.9, 1.2, 0.7], dtype=F64)
    begun = torch.tensor([0.8, 0.5, 0.3], dtype=F64)
    t, n = 0.9 / min(depth, 10), depth if math.isfinite(depth) else 1.0

    def velocity(_, s):
        return -n * s ** (2 - 2 / depth) * (s - target.numpy()) - n * K * s

    want = solve_ivp(velocity, (0, t), begun.numpy(), rtol=1e-12, atol=1e-14).y[:, -1]
    loss, point = losses.Quadratic(target.diag()), dln.EndToEnd.of(begun.diag(), depth)
    path = dln.gradient_flow(loss, point, t_end=t, rtol=1e-11, decay=K)
    got = torch.linalg.svdvals(path.final.matrix)
    assert_close(got, torch.from_numpy(want).sort(descending=True).values, ops=1e6)


def test_depth_two_is_logistic_towards_the_shrunk_target():
    """At N = 2, m - k takes the place of m."""
    s0 = torch.tensor([0.4], dtype=F64)
    loss, point = losses.Quadratic(1.5 * torch.eye(1)), dln.EndToEnd.of(s0.diag(), 2)
    path = dln.gradient_flow(loss, point, t_end=1.3, rtol=1e-12, decay=K)
    assert_close(path.final.matrix[0], exact.quadratic(s0, 1.5 - K, 2, 1.3), ops=1e5)


@pytest.mark.parametrize("depth", [2, 3, 4, 5.5, 150, math.inf])
def test_gradient_is_the_speed_at_which_the_energy_falls(depth, generator):
    loss = quadratic(generator)
    point = dln.EndToEnd.of(start(generator, 2, 3).matrix, depth, rank=3)
    given = point if depth == 150 else dln.Collapsed.of(point)
    if depth == 150:
        engine = engines.PairEngine(loss, given, True)
    else:
        engine = collapsed_engine(loss, given, watch=True)
    engine.decay = torch.tensor([K], dtype=F64)
    y = engine.rows()
    speed = engine.field(torch.zeros(1, dtype=F64), y, torch.empty_like(y))[0, engines.GRADIENT]

    def energy(p):
        s = torch.linalg.svdvals(p.matrix)[:3]
        if math.isinf(depth):
            return loss.value(p.matrix) + K * s.log().sum()
        return loss.value(p.matrix) + 0.5 * K * depth * s.pow(2 / depth).sum()

    h = 1e-4 / min(depth, 150)
    path = dln.gradient_flow(loss, point, t_end=2 * h, save_at=3, keep_points=True, decay=K)
    e = [float(energy(p)) for p in path.points]
    slope = (3 * e[0] - 4 * e[1] + e[2]) / (2 * h)
    assert abs(slope - float(speed) ** 2) < 1e-5 * slope


def test_a_batch_takes_a_decay_for_each_sample(generator):
    loss, point = quadratic(generator), start(generator, 3, 3)
    batch = dln.Collapsed.of(point).expand((2,))
    path = dln.gradient_flow(loss, batch, t_end=0.5, rtol=1e-11, decay=[0.0, K])
    for k, end in zip((0.0, K), path.final, strict=True):
        alone = dln.gradient_flow(loss, point, t_end=0.5, rtol=1e-11, decay=k)
        assert relative(end.matrix, alone.final.matrix) < 1e-9


def test_nuclear_norm_at_depth_two(generator):
    """The flow of depth 2 ends where singular values of Y are shrunk by k."""
    y = torch.randn(6, 5, generator=generator, dtype=F64)
    begun = dln.Collapsed.random((6, 5), 5, 2, scale=0.3, generator=generator, dtype=F64)
    k = float(torch.linalg.svdvals(y)[2])
    path = dln.gradient_flow(losses.Quadratic(y), begun, until={"gradient": 1e-5}, decay=k)
    u, s, vh = torch.linalg.svd(y, full_matrices=False)
    assert_close(path.final.matrix, (u * (s - k).clamp_min(0)) @ vh, ops=1e-3 / EPS, scale=1.0)


@pytest.mark.parametrize("depth", [3, 4.5])
def test_a_collapse_is_told(depth, generator):
    loss = quadratic(generator)
    begun = dln.Collapsed.random((6, 5), 3, depth, scale=1e-3, generator=generator, dtype=F64)
    with pytest.warns(UserWarning, match="decay drove X to zero"):
        dln.gradient_flow(loss, begun, t_end=30.0, decay=1.0)


@pytest.mark.parametrize("wrong", [-1.0, [0.1, 0.2], math.nan, "much"])
def test_decay_is_checked(wrong, generator):
    with pytest.raises((TypeError, ValueError), match="decay must"):
        dln.gradient_flow(quadratic(generator), start(generator, 3), t_end=0.1, decay=wrong)
