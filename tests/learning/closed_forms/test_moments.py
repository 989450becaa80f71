from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import grad

import dln_geometry as dln
from dln_geometry.learning import Rule
from dln_geometry.learning.closed_forms import (
    MomentState,
    balance_step,
    momentum_balance_step,
    overdamped_moments,
    stationary_moments,
)
from dln_geometry.testing import assert_close, assert_mean, assert_order
from tests.learning.closed_forms.routes import (
    F64,
    WIDTHS,
    as_params,
    draw,
    end_to_end_loss,
    upstairs,
)


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
    exact = dln.moments(layers)
    assert len(predicted) == len(exact)
    for a, b in zip(predicted, exact, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-12 * scale


@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_the_law_of_sgd_over_500_minibatches(widths, weight_decay, generator):
    rule = Rule(lr=0.1, weight_decay=weight_decay)
    start = generator.get_state()
    predicted = dln.moments(draw(widths, generator))
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
    state = dln.moments(draw(widths, generator))
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
    for a, b in zip(
        balance_step(dln.moments(layers), gradients, rule), dln.moments(after), strict=True
    ):
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
            for ks in zip(*(dln.moments(list(grad(total)(q).values())) for q in path), strict=True)
        ]
        g0 = dln.moments(list(path[0].values()))
        times = [n * lr for n in range(steps + 1)]
        (g,) = overdamped_moments(g0, kinetic, times, rule, corrected=corrected)
        (exact,) = dln.moments(list(path[-1].values()))
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
    (g,), (k,) = dln.moments(before), dln.moments(buffers if momentum else gradients)
    (expected,) = stationary_moments([k], rule)
    assert_mean(g - expected, torch.zeros(3, 3, dtype=F64))
    assert expected.mean(0).norm() > 8 * expected.std(0).norm() / math.sqrt(runs)


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
    ],
)
def test_what_is_refused(call, error, message):
    g, v = [torch.eye(2)], [torch.ones(2, 3), torch.ones(4, 2)]
    with pytest.raises(error, match=message):
        call(g, v)


def test_depth_one_has_no_moments():
    assert balance_step([], [torch.ones(2, 3)], Rule(0.1)) == ()
    assert momentum_balance_step([], [torch.ones(2, 3)], Rule(0.1, momentum=0.1)) == (
        MomentState((), ())
    )
