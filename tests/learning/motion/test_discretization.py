from __future__ import annotations

import math

import pytest
import torch

from dln_geometry.learning import (
    Rule,
    accumulated_error,
    counter_terms,
    discretization_error,
    equation_of_motion,
    flatten,
    max_learning_rate,
    sharpness,
)
from dln_geometry.testing import assert_close, assert_order
from tests.learning.motion.routes import STEPS, descend, flow, network, rates


@pytest.mark.parametrize("order", [-1, 0, 1])
def test_error_of_one_step(order, generator):
    loss, params = network(generator)
    lrs, errors = rates(loss, params, generator), []
    for lr in lrs:
        after = flatten(Rule(lr).step(loss, params)[0])
        error = flow(equation_of_motion(loss, lr, order), params, lr) - after
        leading = flatten(discretization_error(loss, lr, order)(params))
        assert (error - leading).norm() < 0.3 * leading.norm()
        errors.append(float((error - leading).norm()))
    # Leading order is right: what is left is one order smaller.
    assert_order(lrs, errors, order + 4, tol=0.25)


@pytest.mark.parametrize("order", [-1, 0, pytest.param(1, marks=pytest.mark.slow)])
def test_accumulated_error(order, generator):
    loss, params = network(generator)
    lrs, errors = rates(loss, params, generator), []
    for lr, steps in zip(lrs, STEPS, strict=True):
        path = descend(loss, lr, params, steps)
        field = equation_of_motion(loss, lr, order)
        error = flow(field, params, lr * steps) - flatten(path[-1])
        *_, last = accumulated_error(loss, lr, order, path[:-1])
        errors.append(float((error - flatten(last)).norm()))
        assert errors[-1] < 0.3 * error.norm()
    assert_order(lrs, errors, order + 3, tol=0.25)


@pytest.mark.parametrize("order", [-1, 0, 1])
def test_largest_learning_rate_makes_that_error(order, generator):
    loss, params = network(generator)
    off = []
    size = float(flatten(counter_terms(loss, order + 1)(params)[-1]).norm())
    sizes = [size * lr ** (order + 3) for lr in rates(loss, params, generator)]
    for eps in sizes:
        lr = max_learning_rate(loss, params, eps, order, generator=generator)
        after = flatten(Rule(lr).step(loss, params)[0])
        error = flow(equation_of_motion(loss, lr, order), params, lr) - after
        off.append(abs(float(error.norm()) / eps - 1))
    assert_order([eps ** (1 / (order + 3)) for eps in sizes], off, 1, tol=0.25)
    # A coarse wish is cut off where the equation ends.
    edge = max_learning_rate(loss, params, 1e9, order, generator=generator)
    assert_close(edge, 1 / float(sharpness(loss, params, generator=generator)), ops=1e6)


def test_largest_learning_rate_of_a_linear_loss_is_unbounded():
    assert max_learning_rate(lambda p: p["q"].sum(), {"q": torch.ones(3)}, 0.1, 0) == math.inf


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, q: max_learning_rate(f, q, -1.0, 0), ValueError, "eps must be positive"),
        (lambda f, q: discretization_error(f, 0.1, -2), ValueError, "at least -1"),
        (lambda f, q: accumulated_error(f, 0.1, -2, []), ValueError, "at least -1"),
    ],
)  # fmt: skip
def test_errors_that_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(lambda p: p["q"].square().sum(), {"q": torch.ones(2)})
