from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.func import grad

from dln_geometry.learning import (
    Rule,
    counter_terms,
    equation_of_motion_from_iterates,
    flatten,
    momentum_step,
    motion_of_iterates,
    with_velocity,
    without_velocity,
)
from dln_geometry.testing import assert_order
from tests.learning.motion.routes import F64, STEPS, flow, global_errors, network, rates, same


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_order_from_iterates(order, generator):
    loss, params = network(generator)

    def field_of(lr):
        rule = Rule(lr=lr)
        return equation_of_motion_from_iterates(lambda p: rule.step(loss, p)[0], lr, order)

    # What comes after a high order is never far.
    lrs = [lr / (4 if order > 3 else 1) for lr in rates(loss, params, generator)]
    assert_order(lrs, global_errors(field_of, loss, params, lrs), order, tol=0.1)


def test_iterates_give_the_counter_terms(generator):
    """F_J agrees with the series up to lr^J at a point, too: both know the same flow."""
    loss, params = network(generator)
    xi = counter_terms(loss, 1)(params)
    lrs, errors = rates(loss, params, generator), []
    for lr in lrs:
        rule = Rule(lr=lr)
        f = equation_of_motion_from_iterates(lambda p, r=rule: r.step(loss, p)[0], lr, 3)(params)
        series = flatten(grad(loss)(params)) + lr * flatten(xi[0]) + lr**2 * flatten(xi[1])
        errors.append(float((flatten(f) + series).norm()))
    assert_order(lrs, errors, 3, tol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("order", "nesterov"), [(1, False), (2, True), (3, False)])
def test_momentum_behind_its_transient(order, nesterov, generator):
    loss, params = network(generator)
    b, k = 0.2, 0.1
    lrs, errors = [lr * (1 - b) for lr in rates(loss, params, generator)], []
    for lr, steps in zip(lrs, STEPS, strict=True):
        step = momentum_step(loss, Rule(lr, momentum=b, weight_decay=k, nesterov=nesterov))
        state = with_velocity(params, grad(loss)(params))
        # 0.2^20 = 1e-14: the transient is gone, at the same time for every learning rate.
        for _ in range(steps):
            state = step(state)
        field = equation_of_motion_from_iterates(step, lr, order)
        # The buffers follow at the rate (1 - b) / lr: stiff, and a short time is enough.
        steps = steps // 5
        reached = flow(field, state, lr * steps)
        for _ in range(steps):
            state = step(state)
        errors.append(float((reached - flatten(state)).norm()))
    assert_order(lrs, errors, order, tol=0.15)


def test_momentum_from_recorded_iterates(generator):
    """On a quadratic, v = V q behind the transient, and F = log(l) / lr in each eigendirection."""
    h = torch.tensor([0.3, 1.7, 4.0], dtype=F64)
    b, lr = 0.3, 0.02
    path = [{"q": torch.tensor([1.0, 2.0, -1.5], dtype=F64)}]
    state = None
    for _ in range(60):
        q, state = Rule(lr, momentum=b).step(lambda p: (h * p["q"] ** 2).sum() / 2, path[-1], state)
        path.append(q)
    half = (1 + b - lr * h) / 2
    expected = path[50]["q"] * (half + (half**2 - b).sqrt()).log() / lr
    errors = [
        (motion_of_iterates(path[50 : 51 + j], lr)["q"] - expected).norm() for j in range(1, 8)
    ]
    assert all(after < 0.2 * before for before, after in pairwise(errors))
    assert errors[-1] < 1e-6 * expected.norm()


def test_without_momentum_the_state_is_the_parameters(generator):
    loss, params = network(generator)
    same(momentum_step(loss, Rule(0.1))(params), Rule(0.1).step(loss, params)[0])
    state = with_velocity(params, grad(loss)(params))
    q, v = without_velocity(state)
    same(q, params)
    same(v, grad(loss)(params))


def test_iterates_that_do_not_settle_are_refused():
    sharp = lambda p: {"q": -0.5 * p["q"]}  # noqa: E731  (lr * lambda = 1.5)
    with pytest.raises(ValueError, match="must decrease"):
        equation_of_motion_from_iterates(sharp, 0.1, 2)({"q": torch.ones(2)})
    with pytest.raises(ValueError, match="must be finite"):
        equation_of_motion_from_iterates(lambda p: {"q": p["q"] / 0}, 0.1, 2)({"q": torch.ones(2)})


def test_rest_is_no_reason_to_refuse():
    field = equation_of_motion_from_iterates(lambda p: {"q": p["q"] * 1.0}, 0.1, 4)
    assert torch.equal(field({"q": torch.ones(2)})["q"], torch.zeros(2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, q: equation_of_motion_from_iterates(f, 0.1, 0), ValueError, "at least 1"),
        (lambda f, q: equation_of_motion_from_iterates(1, 0.1, 1), TypeError, "step must be"),
        (
            lambda f, q: equation_of_motion_from_iterates(lambda p: {"r": p["q"]}, 0.1, 1)(q),
            ValueError,
            "what step returns must have the names",
        ),
        (lambda f, q: motion_of_iterates([q], 0.1), ValueError, "at least 2"),
        (lambda f, q: momentum_step(f, 0.1), TypeError, "rule must be a Rule"),
        (lambda f, q: momentum_step(f, Rule(0.1, momentum=0.5))(q), ValueError, "velocity"),
        (lambda f, q: with_velocity(q, {"r": q["q"]}), ValueError, "names and shapes"),
    ],
)  # fmt: skip
def test_iterates_that_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(lambda p: p["q"].square().sum(), {"q": torch.ones(2)})
