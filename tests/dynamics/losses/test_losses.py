from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dln_geometry.dynamics import losses
from dln_geometry.dynamics.losses import completion, dense, pattern
from dln_geometry.geometry.metric import free_energy
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.testing import assert_close

M, N = 7, 5
DTYPES = [torch.float32, torch.float64]
BATCHES = [(), (3,), (2, 3)]
KINDS = ["quadratic", "completion", "sensing", "few_data", "many_data", "callable"]


def _randn(generator, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def _case(kind, generator, dtype=torch.float64, batch=()):
    """Return a loss and the plain formula of one matrix and the data's own batch index."""
    rand = lambda *shape: _randn(generator, *shape, dtype=dtype)  # noqa: E731
    if kind == "quadratic":
        y = rand(*batch, M, N)
        return losses.Quadratic(
            y
        ), lambda x, b: sum((x[i, j] - y[b][i, j]) ** 2 for i in range(M) for j in range(N)) / 2
    if kind == "completion":
        places = torch.randperm(M * N, generator=generator)[:13].tolist()
        rows, cols = [p // N for p in places], [p % N for p in places]
        v = rand(*batch, 13)
        return (
            losses.Completion(rows, cols, v, (M, N)),
            lambda x, b: (
                sum(
                    (x[i, j] - v[b][e]) ** 2
                    for e, (i, j) in enumerate(zip(rows, cols, strict=True))
                )
                / 2
            ),
        )
    if kind == "sensing":
        a, v = rand(6, M, N), rand(*batch, 6)
        return losses.Sensing(
            a, v
        ), lambda x, b: sum((torch.trace(a[k].T @ x) - v[b][k]) ** 2 for k in range(6)) / 2
    if kind == "callable":
        return losses.from_callable(
            lambda x: (x.sin() @ x.T).square().sum()
        ), lambda x, b: (x.sin() @ x.T).square().sum()
    k = 3 if kind == "few_data" else 20
    z, y = rand(*batch, k, N), rand(*batch, k, M)
    return losses.Regression(
        z, y
    ), lambda x, b: sum((x @ z[b][i] - y[b][i]).square().sum() for i in range(k)) / 2


def _plain(formula, x):
    """Return values and gradients of the plain formula, one matrix after the other."""
    values, gradients = x.new_empty(x.shape[:-2]), torch.empty_like(x)
    for b in np.ndindex(*x.shape[:-2]):
        leaf = x[b].detach().clone().requires_grad_()
        value = formula(leaf, b)
        values[b] = value.detach()
        (gradients[b],) = torch.autograd.grad(value, leaf)
    return values, gradients


def _thin(generator, rank, dtype=torch.float64, batch=()):
    """Return two thin matrices that are no balanced pair."""
    draw = {"left": (M, rank), "right": (N, rank)}
    return SimpleNamespace(
        **{name: _randn(generator, *batch, *s, dtype=dtype) for name, s in draw.items()}
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_the_plain_formula(kind, batch, dtype, generator):
    loss, formula = _case(kind, generator, dtype, batch)
    x = _randn(generator, *batch, M, N, dtype=dtype)
    values, gradients = _plain(formula, x)
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
    loss, formula = _case(kind, generator, dtype, batch)
    for rank in (1, 3, 17):
        x = _thin(generator, rank, dtype, batch)
        values, gradients = _plain(formula, x.left @ x.right.mT)
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
    loss, _ = _case(kind, generator)
    x = Collapsed.random(
        (M, N), 3, depth, spectrum=[2.0, 1.0, 0.3], generator=generator, dtype=torch.float64
    )
    p = x.point()
    assert isinstance(p, EndToEnd)
    for view in (x, p, x.matrix.numpy()):
        assert_close(loss.value(view), loss.value(x.matrix))
        assert_close(loss.gradient(view), _dense(loss.gradient(x.matrix)))
    left = x.L @ x.M
    value, gr, gl = losses.contract(loss, left, x.R)
    g = _dense(loss.gradient(x.matrix))
    assert_close(value, loss.value(x.matrix))
    assert_close(gr, g @ x.R)
    assert_close(gl, g.mT @ left)


def _dense(g):
    return g if g.layout == torch.strided else g.to_dense()


@pytest.mark.parametrize("kind", ["quadratic", "completion", "sensing", "many_data"])
def test_data_and_points_broadcast(kind, generator):
    loss, _ = _case(kind, generator, batch=(3,))
    single, _ = _case(kind, generator)
    point = _thin(generator, 2)
    points = _thin(generator, 2, batch=(3,))
    wide = _thin(generator, 2, batch=(4, 1))
    for one, x, batch in ((loss, point, (3,)), (single, points, (3,)), (loss, wide, (4, 3))):
        matrix = x.left @ x.right.mT
        g = _dense(one.gradient(matrix))
        value, gr, gl = losses.contract(one, x.left, x.right)
        assert value.shape == batch
        assert g.shape == (*batch, M, N)
        assert_close(value, one.value(matrix))
        assert_close(gr, g @ x.right)
        assert_close(gl, g.mT @ x.left)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_contractions_can_be_differentiated(kind, generator):
    loss, _ = _case(kind, generator)
    x = _randn(generator, M, N).requires_grad_()
    assert torch.autograd.gradcheck(loss.value, x)
    left = _randn(generator, M, 2).requires_grad_()
    right = _randn(generator, N, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss.value(Collapsed(a, b, 2)), (left, right))
    assert torch.autograd.gradcheck(lambda a, b: losses.contract(loss, a, b), (left, right))


@pytest.mark.parametrize("kind", ["quadratic", "completion", "sensing", "few_data", "many_data"])
def test_values_near_zero_are_accurate(kind, generator):
    # The second difference of a sum of squares knows no cancellation: E(Y + h Z) = h^2 E_0(Z).
    x, z = _randn(generator, M, 3) @ _randn(generator, 3, N), _randn(generator, M, N)
    rows, cols = torch.arange(35) // N, torch.arange(35) % N
    a, few, many = (_randn(generator, 6, M, N), _randn(generator, 3, N), _randn(generator, 40, N))
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


def test_streamed_quadratic_is_the_quadratic(generator, monkeypatch):
    loss, _ = _case("quadratic", generator)
    x = _thin(generator, 3)
    whole = loss.contract(x.left, x.right)
    monkeypatch.setattr(dense, "_LARGE", 0)
    for rows in (1, 2, 3, 7, 50):
        monkeypatch.setattr(dense, "_BLOCK", rows * N * 8)
        for got, expected in zip(loss.contract(x.left, x.right), whole, strict=True):
            assert_close(got, expected)


def test_sparse_gradient_is_the_masked_gradient(generator):
    loss, _ = _case("completion", generator)
    x, batch = _randn(generator, M, N), _randn(generator, 2, 4, M, N)
    target = torch.zeros(M, N, dtype=torch.float64)
    target[loss.rows, loss.cols] = loss.values
    one, many = loss.gradient(x), loss.gradient(batch)
    assert one.layout == torch.sparse_csr
    assert many.layout == torch.sparse_coo
    assert many.sparse_dim() == 4
    assert_close(one, (x - target) * loss.mask)
    assert_close(many, (batch - target) * loss.mask)
    assert one.values().numel() == loss.values.numel() == 13
    # What claims to be ordered and without repetitions is.
    again = torch.sparse_coo_tensor(
        many.indices(), many.values(), many.shape, check_invariants=True
    ).coalesce()
    assert torch.equal(again.indices(), many.indices())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_completion_without_compressed_kernels(batch, dtype, generator, monkeypatch):
    loss, _ = _case("completion", generator, dtype, batch)
    x = _thin(generator, 3, dtype, batch)
    expected = (*loss.contract(x.left, x.right), loss.gradient(x.left @ x.right.mT).to_dense())
    absent = lambda *_: False  # noqa: E731
    monkeypatch.setattr(pattern, "has_compressed_kernels", absent)
    monkeypatch.setattr(completion, "has_compressed_kernels", absent)
    got = (*loss.contract(x.left, x.right), loss.gradient(x.left @ x.right.mT).to_dense())
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b)


def test_kernels_that_do_not_exist_are_not_used():
    assert not pattern.has_compressed_kernels(torch.float16, "cpu")


def test_entries_are_gathered_in_pieces(generator):
    rows, cols = torch.arange(900).unsqueeze(-1), torch.arange(2)
    places = pattern.Pattern(rows.expand(-1, 2).flatten(), cols.repeat(900), (900, 2))
    left, right = _randn(generator, 900, 200), _randn(generator, 2, 200)
    got = places.entries(left, right)
    assert_close(got, (left @ right.mT).flatten(), scale=200)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_completion_never_forms_the_matrix(batch, generator):
    # A dense matrix of this shape has 80 GB.
    size, k = 100_000, 1000
    rows = torch.randint(size, (k,), generator=generator)
    cols = torch.randperm(size, generator=generator)[:k]
    loss = losses.Completion(rows, cols, _randn(generator, k), (size, size))
    x = SimpleNamespace(
        left=_randn(generator, *batch, size, 3),
        right=_randn(generator, *batch, size, 3),
    )
    value, gr, gl = losses.contract(loss, x.left, x.right)
    left = x.left[..., loss.rows, :]
    residual = (left * x.right[..., loss.cols, :]).sum(-1) - loss.values
    assert_close(value, residual.square().sum(-1) / 2)
    expected = torch.zeros_like(gr).index_add_(
        -2, loss.rows, residual.unsqueeze(-1) * x.right[..., loss.cols, :]
    )
    assert_close(gr, expected)
    expected = torch.zeros_like(gl).index_add_(
        -2, loss.cols, residual.unsqueeze(-1) * x.left[..., loss.rows, :]
    )
    assert_close(gl, expected)
    point = Collapsed(x.left, x.right, 2)
    assert loss.value(point).shape == batch
    assert loss.gradient(point).values().numel() == k * math.prod(batch)


def test_patterns_of_many_batches_are_not_all_kept(generator):
    loss, _ = _case("completion", generator)
    for count in [*range(1, 9), 1, 2]:
        x = _thin(generator, 2, batch=(count,))
        matrix = x.left @ x.right.mT
        assert_close(losses.contract(loss, x.left, x.right)[0], loss.value(matrix))
    assert len(loss._kept) <= completion._KEPT


def test_completion_sorts_its_entries():
    loss = losses.Completion([2, 0, 2], np.array([1, 1, 0]), [5, 6, 7], (3, 2))
    assert loss.rows.tolist() == [0, 2, 2]
    assert loss.cols.tolist() == [1, 0, 1]
    assert loss.values.tolist() == [6.0, 7.0, 5.0]
    assert loss.values.dtype == torch.get_default_dtype()
    assert loss.mask.tolist() == [[False, True], [False, False], [True, True]]


def test_completion_from_a_matrix_with_holes(rng):
    x = rng.standard_normal((M, N))
    holes = rng.random((M, N)) < 0.4
    loss = losses.Completion.from_matrix(np.where(holes, np.nan, x))
    assert loss.dtype == torch.float64
    assert loss.shape == (M, N)
    assert np.array_equal(loss.mask.numpy(), ~holes)
    y = rng.standard_normal((M, N))
    assert_close(loss.value(y), ((x - y)[~holes] ** 2).sum() / 2)


class Quartic:
    """A user's own loss."""

    shape = (M, N)

    def __init__(self, target):
        self.target = target

    def value(self, x):
        return (losses.as_dense(x) - self.target).pow(4).sum((-2, -1)) / 4

    def gradient(self, x):
        return (losses.as_dense(x) - self.target).pow(3)


class SparseQuartic(Quartic):
    def __init__(self, target, layout):
        super().__init__(target)
        self.layout = layout

    def gradient(self, x):
        return super().gradient(x).to_sparse(layout=self.layout)


@pytest.mark.parametrize("layout", [None, torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("batch", BATCHES)
def test_users_own_loss(batch, layout, generator):
    y = _randn(generator, M, N)
    loss = Quartic(y) if layout is None else SparseQuartic(y, layout)
    assert isinstance(loss, losses.Loss)
    assert losses.prepared(loss, (M, N), dtype=torch.float64) is loss
    x = _thin(generator, 3, batch=batch)
    matrix = x.left @ x.right.mT
    values, gradients = _plain(lambda z, _: (z - y).pow(4).sum() / 4, matrix)
    value, gr, gl = losses.contract(loss, x.left, x.right)
    assert_close(value, values)
    assert_close(gr, gradients @ x.right)
    assert_close(gl, gradients.mT @ x.left)
    value, gradient = losses.evaluate(loss, matrix)
    assert gradient.layout == torch.strided
    assert_close(value, values)
    assert_close(gradient, gradients)
    point = Collapsed(x.left, x.right, 2)
    assert_close(free_energy(point, loss, math.inf), loss.value(x.left @ x.right.mT))


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
    loss, _ = _case(kind, generator)
    x = _randn(generator, M, N)
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


def test_functions_are_differentiated_under_no_grad(generator):
    loss = losses.from_callable(lambda x: x.pow(3).sum())
    x = _randn(generator, 2, M, N)
    with torch.no_grad():
        assert_close(loss.gradient(x), 3 * x.square())
        assert_close(loss.gradient(x[0]), 3 * x[0].square())


def test_nothing_warns_in_a_fresh_process():
    code = """
import torch
from dln_geometry.dynamics import losses
loss = losses.Completion([0, 1], [0, 1], [1.0, 3.0], (2, 2))
one = torch.ones(2, 1)
losses.contract(loss, one, one)
loss.gradient(torch.eye(2)).to_dense()
"""
    # torch's own deprecations on import are not ours to hold.
    args = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "beta" not in done.stderr


NAN, INF = math.nan, math.inf
SQUARE = [[1.0, 2.0], [3.0, 4.0]]


def _completion(rows=(0, 1), cols=(0, 1), values=(1.0, 2.0), shape=(2, 2)):
    return losses.Completion(rows, cols, values, shape)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: losses.Quadratic("abc"), TypeError, "target must be a real array"),
        (lambda: losses.Quadratic(None), TypeError, "target must be a real array"),
        (lambda: losses.Quadratic([1.0, 2.0]), ValueError, r"target .*got \(2,\)"),
        (lambda: losses.Quadratic([[]]), ValueError, "target must not be empty"),
        (lambda: losses.Quadratic([[1.0, NAN]]), ValueError, "target must be finite"),
        (lambda: losses.Quadratic([[1j, 0]]), TypeError, "target must be real"),
        (lambda: _completion(rows=[0, 2]), ValueError, "rows .* 0 and 1, got 2 at position 1"),
        (lambda: _completion(cols=[-1, 1]), ValueError, "cols .* got -1 at position 0"),
        (lambda: _completion(rows=[0, 0], cols=[1, 1]), ValueError, r"\(0, 1\) repeatedly"),
        (lambda: _completion(rows=[0]), ValueError, r"got \(1,\), \(2,\) and \(2,\)"),
        (lambda: _completion(values=[1.0]), ValueError, r"\(2,\), \(2,\) and \(1,\)"),
        (lambda: _completion(values=1.0), ValueError, r"values must have shapes"),
        (lambda: _completion(values=[1.0, NAN]), ValueError, "values must be finite"),
        (lambda: _completion(values=[1.0, INF]), ValueError, "values must be finite"),
        (lambda: _completion(values="ab"), TypeError, "values must be a real array"),
        (lambda: _completion(rows=[0.0, 1.0]), TypeError, "rows must be integers, got torch.fl"),
        (lambda: _completion(rows=[True, False]), TypeError, "rows must be integers"),
        (lambda: _completion(rows="01"), TypeError, "rows must be an array of integers"),
        (lambda: _completion(cols=[[0], [1]]), ValueError, r"cols must have shape \(k,\)"),
        (lambda: _completion(cols=["a", "b"]), TypeError, "cols must be an array of integers"),
        (lambda: _completion([], [], []), ValueError, "rows must hold at least one place"),
        (lambda: _completion(values=torch.ones(0, 2)), ValueError, "at least one entry"),
        (lambda: _completion(shape=(2,)), TypeError, "shape must be two integers"),
        (lambda: _completion(shape=(2.0, 2)), TypeError, "shape must be two integers"),
        (lambda: _completion(shape=(2, 0)), ValueError, r"shape must be positive, got \(2, 0\)"),
        (lambda: _completion(shape="ab"), TypeError, "shape must be two integers"),
        (lambda: losses.Completion.from_matrix([[NAN, NAN]]), ValueError, "a known entry"),
        (lambda: losses.Completion.from_matrix([1.0]), ValueError, r"shape \(m, n\), got \(1,\)"),
        (lambda: losses.Completion.from_matrix([[INF, 1.0]]), ValueError, "must be finite"),
        (lambda: losses.Completion.from_matrix("x"), TypeError, "x must be a real array"),
        (lambda: losses.Completion.from_matrix([[1j]]), TypeError, "x must be a real array"),
        (lambda: losses.Sensing(SQUARE, [1.0, 2.0]), ValueError, r"\(k, m, n\), got \(2, 2\)"),
        (lambda: losses.Sensing([SQUARE], [1.0, 2.0]), ValueError, r"values .*got \(2,\)"),
        (lambda: losses.Sensing([SQUARE], 1.0), ValueError, r"values .*got \(\)"),
        (lambda: losses.Sensing(torch.ones(0, 2, 2), []), ValueError, "operators must"),
        (lambda: losses.Sensing([SQUARE], [NAN]), ValueError, "values must be finite"),
        (lambda: losses.Regression(SQUARE, [[1.0]]), ValueError, "as inputs, 2, got 1"),
        (lambda: losses.Regression([1.0], [[1.0]]), ValueError, "inputs must have shape"),
        (lambda: losses.Regression(SQUARE, [[NAN], [1.0]]), ValueError, "outputs must be fin"),
        (lambda: losses.from_callable(3), TypeError, "f must be a function .*got int"),
        (lambda: losses.prepared(torch.sum, (2, 2)), TypeError, "losses.from_callable"),
        (lambda: losses.prepared(Quartic, (2, 2)), TypeError, "got Quartic"),
        (lambda: losses.prepared(Quartic(0), (2, 2)), ValueError, "2 x 2 .* got one of 7 x 5"),
    ],
)
def test_bad_data_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(3, 2), ValueError, r"x must have shape \(..., 2, 2\), got \(3, 2\)"),
        (torch.ones(2), ValueError, r"x must have shape \(..., 2, 2\), got \(2,\)"),
        (torch.ones(2, 2, dtype=torch.complex64), TypeError, "x must be real"),
        ("ab", TypeError, "x must be a real array"),
        (Collapsed(torch.ones(3, 1), torch.ones(2, 1), 2), ValueError, r"got \(3, 2\)"),
        (EndToEnd.of(torch.ones(2, 3), 2), ValueError, r"got \(2, 3\)"),
    ],
)
@pytest.mark.parametrize("method", ["value", "gradient"])
def test_matrices_that_do_not_fit_are_refused(x, error, message, method):
    data = [
        losses.Quadratic(SQUARE),
        _completion(),
        losses.Sensing([SQUARE], [1.0]),
        losses.Regression(SQUARE, SQUARE),
    ]
    for loss in data:
        with pytest.raises(error, match=message):
            getattr(loss, method)(x)


@pytest.mark.parametrize("method", ["value", "gradient"])
def test_functions_that_return_no_scalar_are_refused(method):
    for x in (torch.eye(2), torch.ones(3, 2, 2)):
        for f, error, message in (
            (lambda x: x.sum(0), ValueError, r"return a scalar .* got shape \(2,\)"),
            (lambda x: 1.0, TypeError, "return a tensor, got float"),
            (lambda x: (x > 0).sum(), TypeError, "real floating tensor, got torch.int64"),
        ):
            with pytest.raises(error, match=message):
                getattr(losses.from_callable(f), method)(x)
