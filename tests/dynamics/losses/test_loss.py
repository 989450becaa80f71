"""What holds of every loss: values, gradients, contractions, and what a flow asks of it."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.testing import assert_close
from tests.dynamics.losses.routes import (
    BATCHES,
    DTYPES,
    KINDS,
    SQUARE,
    M,
    N,
    Quartic,
    as_strided,
    case,
    plain,
    randn,
    thin,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_the_plain_formula(kind, batch, dtype, generator):
    loss, formula = case(kind, generator, dtype, batch)
    x = randn(generator, *batch, M, N, dtype=dtype)
    values, gradients = plain(formula, x)
    assert_close(loss.value(x), values)
    assert_close(loss.gradient(x), gradients)
    value, gradient = losses.evaluate(loss, x)
    assert gradient.layout == torch.strided
    assert value.dtype == gradient.dtype == dtype
    assert_close(value, values)
    assert_close(gradient, gradients)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_contraction_is_that_of_the_dense_gradient(kind, batch, dtype, generator):
    loss, formula = case(kind, generator, dtype, batch)
    for rank in (1, 3, 17):
        x = thin(generator, rank, dtype, batch)
        values, gradients = plain(formula, x.left @ x.right.mT)
        value, gr, gl = losses.contract(loss, x.left, x.right)
        assert value.dtype == gr.dtype == gl.dtype == dtype
        # The gradient, and more so the quartic function, round at the size of their summands.
        size = (x.left.abs() @ x.right.abs().mT).amax() if kind == "callable" else 1.0
        ops = 1000
        assert_close(value, values, ops=ops, condition=float(size))
        scale = float(gradients.abs().max()) * rank
        assert_close(gr, gradients @ x.right, ops=ops, scale=scale * float(x.right.abs().max()))
        assert_close(gl, gradients.mT @ x.left, ops=ops, scale=scale * float(x.left.abs().max()))


@pytest.mark.parametrize("depth", [1, 2, 3.5, 8, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_points_in_every_view_agree(kind, depth, generator):
    loss, _ = case(kind, generator)
    x = dln.Collapsed.random(
        (M, N), 3, depth, spectrum=[2.0, 1.0, 0.3], generator=generator, dtype=torch.float64
    )
    p = x.point()
    assert isinstance(p, dln.EndToEnd)
    for view in (x, p, x.matrix.numpy()):
        assert_close(loss.value(view), loss.value(x.matrix))
        assert_close(loss.gradient(view), as_strided(loss.gradient(x.matrix)))
    left = x.L @ x.M
    value, gr, gl = losses.contract(loss, left, x.R)
    g = as_strided(loss.gradient(x.matrix))
    assert_close(value, loss.value(x.matrix))
    assert_close(gr, g @ x.R)
    assert_close(gl, g.mT @ left)


@pytest.mark.parametrize("kind", ["quadratic", "completion", "sensing", "many_data"])
def test_data_and_points_broadcast(kind, generator):
    loss, _ = case(kind, generator, batch=(3,))
    single, _ = case(kind, generator)
    point = thin(generator, 2)
    points = thin(generator, 2, batch=(3,))
    wide = thin(generator, 2, batch=(4, 1))
    for one, x, batch in ((loss, point, (3,)), (single, points, (3,)), (loss, wide, (4, 3))):
        matrix = x.left @ x.right.mT
        g = as_strided(one.gradient(matrix))
        value, gr, gl = losses.contract(one, x.left, x.right)
        assert value.shape == batch
        assert g.shape == (*batch, M, N)
        assert_close(value, one.value(matrix))
        assert_close(gr, g @ x.right)
        assert_close(gl, g.mT @ x.left)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_contractions_can_be_differentiated(kind, generator):
    loss, _ = case(kind, generator)
    x = randn(generator, M, N).requires_grad_()
    assert torch.autograd.gradcheck(loss.value, x)
    left = randn(generator, M, 2).requires_grad_()
    right = randn(generator, N, 2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: loss.value(dln.Collapsed(a, b, 2, check=False)), (left, right)
    )
    assert torch.autograd.gradcheck(lambda a, b: losses.contract(loss, a, b), (left, right))


@pytest.mark.parametrize("kind", ["quadratic", "completion", "sensing", "few_data", "many_data"])
def test_values_near_zero_are_accurate(kind, generator):
    # The second difference of a sum of squares knows no cancellation: E(Y + h Z) = h^2 E_0(Z).
    x, z = randn(generator, M, 3) @ randn(generator, 3, N), randn(generator, M, N)
    rows, cols = torch.arange(35) // N, torch.arange(35) % N
    a, few, many = (randn(generator, 6, M, N), randn(generator, 3, N), randn(generator, 40, N))
    made = {
        "quadratic": losses.Quadratic,
        "completion": lambda y: losses.Completion(rows, cols, y.flatten(), (M, N)),
        "sensing": lambda y: losses.Sensing(a, torch.einsum("kij,ij->k", a, y)),
        "few_data": lambda y: losses.Regression(few, few @ y.T),
        "many_data": lambda y: losses.Regression(many, many @ y.T),
    }[kind]
    h = 2.0**-26
    unit = made(torch.zeros_like(x)).value(z)
    # The residual, of size h, carries roundings of X, of size 1.
    assert_close(made(x).value(x + h * z) / h**2, unit, condition=1 / h)
    eps = torch.finfo(torch.float64).eps
    assert made(x).value(x) <= (100 * eps) ** 2 * made(torch.zeros_like(x)).value(x)


class SparseQuartic(Quartic):
    def __init__(self, target, layout):
        super().__init__(target)
        self.layout = layout

    def gradient(self, x):
        return super().gradient(x).to_sparse(layout=self.layout)


@pytest.mark.parametrize("layout", [None, torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("batch", BATCHES)
def test_users_own_loss(batch, layout, generator):
    y = randn(generator, M, N)
    loss = Quartic(y) if layout is None else SparseQuartic(y, layout)
    assert isinstance(loss, losses.Loss)
    assert losses.prepared(loss, (M, N), dtype=torch.float64) is loss
    x = thin(generator, 3, batch=batch)
    matrix = x.left @ x.right.mT
    values, gradients = plain(lambda z, _: (z - y).pow(4).sum() / 4, matrix)
    value, gr, gl = losses.contract(loss, x.left, x.right)
    assert_close(value, values)
    assert_close(gr, gradients @ x.right)
    assert_close(gl, gradients.mT @ x.left)
    value, gradient = losses.evaluate(loss, matrix)
    assert gradient.layout == torch.strided
    assert_close(value, values)
    assert_close(gradient, gradients)
    point = dln.Collapsed(x.left, x.right, 2, check=False)
    assert_close(dln.free_energy(point, loss, math.inf), loss.value(x.left @ x.right.mT))


def test_own_contraction_is_used():
    class Own(Quartic):
        def contract(self, left, right):
            return "contracted", left, right

        def evaluate(self, x):
            return "evaluated", x

    assert losses.contract(Own(0), 1, 2) == ("contracted", 1, 2)
    assert losses.evaluate(Own(0), 1) == ("evaluated", 1)


@pytest.mark.parametrize("kind", ["quadratic", "completion", "sensing", "few_data", "many_data"])
def test_the_point_rules_the_dtype(kind, generator):
    loss, _ = case(kind, generator)
    x = randn(generator, M, N)
    single = losses.prepared(loss, (M, N), dtype=torch.float32)
    assert single.dtype == torch.float32
    assert loss.to(dtype=torch.float32, device="cpu") is single
    assert loss.to() is loss
    for value in (loss.value(x.float()), single.value(x.float())):
        assert value.dtype == torch.float32
        assert_close(value, loss.value(x))
    assert loss.value(x.half()).dtype == torch.float32
    # A nested list has no dtype of its own: the loss's.
    assert loss.value(x.tolist()).dtype == torch.float64
    assert_close(loss.value(x.tolist()), loss.value(x))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(3, 2), ValueError, r"x must have shape \(..., 2, 2\), got \(3, 2\)"),
        (torch.ones(2), ValueError, r"x must have shape \(..., 2, 2\), got \(2,\)"),
        ("ab", TypeError, "x must be a real array"),
        (
            dln.Collapsed(torch.ones(3, 1), torch.ones(2, 1), 2, check=False),
            ValueError,
            r"got \(3, 2\)",
        ),
        (dln.EndToEnd.of(torch.ones(2, 3), 2), ValueError, r"got \(2, 3\)"),
    ],
)
@pytest.mark.parametrize("method", ["value", "gradient"])
def test_matrices_that_do_not_fit_are_refused(x, error, message, method):
    data = [
        losses.Quadratic(SQUARE),
        losses.Completion([0, 1], [0, 1], [1.0, 2.0], (2, 2)),
        losses.Sensing([SQUARE], [1.0]),
        losses.Regression(SQUARE, SQUARE),
    ]
    for loss in data:
        with pytest.raises(error, match=message):
            getattr(loss, method)(x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: losses.prepared(torch.sum, (2, 2)), TypeError, "losses.from_callable"),
        (lambda: losses.prepared(Quartic, (2, 2)), TypeError, "got Quartic"),
        (lambda: losses.prepared(Quartic(0), (2, 2)), ValueError, "2 x 2 .* got one of 7 x 5"),
    ],
)
def test_what_is_no_loss_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_losses_print_as_one_line():
    x = torch.ones(10, 8)
    for loss, text in (
        (losses.Quadratic(x), "Quadratic(10 x 8)"),
        (losses.Quadratic(x.expand(2, 3, 10, 8)), "Quadratic(10 x 8, batch (2, 3))"),
        (losses.Completion([0, 3], [1, 1], [1, 2], (10, 8)), "Completion(10 x 8, 2 entries)"),
        (
            losses.Completion([0], [1], [[1]] * 4, (10, 8)),
            "Completion(10 x 8, 1 entry, batch (4,))",
        ),
        (losses.Sensing(torch.ones(5, 10, 8), torch.ones(5)), "Sensing(10 x 8, 5 measurements)"),
        (losses.Regression(torch.ones(9, 8), torch.ones(9, 10)), "Regression(10 x 8, 9 pairs)"),
        (losses.from_callable(torch.trace), "CallableLoss(trace)"),
    ):
        assert repr(loss) == text
