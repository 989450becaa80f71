from __future__ import annotations

import pytest
import torch
from torch.func import grad, hessian, jvp

import dln_geometry as dln
from dln_geometry.learning import Rule, flatten, unflatten
from dln_geometry.learning.closed_forms import (
    imbalance_rate,
    modified_end_to_end_loss,
    moment_motion,
    rotation_rate,
)
from dln_geometry.learning.motion import (
    counter_terms,
    equation_of_motion,
    equation_of_motion_from_iterates,
    modified_loss,
)
from dln_geometry.testing import assert_close, assert_order
from tests.learning.closed_forms.routes import (
    F64,
    WIDTHS,
    as_params,
    draw,
    end_to_end_loss,
    raw_moments,
    upstairs,
)


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
        _, expected = jvp(lambda *w: raw_moments(w), layers, direction)
        scale = max(1.0, *(float(x.abs().max()) for x in expected))
        for a, b in zip(motion, expected, strict=True):
            assert_close(a, b, ops=3000, scale=scale)
        short = moment_motion(loss, layers, order - 1, weight_decay=weight_decay)
        assert len(short) == order + 1


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
    layers = dln.random_balanced(widths, spectrum=[1.3, 0.4], generator=generator, dtype=F64)
    params, _ = Rule(lr).step(upstairs(loss, widths), as_params(layers))
    rate = imbalance_rate(loss, layers, lr)
    for a, b in zip(dln.moments(list(params.values())), rate, strict=True):
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
    layers = dln.random_balanced(
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
    ("call", "error", "message"),
    [
        (lambda g, v: moment_motion(torch.sum, v, 2), ValueError, "at most 1"),
        (lambda g, v: imbalance_rate(torch.sum, v, 0.0), ValueError, "lr must be positive"),
    ],
)
def test_what_is_refused(call, error, message):
    g, v = [torch.eye(2)], [torch.ones(2, 3), torch.ones(4, 2)]
    with pytest.raises(error, match=message):
        call(g, v)


def test_depth_one_has_no_moments_that_move():
    assert moment_motion(torch.sum, [torch.ones(2, 3)], 1) == [(), (), ()]
    assert rotation_rate(torch.sum, [torch.ones(2, 3)], 0.1) == ()
