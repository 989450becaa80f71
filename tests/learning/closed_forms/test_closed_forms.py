from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import optimize
from torch import nn
from torch.func import grad, hessian, jvp

import dln_geometry as dln
from dln_geometry.geometry.points import moments, random_balanced
from dln_geometry.learning import DeepLinear, Rule, flatten, functionalize, unflatten
from dln_geometry.learning.closed_forms import (
    MomentState,
    balance_step,
    branch_end,
    collapse_thresholds,
    conserved_functions,
    dead_directions,
    decayed_singular_values,
    global_switch,
    imbalance_rate,
    modified_end_to_end_loss,
    moment_motion,
    momentum_balance_step,
    overdamped_moments,
    rotation_rate,
    stationary_moments,
)
from dln_geometry.learning.motion import (
    counter_terms,
    equation_of_motion,
    equation_of_motion_from_iterates,
    hessian_product,
    modified_loss,
)
from dln_geometry.testing import assert_close, assert_mean, assert_order

F64 = torch.float64
WIDTHS = [(3, 2), (4, 3, 2), (2, 5, 3), (3, 4, 2, 5), (2, 3, 3, 1, 4)]


def draw(widths, generator, scale=0.7, dtype=F64):
    """Layers that are not balanced."""
    return tuple(
        scale * torch.randn(b, a, generator=generator, dtype=F64).to(dtype)
        for a, b in pairwise(widths)
    )


def end_to_end_loss(widths, generator):
    a, b = (torch.randn(widths[-1], widths[0], generator=generator, dtype=F64) for _ in range(2))
    return lambda x: (a.to(x) * (x + b.to(x)).sin()).sum()


def as_params(layers):
    return {f"weights.{p}": w for p, w in enumerate(layers)}


def upstairs(loss, widths, weight_decay=0.0):
    """The same loss as a function of the parameters of a `DeepLinear`, decay included."""
    module = DeepLinear(widths, bias=False, dtype=F64)
    whole, _ = functionalize(module, lambda x: loss(x.mT), torch.eye(widths[0], dtype=F64))

    def total(params):
        size = sum(w.square().sum() for w in params.values())
        return whole(params) + weight_decay / 2 * size

    return total


def batches(widths, generator, count=8):
    while True:
        x = torch.randn(count, widths[0], generator=generator, dtype=F64)
        yield x, torch.randn(count, widths[-1], generator=generator, dtype=F64)


def train(widths, rule, steps, generator):
    """Yield layers, gradients and buffers of `torch.optim.SGD` on minibatches, step by step."""
    layers = [nn.Parameter(w) for w in draw(widths, generator)]
    optimiser = torch.optim.SGD(
        layers, lr=rule.lr, momentum=rule.momentum, weight_decay=rule.weight_decay,
        nesterov=rule.nesterov, dampening=rule.dampening,
    )  # fmt: skip
    source = batches(widths, generator)
    for _ in range(steps):
        x, y = next(source)
        optimiser.zero_grad()
        # Not a function of the mean square alone, and not convex.
        (x @ dln.end_to_end(layers).mT - y).sin().square().mean().backward()
        optimiser.step()
        gradients = [w.grad for w in layers]
        yield (
            [w.detach().clone() for w in layers],
            gradients,
            [optimiser.state[w].get("momentum_buffer") for w in layers],
        )


def check_moments(predicted, layers, scale):
    exact = moments(layers)
    assert len(predicted) == len(exact)
    for a, b in zip(predicted, exact, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-12 * scale


@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_the_law_of_sgd_over_500_minibatches(widths, weight_decay, generator):
    rule = Rule(lr=0.1, weight_decay=weight_decay)
    start = generator.get_state()
    predicted = moments(draw(widths, generator))
    generator.set_state(start)
    before = predicted
    for layers, gradients, _ in train(widths, rule, 500, generator):  # noqa: B007
        predicted = balance_step(predicted, gradients, rule)
    scale = max(float(w.square().sum()) for w in layers)
    check_moments(predicted, layers, max(scale, 1.0))
    # The moments did move: the law was not that of a flow.
    decay = math.exp(-2 * weight_decay * 50)
    moved = [(a - decay * b).abs().max() for a, b in zip(predicted, before, strict=True)]
    assert not moved or max(moved) > 1e-3


@pytest.mark.parametrize(
    "rule",
    [
        Rule(0.03, momentum=0.8),
        Rule(0.03, momentum=0.8, weight_decay=0.05),
        Rule(0.03, momentum=0.6, weight_decay=0.05, dampening=0.4),
        Rule(0.03, momentum=0.7, weight_decay=0.05, nesterov=True),
    ],
    ids=["heavy ball", "decay", "dampening", "nesterov"],
)
@pytest.mark.parametrize("widths", WIDTHS[1:4], ids=str)
def test_the_law_of_momentum_over_500_minibatches(widths, rule, generator):
    start = generator.get_state()
    state = moments(draw(widths, generator))
    generator.set_state(start)
    for layers, _, buffers in train(widths, rule, 500, generator):  # noqa: B007
        state = momentum_balance_step(state, buffers, rule)
    check_moments(state.moments, layers, max(1.0, *(float(w.square().sum()) for w in layers)))
    for p, mixed in enumerate(state.cross):
        exact = layers[p + 1].mT @ buffers[p + 1] - buffers[p] @ layers[p].mT
        assert (mixed - exact).abs().max() < 1e-12 * max(1.0, float(exact.abs().max()))


def test_the_law_in_single_precision_and_batches(generator):
    rule = Rule(lr=0.05, weight_decay=0.1)
    layers = tuple(
        torch.randn(7, *shape, generator=generator) for shape in ((4, 3), (2, 4), (5, 2))
    )
    g = torch.randn(7, 5, 3, generator=generator)
    gradients = dln.lift(layers, g)
    after = [w - rule.lr * (d + 0.1 * w) for w, d in zip(layers, gradients, strict=True)]
    for a, b in zip(balance_step(moments(layers), gradients, rule), moments(after), strict=True):
        assert_close(a, b)
        assert a.dtype == torch.float32


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.4, False), (0.4, True)])
@pytest.mark.parametrize("corrected", [False, True])
def test_overdamped_moments_have_the_stated_order(momentum, nesterov, corrected, generator):
    widths, k, t_end = (3, 4, 2), 0.4, 1.5
    loss = end_to_end_loss(widths, generator)
    total = upstairs(loss, widths)
    params = as_params(draw(widths, generator))
    lrs, errors = [0.025 / 2**j for j in range(4)], []
    for lr in lrs:
        rule = Rule(lr, momentum=momentum, weight_decay=k, nesterov=nesterov)
        state, steps = None, round(t_end / lr)
        q = params
        # The transient: begun at the same time for every learning rate.
        for _ in range(steps if momentum else 0):
            q, state = rule.step(total, q, state)
        path = [q]
        for _ in range(steps):
            q, state = rule.step(total, q, state)
            path.append(q)
        kinetic = [
            torch.stack(ks)
            for ks in zip(*(moments(list(grad(total)(q).values())) for q in path), strict=True)
        ]
        g0 = moments(list(path[0].values()))
        times = [n * lr for n in range(steps + 1)]
        (g,) = overdamped_moments(g0, kinetic, times, rule, corrected=corrected)
        (exact,) = moments(list(path[-1].values()))
        errors.append(float((g[-1] - exact).norm()))
    assert_order(lrs, errors, 2 if corrected else 1, tol=0.1)


def test_overdamped_moments_of_constant_gradients(generator):
    """Between times that are far apart K is integrated exactly."""
    k0 = torch.randn(2, 2, generator=generator, dtype=F64)
    g0 = torch.randn(2, 2, generator=generator, dtype=F64)
    rule = Rule(0.1, momentum=0.3, weight_decay=0.7)
    rate = -2 * math.log(rule.discrete_root) / rule.lr
    strength = 2 * rule.mass / rule.friction**3
    for step in (1e-6, 0.02, 3.0):
        t = [0.0, step, 2.5 * step]
        history = torch.stack([k0 * (1 + s) for s in t])
        (g,) = overdamped_moments([g0], [history], t, rule)
        end = t[-1]
        decay = math.exp(-rate * end)
        whole = -math.expm1(-rate * end) / rate
        linear = (end - whole) / rate
        expected = decay * g0 + strength * (whole + linear) * k0
        assert_close(g[-1], expected, ops=1e5 if step < 1e-3 else 1000)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_stationary_mean_is_that_of_independent_runs(momentum, generator):
    rule = Rule(0.1, momentum=momentum, weight_decay=0.4)
    runs, widths = 4000, (2, 3, 1)
    layers = [w.expand(runs, *w.shape).clone() for w in draw(widths, generator)]
    target = torch.tensor([[1.5, -0.7]], dtype=F64)
    buffers = None
    for _ in range(150):
        x = torch.randn(runs, 4, 2, generator=generator, dtype=F64)
        noise = torch.randn(runs, 4, 1, generator=generator, dtype=F64)
        error = x @ (dln.end_to_end(layers) - target).mT - noise
        gradients = dln.lift(layers, error.mT @ x / 4)
        d = [g + rule.weight_decay * w for g, w in zip(gradients, layers, strict=True)]
        if momentum and buffers is not None:
            d = [momentum * v + x for v, x in zip(buffers, d, strict=True)]
        buffers, before = d, layers
        layers = [w - rule.lr * v for w, v in zip(layers, d, strict=True)]
    # At one time, over runs that are independent: E[G] is the formula's, of E[K].
    (g,), (k,) = moments(before), moments(buffers if momentum else gradients)
    (expected,) = stationary_moments([k], rule)
    assert_mean(g - expected, torch.zeros(3, 3, dtype=F64))
    assert expected.mean(0).norm() > 8 * expected.std(0).norm() / math.sqrt(runs)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("widths", WIDTHS[1:], ids=str)
def test_moments_by_order_of_the_equation_of_motion(widths, weight_decay, generator):
    loss, layers = end_to_end_loss(widths, generator), draw(widths, generator)
    total = upstairs(loss, widths, weight_decay)
    params = as_params(layers)
    fields = [grad(total)(params), *counter_terms(total, 1)(params)]
    actual = moment_motion(loss, layers, 1, weight_decay=weight_decay)
    assert len(actual) == 3
    for order, (motion, field) in enumerate(zip(actual, fields, strict=True)):
        direction = tuple(-field[f"weights.{p}"] for p in range(len(layers)))
        _, expected = jvp(lambda *w: _raw_moments(w), layers, direction)
        scale = max(1.0, *(float(x.abs().max()) for x in expected))
        for a, b in zip(motion, expected, strict=True):
            assert_close(a, b, ops=3000, scale=scale)
        short = moment_motion(loss, layers, order - 1, weight_decay=weight_decay)
        assert len(short) == order + 1


def _raw_moments(layers):
    return tuple(
        layers[p + 1].mT @ layers[p + 1] - layers[p] @ layers[p].mT for p in range(len(layers) - 1)
    )


def rotation_charges(layers, velocity):
    """1/2 (M - M^T) of the layers' velocities."""
    charges = []
    for p in range(len(layers) - 1):
        m = layers[p + 1].mT @ velocity[p + 1] - velocity[p] @ layers[p].mT
        charges.append((m - m.mT) / 2)
    return charges


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("widths", WIDTHS[1:], ids=str)
def test_rotations_are_broken_first_at_the_square_of_the_rate(widths, weight_decay, generator):
    loss, layers, lr = end_to_end_loss(widths, generator), draw(widths, generator), 0.17
    total = upstairs(loss, widths, weight_decay)
    params = as_params(layers)
    xi_0, xi_1 = counter_terms(total, 1)(params)
    for field in (grad(total)(params), xi_0):
        for charge in rotation_charges(layers, list(field.values())):
            assert charge.abs().max() < 1e-13
    expected = rotation_charges(layers, [-(lr**2) * x for x in xi_1.values()])
    actual = rotation_rate(loss, layers, lr, weight_decay=weight_decay)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, ops=3000, scale=max(1e-3, float(b.abs().max())))
        assert a.shape[-1] == 1 or a.abs().max() > 0


def test_rotation_charge_of_the_iterates(generator):
    """By the iterates of gradient descent alone: no Hessian."""
    widths = (3, 4, 2)
    loss, layers = end_to_end_loss(widths, generator), draw(widths, generator)
    total, params = upstairs(loss, widths), as_params(layers)
    h = hessian(lambda x: total(unflatten(x, params)))(flatten(params))
    top = float(torch.linalg.eigvalsh(h).abs().max())
    lrs, errors = [0.05 / top / 2**j for j in range(4)], []
    for lr in lrs:
        rule = Rule(lr)
        field = equation_of_motion_from_iterates(lambda p, rule=rule: rule.step(total, p)[0], lr, 5)
        (charge,) = rotation_charges(layers, list(field(params).values()))
        (leading,) = rotation_rate(loss, layers, lr)
        errors.append(float((charge - leading).norm()))
        assert errors[-1] < 0.5 * leading.norm()
    assert_order(lrs, errors, 3, tol=0.2)


def test_a_step_from_the_balanced_manifold_leaves_it_at_that_rate(generator):
    widths, lr = (3, 4, 5, 2), 0.2
    loss = end_to_end_loss(widths, generator)
    layers = random_balanced(widths, spectrum=[1.3, 0.4], generator=generator, dtype=F64)
    params, _ = Rule(lr).step(upstairs(loss, widths), as_params(layers))
    rate = imbalance_rate(loss, layers, lr)
    for a, b in zip(moments(list(params.values())), rate, strict=True):
        assert_close(a, lr * b, scale=1.0)
        assert b.norm() > 1e-3


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_modified_loss_is_that_of_the_network(widths, weight_decay, generator):
    loss, layers = end_to_end_loss(widths, generator), draw(widths, generator)
    params = as_params(layers)
    general = modified_loss(upstairs(loss, widths, weight_decay), 0.3)
    leaves = [w.clone().requires_grad_() for w in layers]
    value = modified_end_to_end_loss(loss, leaves, 0.3, weight_decay=weight_decay)
    assert_close(value, general(params), ops=1000)
    slopes = torch.autograd.grad(value, leaves)
    for a, b in zip(slopes, grad(general)(params).values(), strict=True):
        assert_close(a, b, ops=1000)
    field = equation_of_motion(upstairs(loss, widths, weight_decay), 0.3, 0, check=False)
    for a, b in zip(slopes, field(params).values(), strict=True):
        assert_close(-a, b, ops=1000)


@pytest.mark.parametrize(
    ("widths", "rank"), [((3, 2), 2), ((4, 3, 2), 2), ((3, 4, 5, 2), 2), ((5, 4, 4, 4, 5), 3)]
)
def test_modified_loss_in_the_metric_of_the_balanced_manifold(widths, rank, generator):
    loss = end_to_end_loss(widths, generator)
    layers = random_balanced(
        widths, rank=rank, spectrum=[1.3, 0.4, 0.3][:rank], generator=generator, dtype=F64
    )
    x = dln.end_to_end(layers)
    point = dln.EndToEnd.of(x, len(layers), rank=rank)
    gradient = grad(loss)(x)
    expected = loss(x) + 0.3 / 4 * (gradient * dln.cometric(point, gradient)).sum()
    actual = modified_end_to_end_loss(loss, layers, 0.3)
    assert_close(actual, expected, ops=1000)
    velocity = dln.cometric(point, gradient)
    assert_close(actual, loss(x) + 0.3 / 4 * dln.inner(point, velocity, velocity), ops=3000)


@pytest.mark.parametrize(
    "widths",
    [
        (3, 2), (1, 2, 1), (1, 4, 1), (2, 3, 3), (4, 2, 3), (1, 3, 2, 4), (2, 4, 4, 1),
        (2, 5, 1, 6, 3),
    ],
    ids=str,
)  # fmt: skip
def test_conserved_functions_are_the_rank_of_the_moments(widths, generator):
    layers = draw(widths, generator)
    params = as_params(layers)

    def values(x):
        parts = _raw_moments(list(unflatten(x, params).values()))
        return torch.cat([g.reshape(-1) for g in parts]) if parts else x[:0]

    jacobian = torch.func.jacrev(values)(flatten(params))
    assert conserved_functions(widths) == int(torch.linalg.matrix_rank(jacobian))


@pytest.mark.parametrize(
    "widths",
    [
        (1, 1, 1), (1, 2, 1), (2, 2, 1), (1, 3, 1), (2, 3, 2), (1, 2, 2, 1), (2, 1, 2, 1),
        (1, 2, 2, 2), (2, 2, 1, 2), (1, 3, 1, 2),
    ],
    ids=str,
)  # fmt: skip
def test_nothing_else_is_conserved(widths, generator):
    """The Lie algebra that the gradients of all losses generate moves all other directions."""
    layers = draw(widths, generator)
    params = as_params(layers)
    x = flatten(params)

    def field_of(z):
        def field(y):
            w = list(unflatten(y, params).values())
            chain = lambda *u: (z * _product(u)).sum()  # noqa: E731
            return torch.cat([d.reshape(-1) for d in grad(chain, tuple(range(len(w))))(*w)])

        return field

    def bracket(a, b):
        return lambda y: jvp(b, (y,), (a(y),))[1] - jvp(a, (y,), (b(y),))[1]

    m, n = widths[-1], widths[0]
    fields = [field_of(z.reshape(m, n)) for z in torch.eye(m * n, dtype=F64)]
    vectors, latest = [f(x) for f in fields], fields
    while latest:
        found = []
        for a in fields:
            for b in latest:
                c = bracket(a, b)
                if _rank([*vectors, c(x)]) > _rank(vectors):
                    vectors.append(c(x))
                    found.append(c)
        latest = found
    assert conserved_functions(widths) == len(x) - _rank(vectors)


def _product(layers):
    x = layers[0]
    for w in layers[1:]:
        x = w @ x
    return x


def _rank(vectors):
    scaled = torch.stack([v / v.norm().clamp_min(1e-12) for v in vectors])
    return int(torch.linalg.matrix_rank(scaled, rtol=1e-8))


def with_dead_directions(widths, dead, generator):
    """Layers whose p-th hidden layer has dead[p] directions that carry nothing, rotated."""
    layers = list(draw(widths, generator, scale=1.0))
    for p, count in enumerate(dead):
        q, _ = torch.linalg.qr(
            torch.randn(widths[p + 1], widths[p + 1], generator=generator, dtype=F64)
        )
        n = q[:, :count]
        layers[p] = layers[p] - n @ (n.mT @ layers[p])
        layers[p + 1] = layers[p + 1] - (layers[p + 1] @ n) @ n.mT
    return tuple(layers)


@pytest.mark.parametrize(
    ("widths", "dead"),
    [
        ((3, 4, 2), (1,)), ((4, 3, 3, 5), (1, 1)), ((2, 4, 3, 4, 3), (2, 0, 1)),
        ((3, 4, 4, 2), (0, 2)),
    ],
)  # fmt: skip
def test_collapse_thresholds_are_those_of_the_hessian(widths, dead, generator):
    loss, layers = end_to_end_loss(widths, generator), with_dead_directions(widths, dead, generator)
    gradient = grad(loss)(dln.end_to_end(layers))
    thresholds = collapse_thresholds(layers, gradient)
    params = as_params(layers)
    whole = upstairs(loss, widths, 0.37)
    h = hessian(lambda x: whole(unflatten(x, params)))(flatten(params))
    for p, count in enumerate(dead, start=1):
        n = dead_directions(layers, p)
        assert n.shape == (widths[p], count)
        if count == 0:
            continue
        assert_close(n.mT @ layers[p - 1], torch.zeros(count, widths[p - 1]), scale=10.0)
        assert_close(layers[p] @ n, torch.zeros(widths[p + 1], count), scale=10.0)
        rows = []
        for direction in n.mT:
            for j in range(widths[p - 1]):
                rows.append({p - 1: torch.outer(direction, _unit(widths[p - 1], j))})
            for j in range(widths[p + 1]):
                rows.append({p: torch.outer(_unit(widths[p + 1], j), direction)})
        o = torch.stack([
            flatten({k: row.get(i, torch.zeros_like(w)) for i, (k, w) in enumerate(params.items())})
            for row in rows
        ])  # fmt: skip
        lowest = torch.linalg.eigvalsh(o @ h @ o.mT)[0]
        assert_close(lowest, 0.37 - thresholds[p - 1], ops=1000, scale=float(h.abs().max()))
        # The reflection is a symmetry: the Hessian does not mix the dead directions with others.
        others = torch.eye(h.shape[0], dtype=F64) - o.mT @ o
        assert (others @ h @ o.mT).abs().max() < 1e-10


def _unit(d, j):
    e = torch.zeros(d, dtype=F64)
    e[j] = 1.0
    return e


@pytest.mark.parametrize("side", [-1, 1])
def test_a_dead_direction_wakes_below_the_threshold(side, generator):
    widths = (3, 4, 3, 2)
    target = torch.randn(2, 3, generator=generator, dtype=F64)
    layers = with_dead_directions(widths, (1, 0), generator)
    gradient = dln.end_to_end(layers) - target
    threshold = float(collapse_thresholds(layers, gradient)[0])
    gamma, lr = threshold * (1 + 0.1 * side), 1e-3
    n = dead_directions(layers, 1)
    m = layers[2].mT @ gradient
    u, _, vh = torch.linalg.svd(m)
    kick = [-1e-5 * vh[0], 1e-5 * u[:, 0]]
    moved = [layers[0] + n @ kick[0][None], layers[1] + torch.outer(kick[1], n[:, 0]), layers[2]]
    total = upstairs(lambda x: 0.5 * (x - target).square().sum(), widths, gamma)
    size = float((n.mT @ moved[0]).norm())
    params, _ = Rule(lr).step(total, as_params(moved))
    grown = float((n.mT @ params["weights.0"]).norm()) / size
    # Of second order in the kick.
    assert abs(grown - (1 - lr * (gamma - threshold))) < 1e-9
    assert abs(grown - 1) > 1e-5


DEPTHS = [2, 3, 4, 6, 2.7]


@pytest.mark.parametrize("depth", [2, 3, 4, 6])
def test_decayed_network_is_stationary_at_the_closed_form(depth, generator):
    """The general machinery on the same rectangular network: its gradient vanishes there."""
    widths = (4, *(3 + p % 2 for p in range(depth - 1)), 3)
    phi = torch.tensor([2.0, 1.1, 0.9], dtype=F64)
    gamma = 0.8 * float(branch_end(phi, depth)[2])
    target = dln.Collapsed.random((3, 4), 3, 2, spectrum=phi, generator=generator, dtype=F64).matrix
    u, _, vh = torch.linalg.svd(target, full_matrices=False)
    s = decayed_singular_values(phi, gamma, depth)
    point = dln.EndToEnd.of(u @ torch.diag(s) @ vh, depth)
    layers = dln.balanced_factors(point, widths=widths, gauge="haar", generator=generator)
    total = upstairs(lambda x: 0.5 * (x - target).square().sum(), widths, gamma)
    params = as_params(layers)
    assert flatten(grad(total)(params)).abs().max() < 1e-13
    h = hessian(lambda x: total(unflatten(x, params)))(flatten(params))
    # A minimum, degenerate along the orbit of the hidden rotations alone.
    values = torch.linalg.eigvalsh(h)
    orbit = sum(d * 3 - 6 for d in widths[1:-1])
    assert values[0] > -1e-12
    assert (values < 1e-9).sum() == orbit


def radial(depth, s, phi, generator):
    """A network at one learned mode: parameters, and the unit direction that scales the mode."""
    widths = (3, *(2 + p % 2 for p in range(depth - 1)), 2)
    u, v = (torch.randn(d, generator=generator, dtype=F64) for d in (2, 3))
    outer = torch.outer(u / u.norm(), v / v.norm())
    point = dln.EndToEnd.of(s * outer, depth, rank=1)
    layers = dln.balanced_factors(point, widths=widths, gauge="haar", generator=generator)
    along = {name: w / w.norm() / math.sqrt(depth) for name, w in as_params(layers).items()}
    return widths, as_params(layers), along, lambda x: 0.5 * (x - phi * outer).square().sum()


@pytest.mark.parametrize("depth", [3, 4, 6])
def test_the_learned_branch_ends_where_the_hessian_says(depth, generator):
    """At a fold the square of the vanishing eigenvalue is linear in gamma: its root is the end."""
    phi = 1.7
    end = float(branch_end(phi, depth))
    gammas, squares = [], []
    for distance in (1e-6, 2e-6):
        gamma = end * (1 - distance)
        s = decayed_singular_values(torch.tensor(phi, dtype=F64), gamma, depth)
        widths, params, along, loss = radial(depth, s, phi, generator)
        total = upstairs(loss, widths, gamma)
        assert flatten(grad(total)(params)).abs().max() < 1e-8
        image = hessian_product(total, params)(along)
        curvature = float(flatten(image) @ flatten(along))
        assert (flatten(image) - curvature * flatten(along)).norm() < 1e-8
        gammas.append(gamma)
        squares.append(curvature**2)
    slope = (squares[1] - squares[0]) / (gammas[1] - gammas[0])
    root = gammas[0] - squares[0] / slope
    assert abs(root / end - 1) < 1e-6
    assert float(decayed_singular_values(phi, end * (1 + 1e-5), depth)) == 0


@pytest.mark.parametrize("depth", [3, 4, 6])
def test_the_global_switch_is_where_the_losses_cross(depth, generator):
    phi = 1.7

    def difference(gamma):
        s = decayed_singular_values(torch.tensor(phi, dtype=F64), gamma, depth)
        widths, params, _, loss = radial(depth, s, phi, torch.Generator().manual_seed(1))
        return float(upstairs(loss, widths, gamma)(params)) - phi**2 / 2

    end = float(branch_end(torch.tensor(phi, dtype=F64), depth))
    root = optimize.brentq(difference, 1e-3 * end, end * (1 - 1e-9), xtol=1e-12)
    assert abs(root / float(global_switch(torch.tensor(phi, dtype=F64), depth)) - 1) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("branch", ["learned", "global"])
@pytest.mark.parametrize("depth", [1, 1.4, 2, 2.7, 5, math.inf])
def test_decayed_singular_values_minimise_at_every_depth(depth, branch, dtype):
    """Against a scan of the loss; at infinite depth, up to a divergent constant."""
    phi, gamma = torch.tensor([3.0, 1.0, 0.2, 0.0], dtype=dtype), 0.3
    s = decayed_singular_values(phi, gamma, depth, branch=branch)
    assert s.dtype == dtype
    grid = torch.linspace(1e-6, 3.5, 400_001, dtype=F64)
    for target, value in zip(phi.tolist(), s.tolist(), strict=True):
        if depth == math.inf:
            energy = 0.5 * (grid - target) ** 2 + gamma * grid.log()
        else:
            energy = 0.5 * (grid - target) ** 2 + depth * gamma / 2 * grid ** (2 / depth)
        inner = (energy[1:-1] < energy[:-2]) & (energy[1:-1] <= energy[2:])
        minima = grid[1:-1][inner]
        learned = float(minima[-1]) if len(minima) else 0.0
        if branch == "global" and learned:
            at = float(energy[1:-1][inner][-1])
            learned = learned if at < 0.5 * target**2 and depth != math.inf else 0.0
        assert abs(value - learned) < 2e-5


@pytest.mark.parametrize("depth", [2, 2.7, 5])
def test_thresholds_are_where_the_values_vanish(depth):
    phi = torch.tensor([3.0, 0.2], dtype=F64)
    for branch, threshold in (("learned", branch_end), ("global", global_switch)):
        for k, gamma in enumerate(threshold(phi, depth).tolist()):
            below, above = (
                decayed_singular_values(phi, gamma * (1 + e), depth, branch=branch)[k]
                for e in (-1e-9, 1e-9)
            )
            assert below > 0
            assert above == 0
    near_two = global_switch(phi, 2 + 1e-9), branch_end(phi, 2 + 1e-9)
    assert all(torch.allclose(x, phi, rtol=1e-7) for x in near_two)


def test_singular_values_without_decay_are_the_target():
    phi = torch.tensor([3.0, 0.0])
    for depth in (1, 2, 3, math.inf):
        assert torch.equal(decayed_singular_values(phi, 0.0, depth), phi)


class TestDoors:
    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda g, v: balance_step(g, v, 0.1), TypeError, "rule must be a Rule"),
            (lambda g, v: balance_step(g, v, Rule(0.1, momentum=0.5)), ValueError, "no momentum"),
            (
                lambda g, v: balance_step(g, v, Rule(0.1, potential=lambda p: p["q"].sum())),
                ValueError,
                "no potential",
            ),
            (lambda g, v: balance_step(g, v[:1], Rule(0.1)), ValueError, "shaped like layers"),
            (lambda g, v: balance_step(g[0], v, Rule(0.1)), TypeError, "sequence of matrices"),
            (lambda g, v: balance_step([v[0]], v, Rule(0.1)), ValueError, r"\(..., d, d\)"),
            (lambda g, v: balance_step([g[0] / 0], v, Rule(0.1)), ValueError, "finite"),
            (lambda g, v: momentum_balance_step(g, v, Rule(0.1)), ValueError, "have momentum"),
            (lambda g, v: stationary_moments(g, Rule(0.1)), ValueError, "have weight decay"),
            (
                lambda g, v: stationary_moments(g, Rule(1.0, weight_decay=2.0)),
                ValueError,
                "below 2",
            ),
            (
                lambda g, v: stationary_moments(g, Rule(0.1, momentum=0.5, nesterov=True)),
                ValueError,
                "heavy ball",
            ),
            (
                lambda g, v: overdamped_moments(g, [g[0][None]], [1.0], Rule(0.1)),
                ValueError,
                "times must increase from 0",
            ),
            (
                lambda g, v: overdamped_moments(g, g, [0.0], Rule(0.1)),
                ValueError,
                "must have shape",
            ),
            (
                lambda g, v: overdamped_moments(
                    g, [g[0][None]], [0.0], Rule(1.0, momentum=0.9, weight_decay=0.1)
                ),
                ValueError,
                "oscillates",
            ),
            (lambda g, v: moment_motion(torch.sum, v, 2), ValueError, "at most 1"),
            (lambda g, v: imbalance_rate(torch.sum, v, 0.0), ValueError, "lr must be positive"),
            (lambda g, v: conserved_functions((2,)), ValueError, "at least two"),
            (lambda g, v: collapse_thresholds(v, torch.ones(3, 3)), ValueError, "like the point"),
            (lambda g, v: dead_directions(v, 2), ValueError, "from 1 to 1"),
            (lambda g, v: dead_directions([w[None] for w in v], 1), ValueError, "leading"),
            (lambda g, v: branch_end([-1.0], 3), ValueError, "nonnegative"),
            (lambda g, v: global_switch([1.0], 0.5), ValueError, "depth must be"),
            (lambda g, v: decayed_singular_values([1.0], -1.0, 3), ValueError, "non-negative"),
            (
                lambda g, v: decayed_singular_values([1.0], 1.0, 3, branch="best"),
                ValueError,
                "branch must be",
            ),
        ],
    )
    def test_what_is_refused(self, call, error, message):
        g, v = [torch.eye(2)], [torch.ones(2, 3), torch.ones(4, 2)]
        with pytest.raises(error, match=message):
            call(g, v)

    def test_depth_one_has_no_moments(self):
        assert moment_motion(torch.sum, [torch.ones(2, 3)], 1) == [(), (), ()]
        assert rotation_rate(torch.sum, [torch.ones(2, 3)], 0.1) == ()
        assert balance_step([], [torch.ones(2, 3)], Rule(0.1)) == ()
        assert momentum_balance_step([], [torch.ones(2, 3)], Rule(0.1, momentum=0.1)) == (
            MomentState((), ())
        )
        assert collapse_thresholds([torch.ones(2, 3)], torch.ones(2, 3)).shape == (0,)
