from __future__ import annotations

import math

import pytest
import torch
from torch.func import grad, jacrev

from dln_geometry.learning import (
    accumulated_error,
    counter_terms,
    equation_of_motion,
    flatten,
    max_learning_rate,
    modified_loss,
    sharpness,
    unflatten,
)
from dln_geometry.testing import assert_close, assert_order
from tests.learning.motion.routes import global_errors, network, rates, same


@pytest.mark.parametrize("order", [-1, 0, 1, 2, 3])
def test_equation_of_motion_is_the_sum_of_its_terms(order, generator):
    loss, params = network(generator)
    lr = 0.4 / float(sharpness(loss, params, generator=generator))
    total = flatten(grad(loss)(params))
    if order >= 0:
        for a, xi in enumerate(counter_terms(loss, order)(params)):
            total = total + lr ** (a + 1) * flatten(xi)
    field = equation_of_motion(loss, lr, order)
    assert_close(flatten(field(params)), -total, ops=1000)
    y = torch.stack([flatten(params), 0.3 * flatten(params)])
    out = torch.empty_like(y)
    with torch.no_grad():
        field.field(params)(None, y, out)
    assert_close(out[0], -total, ops=1000)
    assert_close(out[1], flatten(field(unflatten(y[1], params))), ops=1000)


@pytest.mark.parametrize("order", [-1, 0, 1, 2])
def test_the_flow_passes_through_the_iterates(order, generator):
    loss, params = network(generator)
    lrs = rates(loss, params, generator)
    errors = global_errors(lambda lr: equation_of_motion(loss, lr, order), loss, params, lrs)
    assert_order(lrs, errors, order + 2, tol=0.1)


def test_modified_loss_is_the_potential_of_order_0(generator):
    loss, params = network(generator)
    modified = modified_loss(loss, 0.3)
    field = equation_of_motion(loss, 0.3, 0, check=False)(params)
    same(grad(modified)(params), {name: -x for name, x in field.items()})
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    by_autograd = torch.autograd.grad(modified(leaves), list(leaves.values()))
    same(dict(zip(params, by_autograd, strict=True)), grad(modified)(params))
    # xi_1 is the gradient of nothing: its Jacobian is not symmetric.
    jacobian = jacrev(lambda x: flatten(counter_terms(loss, 1)(unflatten(x, params))[1]))
    j = jacobian(flatten(params))
    assert (j - j.mT).norm() > 1e-3 * j.norm()


def test_a_learning_rate_beyond_the_sharpness_is_refused(generator):
    loss, params = network(generator)
    top = float(sharpness(loss, params, generator=generator))
    equation_of_motion(loss, 0.9 / top, 0)(params)
    with pytest.raises(ValueError, match="no real flow does"):
        equation_of_motion(loss, 1.1 / top, 0)(params)
    equation_of_motion(loss, 1.1 / top, 0, check=False)(params)
    equation_of_motion(loss, 1.1 / top, -1)(params)


def test_a_learning_rate_beyond_the_negative_curvature_is_refused():
    saddle = lambda p: (p["q"] ** 2 * torch.tensor([0.5, -2.0])).sum()  # noqa: E731
    with pytest.raises(ValueError, match="lr \\* lambda_min = -1.2"):
        equation_of_motion(saddle, 0.3, 1)({"q": torch.ones(2)})


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (None, TypeError, "loss must be a function of the parameters"),
        (lambda p: 1.0, TypeError, "loss must return a tensor, got float"),
        (lambda p: p["q"], ValueError, r"real scalar of shape \(\), got \(2,\)"),
        (lambda p: p["q"].detach().sum(), ValueError, "must depend on the parameters"),
    ],
)
def test_bad_losses(loss, error, message):
    q = {"q": torch.ones(2)}
    for function in (
        lambda f: counter_terms(f, 0)(q),
        lambda f: counter_terms(f, 3)(q),
        lambda f: equation_of_motion(f, 0.1, -1)(q),
        lambda f: equation_of_motion(f, 0.1, 1)(q),
        lambda f: modified_loss(f, 0.1)(q),
        lambda f: sharpness(f, q),
        lambda f: max_learning_rate(f, q, 0.1, 0),
        lambda f: next(accumulated_error(f, 0.1, 0, [q])),
    ):
        with pytest.raises(error, match=message):
            function(loss)


def test_points_that_are_no_numbers_are_refused():
    q = {"q": torch.tensor([1.0, math.nan])}
    with pytest.raises(ValueError, match=r"params\['q'\] must be finite"):
        max_learning_rate(lambda p: p["q"].square().sum(), q, 0.1, 0)
    corner = {"q": torch.tensor([1.0, 0.0])}
    with pytest.raises(ValueError, match="counter terms must be finite"):
        max_learning_rate(lambda p: p["q"].sqrt().sum(), corner, 0.1, 0)
    with pytest.raises(ValueError, match=r"params\['q'\] must be finite"):
        equation_of_motion(lambda p: p["q"].square().sum(), 0.1, 0)(q)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, q: equation_of_motion(f, 0.0, 1), ValueError, "lr must be positive"),
        (lambda f, q: equation_of_motion(f, "a", 1), TypeError, "lr must be a real"),
        (lambda f, q: equation_of_motion(f, 0.1, -2), ValueError, "order must be at least -1"),
        (lambda f, q: equation_of_motion(f, 0.1, 1.5), TypeError, "order must be an integer"),
        (lambda f, q: equation_of_motion(f, 0.1, 1)([1]), TypeError, "dict of tensors"),
        (lambda f, q: equation_of_motion(f, 0.1, 1)({}), ValueError, "at least one tensor"),
        (lambda f, q: equation_of_motion(f, 0.1, 1)({"q": 1}), TypeError, "real floating"),
        (lambda f, q: equation_of_motion(3, 0.1, 1), TypeError, "loss must be a function"),
        (lambda f, q: equation_of_motion(f, 0.1, 1, check=1), TypeError, "check must be"),
    ],
)  # fmt: skip
def test_motions_that_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(lambda p: p["q"].square().sum(), {"q": torch.ones(2)})
