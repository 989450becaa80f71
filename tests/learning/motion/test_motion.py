from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import grad, hessian, jacrev, jvp, vmap

from dln_geometry.learning import Rule, flatten, functionalize, unflatten
from dln_geometry.learning.motion import (
    accumulated_error,
    counter_terms,
    discretization_error,
    equation_of_motion,
    equation_of_motion_from_iterates,
    max_learning_rate,
    modified_loss,
    momentum_step,
    motion_of_iterates,
    recursive_counter_terms,
    scale_velocity,
    sharpness,
    translation_rate,
    with_velocity,
    without_velocity,
)
from dln_geometry.ode import integrate
from dln_geometry.testing import assert_close, assert_order

F64 = torch.float64
# In units of 1 / sharpness: above, an order 5 still feels the sixth.
FRACTIONS = (0.12, 0.06, 0.04, 0.03)
STEPS = (20, 40, 60, 80)


def network(generator, dtype=F64):
    """A small network by hand: three tensors, nothing symmetric, sharpness about 3."""
    options = {"generator": generator, "dtype": F64}
    params = {
        "w": torch.randn(3, 2, **options),
        "v": torch.randn(1, 3, **options),
        "b": torch.randn(3, **options),
    }
    x, y = torch.randn(7, 2, **options), torch.randn(7, 1, **options)

    def loss(p):
        hidden = torch.tanh(x.to(p["w"]) @ p["w"].mT + p["b"])
        return (hidden @ p["v"].mT - y.to(p["w"])).square().mean()

    return loss, {name: p.to(dtype) for name, p in params.items()}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(4, 2, batch_first=True, dtype=F64) for _ in range(2)
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x, x, x, need_weights=False)[0]
        return x.mean(1)


def modules(kind, generator):
    if kind == "layer norm":
        module = nn.Sequential(
            nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)
        ).double()
        inputs = torch.randn(6, 3, generator=generator, dtype=F64)
    elif kind == "batch norm":
        module = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Softplus(), nn.Flatten(), nn.Linear(8, 2)
        ).double()
        inputs = torch.randn(5, 1, 4, 4, generator=generator, dtype=F64)
    else:
        module = nn.Sequential(Attention(), nn.Linear(4, 2, dtype=F64))
        inputs = torch.randn(5, 3, 4, generator=generator, dtype=F64)
    for p in module.parameters():
        nn.init.normal_(p, 0.1, 0.5, generator=generator)
    target = torch.randn(len(inputs), 2, generator=generator, dtype=F64)
    return functionalize(module, nn.functional.mse_loss, (inputs, target))


def dense(loss, params):
    """Gradient, Hessian and third derivative as arrays."""

    def flat(x):
        return loss(unflatten(x, params))

    x = flatten(params)
    return grad(flat)(x), hessian(flat)(x), jacrev(hessian(flat))(x)


def same(actual, expected, ops=1000):
    a, b = flatten(actual), flatten(expected)
    assert list(actual) == list(expected)
    assert_close(a, b, ops=ops)


def descend(loss, lr, params, steps):
    path = [params]
    for _ in range(steps):
        path.append(Rule(lr=lr).step(loss, path[-1])[0])
    return path


def flow(field, start, t_end):
    solution = integrate(
        field.field(start), flatten(start)[None], t_end=t_end, rtol=1e-12, atol=1e-14,
        save_at=[t_end],
    )  # fmt: skip
    return solution.saved["y"][-1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_counter_terms_are_the_printed_formulas(dtype, generator):
    loss, params = network(generator, dtype)
    g, h, t = dense(loss, params)
    tgg = torch.einsum("ijk,j,k->i", t, g, g)
    tgu = torch.einsum("ijk,j,k->i", t, g, h @ g)
    expected = [h @ g / 2, h @ h @ g / 3 + tgg / 12, h @ h @ h @ g / 4 + h @ tgg / 12 + tgu / 12]
    for order in range(3):
        terms = counter_terms(loss, order)(params)
        assert len(terms) == order + 1
        for xi, xi_dense in zip(terms, expected, strict=False):
            assert {name: x.dtype for name, x in xi.items()} == dict.fromkeys(params, dtype)
            assert_close(flatten(xi), xi_dense, ops=1000)


@pytest.mark.parametrize("kind", ["layer norm", "batch norm", "attention"])
def test_closed_forms_are_the_recursion_on_real_networks(kind, generator):
    loss, params = modules(kind, generator)
    for a, b in zip(
        counter_terms(loss, 2)(params), recursive_counter_terms(loss, 2)(params), strict=True
    ):
        same(a, b, ops=3000)


@pytest.mark.slow
def test_every_order_is_the_recursion(generator):
    loss, params = network(generator)
    expected = recursive_counter_terms(loss, 3)(params)
    for order in (1, 3):
        for a, b in zip(counter_terms(loss, order)(params), expected, strict=False):
            same(a, b, ops=10000)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
def test_counter_terms_of_a_quadratic_are_the_logarithm(order, generator):
    """All orders: xi_a = H^(a+1) g / (a + 2)."""
    a = torch.randn(4, 4, generator=generator, dtype=F64) / 2
    q = torch.randn(4, generator=generator, dtype=F64)
    h = a + a.mT
    terms = counter_terms(lambda p: p["q"] @ a @ p["q"], order)({"q": q})
    for k, xi in enumerate(terms):
        expected = torch.linalg.matrix_power(h, k + 2) @ q / (k + 2)
        assert_close(xi["q"], expected, ops=10000)


def test_numbers_as_parameters_keep_their_precision():
    terms = counter_terms(lambda p: (0.5 * p["q"] * 2.0).square(), 4)({"q": torch.tensor(1.5)})
    assert [xi["q"].dtype for xi in terms] == [torch.float32] * 5


def test_counter_terms_can_be_differentiated_and_mapped(generator):
    loss, params = network(generator)
    v = {name: torch.randn(p.shape, generator=generator, dtype=F64) for name, p in params.items()}
    terms = counter_terms(loss, 2)
    _, slope = jvp(lambda p: terms(p)[2], (params,), (v,))
    step = 1e-5
    ahead, behind = (
        flatten(terms({name: p + s * v[name] for name, p in params.items()})[2])
        for s in (step, -step)
    )
    difference = (ahead - behind) / (2 * step)
    assert (flatten(slope) - difference).norm() < 1e-7 * difference.norm()
    many = {name: torch.stack([p, 0.5 * p]) for name, p in params.items()}
    mapped = vmap(lambda p: terms(p)[2])(many)
    for k, factor in enumerate((1.0, 0.5)):
        alone = terms({name: factor * p for name, p in params.items()})[2]
        same({name: x[k] for name, x in mapped.items()}, alone)


def test_memory_is_linear_in_the_parameters(generator):
    """A dense Hessian of 120000 parameters would take 58 GB."""
    x = torch.randn(3, 400, generator=generator)
    params = {"w": torch.randn(300, 400, generator=generator) / 20}

    def loss(p):
        return (x @ p["w"].mT).sin().sum()

    for term in counter_terms(loss, 2)(params):
        assert term["w"].shape == params["w"].shape
        assert bool(torch.isfinite(term["w"]).all())
    assert float(sharpness(loss, params, generator=generator)) > 0


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


def rates(loss, params, generator):
    return [c / float(sharpness(loss, params, generator=generator)) for c in FRACTIONS]


def global_errors(field_of, loss, params, lrs):
    """Distances of the flow and the iterates at one time, for every learning rate."""
    errors = []
    for lr, steps in zip(lrs, STEPS, strict=True):
        last = flatten(descend(loss, lr, params, steps)[-1])
        errors.append(float((flow(field_of(lr), params, lr * steps) - last).norm()))
    return errors


@pytest.mark.parametrize("order", [-1, 0, 1, 2])
def test_the_flow_passes_through_the_iterates(order, generator):
    loss, params = network(generator)
    lrs = rates(loss, params, generator)
    errors = global_errors(lambda lr: equation_of_motion(loss, lr, order), loss, params, lrs)
    assert_order(lrs, errors, order + 2, tol=0.1)


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


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_sharpness_is_the_largest_eigenvalue(dtype, generator):
    loss, params = network(generator, dtype)
    _, h, _ = dense(loss, params)
    value = sharpness(loss, params, generator=generator)
    assert value.dtype == dtype
    # The error is the square of the residual over the gap.
    bound = torch.finfo(dtype).eps ** (2 / 3)
    values = torch.linalg.eigvalsh(h)
    assert abs(value - values[-1]) <= 4 * bound * values[-1] ** 2 / (values[-1] - values[-2])


@pytest.mark.parametrize(
    "spectrum",
    [[2.5], [-3.0, -1.0], [0.0, 0.0], [1.0, 1.0, 1.0, -7.0], [4.0, 4.0 - 1e-12, 1.0, -9.0]],
    ids=str,
)
def test_sharpness_of_degenerate_spectra(spectrum, generator):
    h = torch.tensor(spectrum, dtype=F64)
    value = sharpness(
        lambda p: (h * p["q"] ** 2).sum() / 2, {"q": torch.ones_like(h)}, generator=generator
    )
    assert_close(value, h.max(), ops=1000, scale=float(h.abs().max()) or 1.0)


def test_sharpness_restarts_in_a_bounded_space(generator):
    h = torch.linspace(-1, 1, 3000, dtype=F64) ** 3
    value = sharpness(
        lambda p: (h * p["q"] ** 2).sum() / 2, {"q": torch.ones_like(h)}, generator=generator
    )
    assert abs(value - 1) < 1e-7
    with pytest.raises(RuntimeError, match="must be found to the relative residual"):
        sharpness(
            lambda p: (h * p["q"] ** 2).sum() / 2, {"q": torch.ones_like(h)},
            generator=generator, max_products=10,
        )  # fmt: skip


@pytest.mark.parametrize("order", [-1, 0, 1, 3, None])
def test_translation_rate(order, generator):
    """The general machinery on a loss that does not see the sum of its parameters."""
    lr, k = 0.3, 0.7
    w = torch.randn(3, generator=generator, dtype=F64)

    def loss(p):
        c = p["q"] - p["q"].mean()
        return (c * w).sin().sum() + k / 2 * p["q"].square().sum()

    q = {"q": torch.randn(3, generator=generator, dtype=F64)}
    rate = translation_rate(lr, k, order)
    charge = q["q"].sum()
    if order is None:
        after = Rule(lr).step(loss, q)[0]["q"].sum()
        assert_close(
            after, charge * math.exp(-rate * lr), ops=1000, scale=float(q["q"].abs().sum())
        )
    else:
        velocity = equation_of_motion(loss, lr, order, check=False)(q)["q"].sum()
        assert_close(velocity, -rate * charge, ops=3000, scale=float(q["q"].abs().sum()))


@pytest.mark.parametrize("order", [-1, 0])
def test_scale_velocity(order, generator):
    lr, k = 0.3, 0.7
    w, q = (torch.randn(5, generator=generator, dtype=F64) for _ in range(2))

    def loss(p):
        unit = p["q"] / p["q"].norm()
        return (unit * w).sin().sum()

    def decayed(p):
        return loss(p) + k / 2 * p["q"].square().sum()

    params = {"q": q}
    velocity = equation_of_motion(decayed, lr, order, check=False)(params)["q"]
    actual = scale_velocity(params, grad(loss)(params), lr, k, order)
    assert_close(actual, 2 * (q * velocity).sum(), ops=1000)
    with pytest.raises(ValueError, match="orthogonal"):
        scale_velocity(params, params, lr, k, order)


class TestDoors:
    def test_a_learning_rate_beyond_the_sharpness_is_refused(self, generator):
        loss, params = network(generator)
        top = float(sharpness(loss, params, generator=generator))
        equation_of_motion(loss, 0.9 / top, 0)(params)
        with pytest.raises(ValueError, match="no real flow does"):
            equation_of_motion(loss, 1.1 / top, 0)(params)
        equation_of_motion(loss, 1.1 / top, 0, check=False)(params)
        equation_of_motion(loss, 1.1 / top, -1)(params)

    def test_a_learning_rate_beyond_the_negative_curvature_is_refused(self):
        saddle = lambda p: (p["q"] ** 2 * torch.tensor([0.5, -2.0])).sum()  # noqa: E731
        with pytest.raises(ValueError, match="lr \\* lambda_min = -1.2"):
            equation_of_motion(saddle, 0.3, 1)({"q": torch.ones(2)})

    def test_iterates_that_do_not_settle_are_refused(self):
        sharp = lambda p: {"q": -0.5 * p["q"]}  # noqa: E731  (lr * lambda = 1.5)
        with pytest.raises(ValueError, match="must decrease"):
            equation_of_motion_from_iterates(sharp, 0.1, 2)({"q": torch.ones(2)})
        with pytest.raises(ValueError, match="must be finite"):
            equation_of_motion_from_iterates(lambda p: {"q": p["q"] / 0}, 0.1, 2)(
                {"q": torch.ones(2)}
            )

    def test_rest_is_no_reason_to_refuse(self):
        field = equation_of_motion_from_iterates(lambda p: {"q": p["q"] * 1.0}, 0.1, 4)
        assert torch.equal(field({"q": torch.ones(2)})["q"], torch.zeros(2))

    @pytest.mark.parametrize(
        ("loss", "error", "message"),
        [
            (None, TypeError, "loss must be a function of the parameters"),
            (lambda p: 1.0, TypeError, "loss must return a tensor, got float"),
            (lambda p: p["q"], ValueError, r"real scalar of shape \(\), got \(2,\)"),
            (lambda p: p["q"].detach().sum(), ValueError, "must depend on the parameters"),
        ],
    )
    def test_bad_losses(self, loss, error, message):
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

    def test_points_that_are_no_numbers_are_refused(self):
        q = {"q": torch.tensor([1.0, math.nan])}
        with pytest.raises(ValueError, match="counter terms must be finite"):
            max_learning_rate(lambda p: p["q"].square().sum(), q, 0.1, 0)
        with pytest.raises(ValueError, match="params must be finite"):
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
            (lambda f, q: counter_terms(f, -1), ValueError, "order must be at least 0"),
            (lambda f, q: counter_terms(f, True), TypeError, "order must be an integer"),
            (lambda f, q: equation_of_motion_from_iterates(f, 0.1, 0), ValueError, "at least 1"),
            (lambda f, q: equation_of_motion_from_iterates(1, 0.1, 1), TypeError, "step must be"),
            (
                lambda f, q: equation_of_motion_from_iterates(lambda p: {"r": p["q"]}, 0.1, 1)(q),
                ValueError,
                "what step returns must have the names",
            ),
            (lambda f, q: motion_of_iterates([q], 0.1), ValueError, "at least 2"),
            (lambda f, q: max_learning_rate(f, q, -1.0, 0), ValueError, "eps must be positive"),
            (lambda f, q: discretization_error(f, 0.1, -2), ValueError, "at least -1"),
            (lambda f, q: accumulated_error(f, 0.1, -2, []), ValueError, "at least -1"),
            (lambda f, q: translation_rate(1.0, 1.0), ValueError, "must be below 1"),
            (lambda f, q: translation_rate(1.0, -1.0), ValueError, "must be non-negative"),
            (lambda f, q: scale_velocity(q, q, 0.1, 0.1, 1), ValueError, "must be -1 or 0"),
            (lambda f, q: momentum_step(f, 0.1), TypeError, "rule must be a Rule"),
            (lambda f, q: momentum_step(f, Rule(0.1, momentum=0.5))(q), ValueError, "velocity"),
            (lambda f, q: with_velocity(q, {"r": q["q"]}), ValueError, "names and shapes"),
            (lambda f, q: sharpness(f, q, rtol=-1.0), ValueError, "rtol must be positive"),
            (
                lambda f, q: sharpness(lambda p: (p["q"] ** 2 * math.nan).sum(), q),
                ValueError,
                "must be finite",
            ),
        ],
    )  # fmt: skip
    def test_what_is_refused(self, call, error, message):
        with pytest.raises(error, match=message):
            call(lambda p: p["q"].square().sum(), {"q": torch.ones(2)})
