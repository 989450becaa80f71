from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dln_geometry.learning.functional import flatten, unflatten
from dln_geometry.learning.noether import (
    acceleration,
    charge,
    charge_rate,
    kinetic_asymmetry,
    kinetic_energy,
    noether_residual,
)
from dln_geometry.learning.rules import Rule
from dln_geometry.learning.symmetry import Gauge, Rescale, Rotation, Scale, Symmetry, Translation
from dln_geometry.testing import assert_close, assert_order

F64 = torch.float64
LIKE = {"a": torch.zeros(2, 2, dtype=F64), "b": torch.zeros(3, 2, dtype=F64)}


def _random(generator, size=1.0):
    return {
        name: size * torch.randn(q.shape, generator=generator, dtype=F64)
        for name, q in LIKE.items()
    }


def _potential(p):
    """Convex, not separable, and with no symmetry at all."""
    q = flatten(p)
    n = torch.arange(1, len(q) + 1, dtype=q.dtype)
    return (0.3 * n * q).cosh().sum() / 2 + torch.logsumexp(n.cos() * q, 0) + q.square().sum() / 3


def _linear_layers(p):
    """Two linear layers: the gauge GL(2), with its rotations and rescalings."""
    out = p["b"] @ p["a"]
    target = torch.arange(6, dtype=out.dtype).reshape(3, 2).sin()
    return (out - target).square().sum() / 2


def _directions(p):
    """The directions of all columns: scale of each."""
    return sum((q / q.norm(dim=0)).sin().sum() for q in p.values())


def _own(p):
    """``f(x e^y, z)`` of a nonlinear symmetry."""
    a, b = p["a"], p["b"]
    return (a[0, 0] * a[0, 1].exp() - 1).square() + a[1].cos().sum() + b.square().sum() / 3


def _own_action(p, s):
    a = p["a"]
    first = torch.stack([a[0, 0] * torch.exp(-s), a[0, 1] + s])
    return {"a": torch.stack([first, a[1]])}


def _differences(p):
    return (p["b"] - p["b"].mean(0)).sin().square().sum() + p["a"].cos().sum()


TURN = torch.tensor([[0.0, 1.3], [-1.3, 0.0]], dtype=F64)
CASES = {
    "gauge": (_linear_layers, Gauge("a", "b")),
    "gauge, rotation": (_linear_layers, Gauge("a", "b", TURN)),
    "rescale": (_linear_layers, Rescale("a", "b", axes=(0, 1))),
    "scale": (_directions, Scale("b", axis=1)),
    "translation": (_differences, Translation("b", axis=0)),
    "one's own": (_own, Symmetry(_own_action)),
}
RULES = {
    "descent": Rule(lr=0.3),
    "heavy ball": Rule(lr=0.3, momentum=0.4, weight_decay=0.2, dampening=0.1),
    "Nesterov": Rule(lr=0.3, momentum=0.4, weight_decay=0.2, nesterov=True),
    "mirror": Rule(lr=0.3, weight_decay=0.2, potential=_potential),
    "mirror, momentum": Rule(lr=0.3, momentum=0.4, weight_decay=0.2, potential=_potential),
    "mirror, Nesterov": Rule(
        lr=0.3, momentum=0.4, weight_decay=0.2, nesterov=True, potential=_potential
    ),
}


@pytest.fixture(params=list(CASES))
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_charge_moves_as_the_symmetry_dictates(case, rule, generator):
    loss, symmetry = case
    q, v = _random(generator), _random(generator)
    assert_close(
        noether_residual(symmetry, rule, loss, q, v),
        torch.zeros(symmetry.shape(q)),
        ops=1000,
        scale=30 / rule.mass,
    )


@pytest.mark.parametrize("rule", [r for r in RULES.values() if not r.nesterov])
def test_residual_of_a_loss_without_the_symmetry_is_its_slope(rule, generator):
    q, v = _random(generator), _random(generator)
    for symmetry in (Scale("a"), Gauge("a", "b"), Symmetry(_own_action)):
        slope = symmetry.pair(q, torch.func.grad(_directions_of_neither)(q))
        residual = noether_residual(symmetry, rule, _directions_of_neither, q, v)
        assert float(slope.abs().max()) > 1e-2
        assert_close(residual, -slope, ops=1000, scale=30 / rule.mass)


def _directions_of_neither(p):
    return (p["a"].cos().sum() + p["b"].sum()).sin() + p["a"][0].sum() / 2


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_kinetic_asymmetry_is_the_derivative_of_the_energy_along_the_action(case, rule, generator):
    _, symmetry = case
    q, v = _random(generator), _random(generator)

    def energy(s):
        moved, pushed = torch.func.jvp(lambda p: symmetry.action(p, s), (q,), (v,))
        return kinetic_energy(rule, moved, pushed)

    expected = torch.func.grad(energy)(torch.zeros(symmetry.shape(q), dtype=F64))
    assert_close(kinetic_asymmetry(symmetry, rule, q, v), expected, ops=1000, scale=30 / rule.mass)


def test_table_of_charges(generator):
    """What each symmetry gives without a potential, in the notation of the literature."""
    rule = Rule(lr=0.3, momentum=0.4, weight_decay=0.2)
    m, mu, k = rule.mass, rule.friction, rule.weight_decay
    q, v = _random(generator), _random(generator)
    a, b, da, db = q["a"], q["b"], v["a"], v["b"]

    def rate(symmetry):
        return m * charge_rate(symmetry, rule, q, v) + mu * charge(symmetry, rule, q, v)

    assert_close(charge(Scale("a"), rule, q, v), m * (a * da).sum())
    assert_close(kinetic_asymmetry(Scale("a"), rule, q, v), m * da.square().sum())
    # m (r^2)'' + mu (r^2)' + 2 k r^2 = 2 m |q'|^2, with (r^2)' = 2 C / m.
    assert_close(2 * rate(Scale("a")), 2 * m**2 * da.square().sum() - 2 * k * m * a.square().sum())
    both = m**2 * (da.square().sum() - db.square().sum())
    decay = k * m * (a.square().sum() - b.square().sum())
    assert_close(rate(Rescale("a", "b")), both - decay, scale=5)
    still = (Translation("b", torch.ones(2)), Rotation("b", TURN, axis=1), Gauge("a", "b", TURN))
    for symmetry in still:
        assert_close(kinetic_asymmetry(symmetry, rule, q, v), 0.0, scale=5)
    assert_close(rate(still[0]), -k * m * b.sum(), scale=5)
    assert_close(rate(still[1]), 0.0, scale=5)
    # Matrices of the gauge: M = W_2^T W_2' - W_1' W_1^T has m M' + mu M = -k G + m K(W').
    moment = b.mT @ b - a @ a.mT
    kinetic = db.mT @ db - da @ da.mT
    assert_close(-rate(Gauge("a", "b")) / m, -k * moment + m * kinetic, scale=5)


def test_kinetic_energy_and_acceleration_of_a_square_potential(generator):
    """The general formulas, with h = |q|^2 / 2, are the plain ones."""
    q, v = _random(generator), _random(generator)
    for options in ({"momentum": 0.4}, {"momentum": 0.4, "nesterov": True}, {}):
        plain = Rule(lr=0.3, weight_decay=0.2, **options)
        square = Rule(
            lr=0.3, weight_decay=0.2, potential=lambda p: flatten(p).square().sum() / 2, **options
        )
        assert_close(kinetic_energy(square, q, v), kinetic_energy(plain, q, v), ops=1000)
        expected = acceleration(plain, _linear_layers, q, v)
        for name, x in acceleration(square, _linear_layers, q, v).items():
            assert_close(x, expected[name], ops=1000, scale=30 / plain.mass)


def test_acceleration_solves_the_euler_lagrange_equation(generator):
    """Lagrangian ``e^{mu t/m} [T - f - k/2 |q|^2]`` by automatic differentiation alone."""
    rule = RULES["mirror, momentum"]
    q, v = _random(generator), _random(generator)
    a = acceleration(rule, _linear_layers, q, v)

    def lagrangian(q, v):
        decay = rule.weight_decay / 2 * flatten(q).square().sum()
        return kinetic_energy(rule, q, v) - _linear_layers(q) - decay

    momentum = torch.func.grad(lagrangian, argnums=1)
    p = momentum(q, v)
    turn = torch.func.jvp(momentum, (q, v), (v, a))[1]
    force = torch.func.grad(lagrangian)(q, v)
    for name in LIKE:
        left = turn[name] + rule.friction / rule.mass * p[name]
        assert_close(left, force[name], ops=1000, scale=30 / rule.mass)


@pytest.mark.slow
def test_integrated_law_for_a_potential_without_symmetry(generator):
    """``e^{mu t/m} C`` is the integral of what breaks it, along a trajectory."""
    rule = Rule(lr=0.5, momentum=0.4, weight_decay=0.2, potential=_potential)
    symmetry, size = CASES["gauge"][1], 10
    gamma = rule.friction / rule.mass
    start = np.concatenate([flatten(_random(generator)), flatten(_random(generator))])

    def unpacked(y):
        q, v = torch.as_tensor(y[:size], dtype=F64), torch.as_tensor(y[size : 2 * size], dtype=F64)
        return unflatten(q, LIKE), unflatten(v, LIKE)

    def right(t, y):
        q, v = unpacked(y)
        source = kinetic_asymmetry(symmetry, rule, q, v) - 0.2 * symmetry.conserved(q)
        a = flatten(acceleration(rule, _linear_layers, q, v))
        # The integral in the variable that does not overflow: I' = -gamma I + source.
        rest = -gamma * torch.as_tensor(y[2 * size :], dtype=F64) + source.reshape(-1)
        return torch.cat([flatten(v), a, rest]).numpy()

    q, v = unpacked(start)
    first = charge(symmetry, rule, q, v).reshape(-1)
    y = np.concatenate([start, first.numpy()])
    end = solve_ivp(right, (0, 1.5), y, method="DOP853", rtol=1e-10, atol=1e-11).y[:, -1]
    q, v = unpacked(end)
    after = charge(symmetry, rule, q, v).reshape(-1)
    integral = torch.as_tensor(end[2 * size :], dtype=F64)
    assert float((after - integral).abs().max()) < 1e-8 * float(first.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heavy ball", "Nesterov", "mirror"])
def test_iterates_are_second_order_close_to_the_equation(name, generator):
    options = RULES[name]
    q0 = _random(generator, 0.7)
    t_end, counts = 0.6, (12, 24, 48, 96)
    errors, steps = [], []
    for count in counts:
        step = t_end / count
        rule = Rule(
            lr=step / (1 - options.dampening),
            momentum=options.momentum,
            weight_decay=0.2,
            nesterov=options.nesterov,
            dampening=options.dampening,
            potential=options.potential,
        )
        force = {n: g + 0.2 * q0[n] for n, g in torch.func.grad(_linear_layers)(q0).items()}
        steady = (1 - rule.dampening) / rule.friction
        # Slow motion from the start: neither side has a transient to leading order.
        params, state = q0, {n: steady * x for n, x in force.items()}
        for _ in range(count):
            params, state = rule.step(_linear_layers, params, state)
        v0 = {n: -x / rule.friction for n, x in force.items()}
        if rule.potential is not None:
            hessian = torch.func.hessian(lambda x: _potential(unflatten(x, LIKE)))(flatten(q0))
            v0 = unflatten(torch.linalg.solve(hessian, flatten(v0)), LIKE)

        def right(t, y, rule=rule):
            q, v = (unflatten(torch.as_tensor(x), LIKE) for x in np.split(y, 2))
            return torch.cat([flatten(v), flatten(acceleration(rule, _linear_layers, q, v))])

        y = np.concatenate([flatten(q0), flatten(v0)])
        end = solve_ivp(right, (0, t_end), y, method="DOP853", rtol=1e-7, atol=1e-9).y[:, -1]
        errors.append(float((flatten(params) - torch.as_tensor(end[:10])).norm()))
        steps.append(step)
    assert_order(steps, errors, 2, tol=0.3)


def test_bad_input_is_refused(generator):
    q, v = _random(generator), _random(generator)
    with pytest.raises(ValueError, match="loss must be given with Nesterov's momentum"):
        charge_rate(Scale("a"), RULES["Nesterov"], q, v)
    with pytest.raises(ValueError, match="one of the parameters"):
        charge(Scale("c"), RULES["descent"], q, v)
    for wrong in ({"a": v["a"]}, {**v, "b": v["b"].T}):
        for function in (charge, kinetic_asymmetry):
            with pytest.raises(ValueError, match="velocity must have the names and shapes"):
                function(Scale("a"), RULES["descent"], q, wrong)
        with pytest.raises(ValueError, match="velocity must have the names and shapes"):
            kinetic_energy(RULES["descent"], q, wrong)
    with pytest.raises(TypeError, match="symmetry must be a Symmetry, got str"):
        charge("scale", RULES["descent"], q, v)
    with pytest.raises(TypeError, match="rule must be a Rule, got float"):
        noether_residual(Scale("a"), 0.1, _linear_layers, q, v)
    with pytest.raises(ValueError, match="loss must depend on the parameters"):
        noether_residual(Scale("a"), RULES["descent"], lambda p: torch.ones(()), q, v)
    with pytest.raises(ValueError, match=r"must return a real scalar of shape \(\), got \(2, 2\)"):
        acceleration(RULES["descent"], lambda p: p["a"], q, v)
    saddle = Rule(lr=0.1, potential=lambda p: p["a"].square().sum() - p["b"].square().sum())
    with pytest.raises(ValueError, match="strictly convex"):
        acceleration(saddle, _linear_layers, q, v)


def test_numbers_as_parameters_keep_their_precision(generator):
    """Torch gives tangents of numbers that Python multiplies in double precision."""
    q = {"a": torch.tensor(1.5), "b": torch.tensor(-0.5)}
    rule = Rule(lr=0.1, momentum=0.5, weight_decay=0.2, nesterov=True)
    loss = lambda p: (0.5 * p["a"] * p["b"] * 2.0 - 1.0).square()  # noqa: E731
    symmetry = Rescale("a", "b")
    assert kinetic_asymmetry(symmetry, rule, q, q).dtype == torch.float32
    assert {x.dtype for x in acceleration(rule, loss, q, q).values()} == {torch.float32}
    residual = noether_residual(symmetry, rule, loss, q, q)
    assert residual.dtype == torch.float32
    assert_close(residual, torch.zeros(()), scale=10.0)
