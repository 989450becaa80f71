from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.points import haar_stiefel
from dln_geometry.testing import assert_close

# Shape, rank, singular values: distinct, equal, paired, and small ones that the rank drops.
POINTS = [
    ((3, 3), 3, (1.9, 0.8, 0.3)),
    ((3, 3), 3, (1.2, 1.2, 1.2)),
    ((3, 3), 3, (1.2, 0.5, 0.5)),
    ((4, 2), 2, (0.9, 0.9)),
    ((3, 4), 2, (1.1, 1.1, 0.2)),
    ((4, 4), 2, (1.1, 0.7, 0.0)),
]
points = pytest.mark.parametrize(("shape", "rank", "spectrum"), POINTS, ids=str)


def draw(shape, spectrum, generator, dtype=torch.float64):
    kind = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    u, v = (haar_stiefel((), d, len(spectrum), **kind) for d in shape)
    return ((u * torch.tensor(spectrum, dtype=torch.float64)) @ v.mT).to(dtype)


def vectors(x, rank, generator, count):
    """Tangent vectors as functions of X, and plain matrices."""
    moves = torch.randn(count, 2, *x.shape, generator=generator, dtype=torch.float64)
    return [lambda p, a=a, b=b: _tangent(p, a, b) for a, b in moves]


def _tangent(p, a, b):
    x = p.matrix
    # Tangent to the matrices of the rank of X: a chosen curve e^{ta} X e^{tb}.
    return (a @ a.mT) @ x + x @ (b.mT @ b)


def _gram(w):
    return w.mT @ w


FUNCTIONS = {
    "matrix": lambda p, z, w, g: p.matrix**2,
    "cometric": lambda p, z, w, g: dln.cometric(p, g),
    "cometric_sqrt": lambda p, z, w, g: dln.cometric_sqrt(p, g),
    "metric": lambda p, z, w, g: dln.metric(p, z(p)),
    "inner": lambda p, z, w, g: dln.inner(p, z(p), w(p)),
    "log_volume_density": lambda p, z, w, g: dln.log_volume_density(p),
    "entropy": lambda p, z, w, g: dln.entropy(p),
    "Collapsed": lambda p, z, w, g: dln.Collapsed.of(p).matrix,
}
INTEGER = {
    "first layer": lambda p, z, w, g: _gram(dln.balanced_factors(p, widths=4)[0]),
    "last layer": lambda p, z, w, g: _gram(dln.Collapsed.of(p).factors(4)[-1].mT),
    "product": lambda p, z, w, g: dln.end_to_end(dln.balanced_factors(p, widths=4)),
    "norm": lambda p, z, w, g: sum(a.norm() ** 3 for a in dln.balanced_factors(p, widths=4)),
    "inside": lambda p, z, w, g: dln.cometric(dln.Collapsed.of(p), g),
}
ONCE = {
    "entropy_gradient": lambda p, z, w, g: dln.entropy_gradient(p),
    "connection": lambda p, z, w, g: dln.connection(p, z(p), w(p)),
    "riemannian_hessian": lambda p, z, w, g: dln.riemannian_hessian(p, g, w(p), z(p)),
}


def slope_of(f, x, y):
    """Return the derivative of f along y, by differences of order 4."""
    h = 1e-4
    one, two = ((f(x + k * h * y) - f(x - k * h * y)) / (2 * k * h) for k in (1, 2))
    return (4.0 * one - two) / 3.0


def check(function, shape, rank, spectrum, depth, generator, second=True):
    """Compare first and second derivatives with differences, along random directions."""
    x = draw(shape, spectrum, generator)
    z, w = vectors(x, rank, generator, 2)
    g, y = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    c = torch.randn(4, 4, generator=generator, dtype=torch.float64)

    def at(x):
        value = function(dln.EndToEnd.of(x, depth, rank=rank), z, w, g)
        return (value * c[: value.shape[0], : value.shape[1]] if value.ndim else value).sum()

    def gradient(x, graph=False):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(at(x), x, create_graph=graph)[0], x

    found = gradient(x)[0]
    y = y * min(s for s in spectrum if s > 0)
    scale = float(found.norm() * y.norm())
    assert float(abs((found * y).sum() - slope_of(lambda x: at(x).detach(), x, y))) < 1e-8 * scale
    if second:
        slope, leaf = gradient(x, True)
        (found,) = torch.autograd.grad((slope * y).sum(), leaf)
        expected = slope_of(lambda x: gradient(x)[0], x, y)
        assert float((found - expected).norm()) < 1e-6 * float(expected.norm() + scale)


@points
@pytest.mark.parametrize("depth", [1.5, 3, math.inf])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_twice_differentiable_in_the_matrix(name, shape, rank, spectrum, depth, generator):
    if math.isinf(depth) and rank < max(shape) and name in ("metric", "inner"):
        pytest.skip("most tangent vectors have infinite length")
    check(FUNCTIONS[name], shape, rank, spectrum, depth, generator)


@points
@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("name", INTEGER)
def test_invariants_of_balanced_factors(name, shape, rank, spectrum, depth, generator):
    check(INTEGER[name], shape, rank, spectrum, depth, generator)


@points
@pytest.mark.parametrize("depth", [1.5, 3, math.inf])
@pytest.mark.parametrize("name", ONCE)
def test_once_differentiable_in_the_matrix(name, shape, rank, spectrum, depth, generator):
    if math.isinf(depth) and rank < max(shape) and name != "entropy_gradient":
        pytest.skip("most tangent vectors have infinite length")
    check(ONCE[name], shape, rank, spectrum, depth, generator, second=False)


@pytest.mark.parametrize("name", ONCE)
def test_second_derivatives_of_slopes_need_separate_values(name, generator):
    check(ONCE[name], (3, 3), 3, (1.9, 0.8, 0.3), 3, generator)
    x = torch.eye(3, dtype=torch.float64, requires_grad=True)
    z, w = vectors(x, 3, generator, 2)
    value = ONCE[name](dln.EndToEnd.of(x, 3), z, w, torch.ones(3, 3).double())
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    with pytest.raises(ValueError, match="equal"):
        torch.autograd.grad(slope.sum(), x)


@pytest.mark.parametrize("depth", [1.5, 2, 3, 5.5])
@pytest.mark.parametrize("spectrum", [(0.9, 0.9, 0.4), (1.4, 0.7, 0.3)])
def test_collapsed_networks_are_differentiable_in_their_two_matrices(depth, spectrum, generator):
    x = draw((4, 3), spectrum, generator)
    start = dln.Collapsed.of(dln.EndToEnd.of(x, depth))
    dl, dr, c = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (4, 3, 4))
    for f in (lambda p: p.matrix, lambda p: dln.cometric(p, c), dln.entropy):

        def at(t, f=f):
            value = f(dln.Collapsed(start.L + t * dl, start.R + t * dr, depth, check=False))
            return (value * c if value.ndim else value).sum()

        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(at(t), t, create_graph=True)
        one = torch.ones((), dtype=torch.float64)
        (second,) = torch.autograd.grad(slope, t)
        slope = slope.detach()
        assert float(abs(slope - slope_of(at, t.detach(), one))) < 1e-8 * float(1 + abs(slope))
        h = 1e-3
        expected = (at(t.detach() + h) - 2 * at(t.detach()) + at(t.detach() - h)) / h**2
        assert float(abs(second - expected)) < 1e-4 * float(1 + abs(expected))


@pytest.mark.parametrize("rank", [2, 3])
def test_singular_vectors_of_equal_values_have_no_derivative(rank, generator):
    x = draw((4, 3), (1.2, 1.2, 0.5), generator).requires_grad_()
    p = dln.EndToEnd.of(x, 3, rank=rank)
    torch.autograd.grad(p.s.sum(), x, retain_graph=True)
    with pytest.raises(ValueError, match="equal"):
        torch.autograd.grad(p.u.sum(), x)
    with pytest.raises(ValueError, match="gap"):
        dln.EndToEnd.of(x, 3, rank=1)


@pytest.mark.parametrize("rank", [2, 3])
def test_separate_singular_vectors_have_those_of_torch(rank, generator):
    x = draw((4, 3), (1.9, 0.8, 0.3), generator).requires_grad_()
    c = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    p = dln.EndToEnd.of(x, 3, rank=rank)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    found, expected = (
        torch.autograd.grad((c[:, :rank] * (a * b.exp())).sum() + (c[0] * v[:rank]).sum(), x)[0]
        for a, b, v in ((p.u, p.s, p.vh), (u[:, :rank], s[:rank], vh))
    )
    assert_close(found, expected, ops=1000)


def test_layers_that_singular_vectors_decide_follow_them_where_these_are_separate(generator):
    x = draw((3, 3), (1.9, 0.8, 0.3), generator).requires_grad_()
    p = dln.EndToEnd.of(x, 3)
    c = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64)
    root = torch.diag_embed(p.s ** (1 / 3))
    plain = (root @ p.vh, root, p.u @ root)
    one, two = (
        torch.autograd.grad(sum((a * w).sum() for a, w in zip(c, layers, strict=True)), x)[0]
        for layers in (dln.balanced_factors(p), plain)
    )
    assert_close(one, two, ops=1000)


def test_float32_and_batches_agree_with_single_points_in_float64(generator):
    x = torch.stack([draw((4, 3), s, generator) for s in ((1.2, 1.2, 0.5), (1.1, 0.6, 0.6))])
    z, g = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)

    def value(x):
        p, a, b = dln.EndToEnd.of(x, 3), z.to(x.dtype), g.to(x.dtype)
        total = dln.inner(p, a, b) + dln.entropy(p) + (dln.cometric_sqrt(p, a) * b).sum((-2, -1))
        return total + sum((w @ w.mT).square().sum((-2, -1)) for w in dln.balanced_factors(p))

    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(value(x).sum(), x)[0]

    assert_close(gradient(x), torch.stack([gradient(y) for y in x]), ops=1000)
    assert_close(gradient(x.float()), gradient(x), ops=1000)


def test_forward_mode_and_function_transforms(generator):
    x = draw((3, 3), (1.2, 1.2, 0.5), generator)
    z, y = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)

    def value(x):
        p = dln.EndToEnd.of(x, 3)
        return dln.inner(p, z, z) + dln.entropy(p) + dln.cometric_sqrt(p, z).square().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(leaf), leaf)
    assert_close(torch.func.grad(value)(x), expected)
    assert_close(torch.func.jvp(value, (x,), (y,))[1], (expected * y).sum())
