"""The flow on fibres whose moments decay exactly."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from dln_geometry.dynamics.flows import (
    balancing_flow,
    balancing_generator,
    balancing_velocity,
    kirwan_ness_flow,
    moments_of,
)
from dln_geometry.geometry.points import end_to_end, is_balanced, moments, random_balanced
from dln_geometry.testing import assert_close
from tests.dynamics.flows.routes import layers_of

# Depths 2, 3 and 5, unequal widths, thin and wide outside, rank-deficient through a narrow layer
# or through wide hidden ones.
WIDTHS = [
    (3, 3, 3),
    (9, 3, 7),
    (2, 6, 3),
    (5, 4, 3, 6),
    (2, 5, 5, 2),
    (4, 4, 4, 4, 4, 4),
    (3, 5, 2, 4, 3, 5),
]


def total(layers):
    return float(sum(w.square().sum() for w in layers))


def rotated(angle, d):
    turn = torch.eye(d, dtype=torch.float64)
    turn[:2, :2] = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]],
        dtype=torch.float64,
    )
    return turn


def tangent_matrix(layers):
    """Columns: the tangent vectors of every hidden unit matrix."""
    columns = []
    for k, w in enumerate(layers[:-1]):
        d = w.shape[0]
        for unit in torch.eye(d * d, dtype=w.dtype).view(-1, d, d):
            v = [torch.zeros_like(a) for a in layers]
            v[k], v[k + 1] = unit @ w, -layers[k + 1] @ unit
            columns.append(torch.cat([a.flatten() for a in v]))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("widths", WIDTHS)
def test_velocity_is_the_orthogonal_projection(widths, generator):
    layers = layers_of(widths, generator)
    basis = tangent_matrix(layers)
    minus_w = -torch.cat([w.flatten() for w in layers])
    best = torch.linalg.lstsq(basis, minus_w.unsqueeze(-1), driver="gelsd").solution
    expected = (basis @ best).squeeze(-1)
    velocity = balancing_velocity(layers)
    # The equation is solved to 1e-12.
    assert_close(torch.cat([v.flatten() for v in velocity]), expected, ops=1e5)
    # The moments decay at the rate 2.
    for g, (w, after), (v, dafter) in zip(
        moments(layers), pairwise(layers), pairwise(velocity), strict=True
    ):
        change = dafter.T @ after + after.T @ dafter - v @ w.T - w @ v.T
        assert_close(change, -2 * g, scale=total(layers), ops=1e4)


def test_generator_by_conjugate_gradients_and_by_factorisation_agree(generator, monkeypatch):
    w = torch.randn(2, 4, 5, 5, generator=generator, dtype=torch.float64)
    direct = balancing_generator(w)
    monkeypatch.setattr("dln_geometry.dynamics.flows.balancing_system.DIRECT", 0)
    assert_close(balancing_generator(w), direct, ops=1e5)
    # Symmetric matrices do not solve the equation, except by accident.
    assert float((direct - direct.mT).abs().max()) > 1e-2


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("t", [0.4, 3.0, math.inf])
def test_moments_decay_exactly_and_the_product_stays(widths, t, generator):
    layers = layers_of(widths, generator)
    moved = balancing_flow(layers, t)
    assert isinstance(moved, tuple)
    for w, v in zip(layers, moved, strict=True):
        assert v.shape == w.shape
    for start, end in zip(moments(layers), moments(moved), strict=True):
        assert_close(end, math.exp(-2 * t) * start, scale=total(layers), ops=100)
    x = end_to_end(layers)
    assert_close(end_to_end(moved), x, ops=100)
    assert total(moved) < total(layers)


@pytest.mark.parametrize("widths", WIDTHS[:6])
def test_limit_is_the_point_of_least_norm(widths, generator):
    layers = layers_of(widths, generator)
    depth = len(layers)
    limit = balancing_flow(layers, math.inf)
    assert bool(is_balanced(limit))
    rank = min(widths)
    s = torch.linalg.svdvals(end_to_end(layers))[:rank]
    assert_close(total(limit), depth * float((s ** (2 / depth)).sum()), ops=1000)
    # Late times approach it at the rate 2, modes beyond the rank of X at the rate 1.
    late = balancing_flow(layers, 14.0)
    gap = max(float((a - b).abs().max()) for a, b in zip(late, limit, strict=True))
    assert gap < 10 * math.exp(-14.0)


def test_parts_of_the_way_add_up_and_times_come_as_a_list(generator):
    layers = layers_of((4, 3, 5, 4), generator, batch=(2,))
    first, second, third = balancing_flow(layers, [0.0, 0.7, 1.9])
    for a, b in zip(first, layers, strict=True):
        assert torch.equal(a, b)
    # The place on the orbit is accurate to 1e-10, relative to the layers.
    for a, b in zip(balancing_flow(second, 1.2), third, strict=True):
        assert_close(a, b, ops=1e-8 / torch.finfo(torch.float64).eps)


def test_many_times_are_met_in_one_pass(generator, monkeypatch):
    """As many evaluations as one time needs, and one step for each of the others."""
    noise = layers_of((3, 4, 4, 3), generator)
    layers = [torch.eye(*w.shape, dtype=w.dtype) + 0.4 * w for w in noise]
    calls = []

    def counted(*args):
        calls.append(args)
        return balancing_generator(*args)

    path = "dln_geometry.dynamics.flows.balancing_path"
    monkeypatch.setattr(f"{path}.balancing_generator", counted)
    last = balancing_flow(layers, 2.0)
    once = len(calls)
    times = [0.0, *torch.linspace(0.1, 2.0, 20, dtype=torch.float64).tolist()]
    times = [*times[:5], times[4], math.nextafter(times[4], 9.0), *times[5:], 60.0, 61.0, math.inf]
    # The bound on evaluations leaves room for the saved times.
    monkeypatch.setattr(f"{path}.MOST_EVALUATIONS", 20 * once)
    calls.clear()
    many = balancing_flow(layers, times)
    limit = balancing_flow(layers, math.inf)
    assert len(calls) < 10 * once + 14 * len(times)
    x, size = end_to_end(layers), total(layers)
    for time, state in zip(times, many, strict=True):
        assert_close(end_to_end(state), x, ops=100)
        for g, g0 in zip(moments(state), moments(layers), strict=True):
            assert_close(g, math.exp(-2 * time) * g0, scale=size, ops=100)
    pairs = [
        (last, many[times.index(2.0)]),
        (many[4], many[5]),
        (limit, many[-1]),
        (limit, many[-2]),
    ]
    pairs.append((balancing_flow(layers, times[3]), many[3]))
    for one, other in pairs:
        for a, b in zip(one, other, strict=True):
            assert_close(a, b, ops=1e-8 / torch.finfo(torch.float64).eps)


def test_path_of_one_number_is_known():
    # a^2 - b^2 decays, a b stays: dg/dt = c g with c = (b^2 - a^2)/(a^2 + b^2).
    a, b, t = 0.7, 2.3, 0.6
    factors = torch.tensor([a, b], dtype=torch.float64).view(2, 1, 1)
    moved = balancing_flow(tuple(factors), t)
    gap, x = math.exp(-2 * t) * (b * b - a * a), a * b
    square = -gap / 2 + math.sqrt(gap * gap / 4 + x * x)
    assert_close(moved[0], [[math.sqrt(square)]])


def test_flow_is_equivariant_under_hidden_rotations(generator):
    layers = layers_of((3, 4, 4, 3), generator)
    q = [rotated(0.7, 4), rotated(-1.1, 4)]
    turned = (q[0] @ layers[0], q[1] @ layers[1] @ q[0].T, layers[2] @ q[1].T)
    u, v = balancing_flow(layers, 0.8), balancing_flow(turned, 0.8)
    expected = (q[0] @ u[0], q[1] @ u[1] @ q[0].T, u[2] @ q[1].T)
    for a, b in zip(v, expected, strict=True):
        assert_close(a, b, ops=1e-8 / torch.finfo(torch.float64).eps)


def test_batch_is_the_samples_one_by_one(generator):
    layers = layers_of((3, 4, 2, 5), generator, batch=(2, 2))
    moved = balancing_flow(layers, 1.1)
    alone = balancing_flow(tuple(w[1, 0] for w in layers), 1.1)
    for a, b in zip(moved, alone, strict=True):
        assert_close(a[1, 0], b, ops=1e-8 / torch.finfo(torch.float64).eps)


def test_vanishing_modes_are_no_obstacle(generator):
    """Singular values of layers from 1 down to 1e-7, and zero ones, that X does not have."""
    frames = [
        torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
        for _ in range(4)
    ]
    s = torch.tensor([2.0, 1.0, 0.5, 1e-7, 0.0], dtype=torch.float64)
    layers = [(q * s) @ p.T for p, q in pairwise(frames)]
    extra = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    layers[1] = layers[1] + 0.3 * frames[2][:, :3] @ extra @ frames[1][:, :3].T
    for t in (1.0, 25.0, math.inf):
        moved = balancing_flow(layers, t)
        assert_close(end_to_end(moved), end_to_end(layers), ops=100)
        for start, end in zip(moments(layers), moments(moved), strict=True):
            assert_close(end, math.exp(-2 * t) * start, scale=total(layers), ops=100)


def test_balanced_and_vanishing_layers_stand_still(generator):
    still = random_balanced((4, 3, 5), spectrum=[2.0, 0.7, 0.1], generator=generator)
    for t in (2.0, math.inf):
        for a, b in zip(balancing_flow(still, t), still, strict=True):
            assert_close(a, b)
    zero = (torch.zeros(3, 2), torch.zeros(4, 3))
    for a, b in zip(balancing_flow(zero, 1.0), zero, strict=True):
        assert torch.equal(a, b)
    (alone,) = balancing_flow((still[0],), math.inf)
    assert torch.equal(alone, still[0])


def test_single_precision_is_exact_to_its_own_rounding(generator):
    layers = layers_of((4, 3, 5, 4), generator, dtype=torch.float32)
    moved = balancing_flow(layers, 0.9)
    assert moved[0].dtype == torch.float32
    for start, end in zip(moments(layers), moments(moved), strict=True):
        assert_close(end, math.exp(-1.8) * start, scale=total(layers), ops=100)


def test_times_and_layers_are_checked(generator):
    layers = layers_of((3, 2, 3), generator)
    with pytest.raises(ValueError, match="t must be at least 0, got -1"):
        balancing_flow(layers, -1.0)
    with pytest.raises(ValueError, match="t must be at least 0, got nan"):
        balancing_flow(layers, math.nan)
    with pytest.raises(ValueError, match="t must not decrease"):
        balancing_flow(layers, [1.0, 0.5])
    with pytest.raises(ValueError, match="sequence of times"):
        balancing_flow(layers, [])
    with pytest.raises(TypeError, match="t must be a real array or tensor, got str"):
        balancing_flow(layers, "soon")
    for flow in (balancing_flow, kirwan_ness_flow):
        with pytest.raises(ValueError, match="factors must chain"):
            flow((layers[0], layers[0]), 1.0)
        with pytest.raises(TypeError, match="factors must be a sequence"):
            flow(layers[0], 1.0)
    with pytest.raises(ValueError, match="t_end must be >= 0, got -1"):
        kirwan_ness_flow(layers, -1.0)
    with pytest.raises(ValueError, match="until must be given if t_end is infinite"):
        kirwan_ness_flow(layers, math.inf)
    with pytest.raises(ValueError, match="t_end or until must be given"):
        kirwan_ness_flow(layers)
    with pytest.raises(TypeError, match="t_end must be a real number"):
        kirwan_ness_flow(layers, "soon")


def test_moments_of_a_stack(generator):
    layers = layers_of((3, 3, 3, 3), generator)
    for a, b in zip(moments_of(torch.stack(layers)[None])[0], moments(layers), strict=True):
        assert_close(a, b)


def test_rank_deficient_layers_reach_the_limit(generator):
    def thin(rank):
        a, b = torch.randn(2, 4, rank, generator=generator, dtype=torch.float64)
        return a @ b.T

    layers = (thin(1), thin(4), thin(2))
    seen = []
    limit = balancing_flow(layers, math.inf, progress=lambda done, info: seen.append(done))
    assert bool(is_balanced(limit))
    assert_close(end_to_end(limit), end_to_end(layers), ops=300)
    assert seen
    assert all(0 <= done <= 1 for done in seen)


def test_balancing_flow_ends_with_an_error_at_the_bound(generator, monkeypatch):
    monkeypatch.setattr("dln_geometry.dynamics.flows.balancing_path.MOST_EVALUATIONS", 20)
    with pytest.raises(ValueError, match="with 20 evaluations"):
        balancing_flow(layers_of((3, 3, 3, 3), generator), 5.0)
