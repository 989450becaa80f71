"""The names and signatures of the contract, as they are written there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry import learning
from dln_geometry.testing import assert_close


@pytest.fixture
def problem(generator):
    """Return two linear layers, a batch, their loss and their parameters."""
    module = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    inputs, target = (torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (3, 2))
    loss, params = learning.functionalize(module, nn.functional.mse_loss, (inputs, target))
    return module, loss, params


def test_rule_and_its_steps(problem):
    _, loss, params = problem
    rule = learning.Rule(lr=0.1, momentum=0.9, weight_decay=5e-4)
    assert rule.mass == pytest.approx(0.1 * 1.9 / 2)
    assert rule.friction == pytest.approx(0.1)
    after, state = rule.step(loss, params, None)
    again, _ = rule.step(loss, after, state)
    assert again.keys() == params.keys()


def test_motion(problem):
    _, loss, params = problem
    lr = 0.01
    terms = learning.counter_terms(loss, 2)(params)
    assert len(terms) == 3
    whole = learning.equation_of_motion(loss, lr, 2)(params)
    gradient = torch.func.grad(loss)(params)
    for name, velocity in whole.items():
        series = -gradient[name] - sum(lr ** (a + 1) * xi[name] for a, xi in enumerate(terms))
        assert_close(velocity, series, ops=100)
    gaps = []
    for rate in (lr, lr / 2):
        rule = learning.Rule(rate)
        field = learning.equation_of_motion_from_iterates(
            lambda p, rule=rule: rule.step(loss, p)[0], lr=rate, order=4
        )
        closed = learning.equation_of_motion(loss, rate, 2)(params)
        gaps.append((learning.flatten(field(params)) - learning.flatten(closed)).norm())
    # Four differences and three counter terms leave out the same power, the fourth.
    assert 13 < gaps[0] / gaps[1] < 19
    assert learning.modified_loss(loss, lr)(params) > loss(params)
    assert 0 < learning.max_learning_rate(loss, params, 1e-3, 1) < float("inf")


def test_symmetries_and_charges(problem, generator):
    _, loss, params = problem
    first, second = params
    s = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    rule = learning.Rule(lr=0.1, momentum=0.5, weight_decay=1e-3)
    velocity = {name: -g for name, g in torch.func.grad(loss)(params).items()}

    def scaled(q, t):
        return {**q, first: q[first] * t.exp(), second: q[second] * (-t).exp()}

    for symmetry in (
        learning.Rescale(first, second),
        learning.Gauge(first, second, s),
        learning.Gauge(first, second, s - s.T),
        learning.Symmetry(scaled),
    ):
        assert learning.is_symmetric(loss, symmetry, params)
        assert learning.charge(symmetry, rule, params, velocity).isfinite().all()
        assert learning.kinetic_asymmetry(symmetry, rule, params, velocity).isfinite().all()
        assert learning.noether_residual(symmetry, rule, loss, params, velocity).abs().max() < 1e-13
    for broken in (
        learning.Translation(first, torch.ones(4, 3, dtype=torch.float64)),
        learning.Scale([first]),
        learning.Rotation(first, s - s.T),
    ):
        assert not learning.is_symmetric(loss, broken, params)


def test_bridge(problem):
    _, loss, params = problem
    w1, w2 = params.values()
    rule = learning.Rule(lr=0.1, weight_decay=0.2)
    gradients = list(torch.func.grad(loss)(params).values())
    (after,) = learning.balance_step([w2.T @ w2 - w1 @ w1.T], gradients, rule)
    v1, v2 = rule.step(loss, params)[0].values()
    assert_close(after, v2.T @ v2 - v1 @ v1.T, ops=100)


def test_mirrors(problem, generator):
    module, loss, params = problem
    o = torch.linalg.qr(torch.randn(12, 2, generator=generator, dtype=torch.float64))[0]
    q = torch.randn(12, generator=generator, dtype=torch.float64)
    mirror = learning.Mirror(o)
    assert_close(mirror.reflect(q), q - 2 * o @ (o.T @ q), ops=100)
    assert_close(mirror.project(q), q - o @ (o.T @ q), ops=100)
    assert_close(mirror.defect(q), (o.T @ q).norm() / q.norm() * (12 / 2) ** 0.5, ops=100)
    n = torch.eye(4, dtype=torch.float64)[0]
    gauge = learning.Mirror.gauge(params, *params, n)
    assert learning.stability(loss, gauge, params).threshold > 0
    assert learning.dcs_(module, "0.weight", o) is module
