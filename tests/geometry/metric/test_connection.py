from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.kernel import Differences
from dln_geometry.geometry.metric import (
    Blocks,
    blocks_of,
    connection,
    hessian_blocks,
    riemannian_hessian,
    tangent_matrix,
)
from dln_geometry.testing import assert_close, assert_order
from tests.geometry.geodesics.routes import christoffel, draw, gaussian, tangent

DEPTHS = [1.3, 2, 2.7, 3, 20, math.inf]
POINTS = [
    ((3, 3), (1.9, 0.8, 0.3)),
    ((3, 3), (1.2, 1.2, 0.5)),
    ((4, 2), (0.7, 0.7 - 1e-9)),
    ((3, 5), (2.2, 1.0, 0.2)),
    ((4, 5), (1.6, 0.4)),
    ((3, 4), (0.6,)),
]
points = pytest.mark.parametrize(("shape", "spectrum"), POINTS, ids=str)
depths = pytest.mark.parametrize("depth", DEPTHS)


def curve(point, z):
    """Return t -> a point of the same rank on a curve through the point with velocity z."""
    x, options = point.matrix, {"rank": point.rank, "normalized": point.normalized}
    return lambda t: dln.EndToEnd.of(x + t * z, point.depth, **options)


@pytest.mark.parametrize(
    ("shape", "depth"),
    # Of rectangular matrices at infinite depth there is no dense metric.
    [(shape, n) for shape in ((2, 2), (3, 2), (2, 3), (3, 3)) for n in (1, 1.3, 2, 2.7, 3)]
    + [((2, 2), math.inf), ((3, 3), math.inf)],
)
def test_christoffel_symbols_of_the_dense_metric(shape, depth, generator):
    point = draw(shape, (1.9, 0.8, 0.5)[: min(shape)], depth, generator)
    gamma = christoffel(point.matrix.flatten(), shape, depth)
    z, w = gaussian((2, *shape), generator)
    expected = torch.einsum("lij,i,j->l", gamma, z.flatten(), w.flatten()).reshape(shape)
    scale = max(float(expected.abs().max()), 1.0)
    assert_close(connection(point, z, w), expected, ops=1000, scale=scale, condition=4.0)


@points
@depths
def test_compatible_with_the_metric(shape, spectrum, depth, generator):
    """D_Z g(W1, W2) = g(nabla_Z W1, W2) + g(W1, nabla_Z W2), W the fields of constant covectors."""
    point = draw(shape, spectrum, depth, generator, normalized=math.isinf(depth) or depth == 3)
    z = tangent(point, generator, 1.0)
    a, b = gaussian((2, *shape), generator)
    one, two = dln.cometric(point, a), dln.cometric(point, b)
    at = curve(point, z)
    length = float(dln.inner(point, one, one) * dln.inner(point, two, two)) ** 0.5

    def error(h):
        def slope(f):
            return (f(at(h)) - f(at(-h))) / (2 * h)

        left = slope(lambda p: (a * dln.cometric(p, b)).sum())
        turned = [slope(lambda p, g=g: dln.cometric(p, g)) for g in (a, b)]
        turned = [t + connection(point, z, w) for t, w in zip(turned, (one, two), strict=True)]
        # Differences leave the tangent space by h^2: apply the metric to tangent vectors.
        pairs = zip(turned, (dln.metric(point, two), dln.metric(point, one)), strict=True)
        return float(abs(left - sum((t * g).sum() for t, g in pairs))) / length

    steps = [0.02 * spectrum[-1] / 2**k for k in range(4)]
    errors = [error(h) for h in steps]
    # Of rank 1 at infinite depth the kernel is s^2, and central differences are exact.
    if math.isinf(depth) and len(spectrum) == 1:
        assert max(errors) < 1e-11
    else:
        assert_order(steps, errors, 2)


@points
@depths
def test_free_of_torsion(shape, spectrum, depth, generator):
    """Gamma is symmetric, and nabla_Z W is tangent for every field W."""
    point = draw(shape, spectrum, depth, generator)
    z, w = tangent(point, generator), tangent(point, generator)
    gamma = connection(point, z, w)
    assert_close(gamma, connection(point, w, z))
    u, vh = point.u, point.vh
    normal = gamma - u @ (u.mT @ gamma)
    normal = normal - (normal @ vh.mT) @ vh
    bent = [
        (a @ vh.mT / point.s) @ (u.mT @ b)
        for a, b in ((z - u @ u.mT @ z, w - w @ vh.mT @ vh), (w - u @ u.mT @ w, z - z @ vh.mT @ vh))
    ]
    # Minus the second fundamental form of the matrices of rank r, which no metric changes.
    scale = float(z.norm() * w.norm()) / spectrum[-1]
    assert_close(normal, -sum(bent), scale=scale)


@pytest.mark.parametrize("depth", [1.3, 2, 2.7, 3, math.inf])
def test_continuous_at_equal_values(depth, generator):
    def at(gap):
        spectrum = torch.tensor([1.2 + gap, 1.2, 0.5], dtype=torch.float64)
        eye = torch.eye(3, dtype=torch.float64)
        return dln.EndToEnd(eye, spectrum, eye, depth)

    z, w = gaussian((2, 3, 3), generator)
    exact = connection(at(0.0), z, w)
    gaps = [1e-2 / 2**k for k in range(4)]
    errors = [float((connection(at(gap), z, w) - exact).abs().max()) for gap in gaps]
    assert_order(gaps, errors, 1)
    assert_close(connection(at(1e-13), z, w), exact, scale=float(exact.abs().max()) * 10)


@points
@depths
def test_hessian_is_the_derivative_of_the_gradient(shape, spectrum, depth, generator):
    point = draw(shape, spectrum, depth, generator)
    hessian = gaussian((point.matrix.numel(),) * 2, generator)
    hessian, g = hessian + hessian.mT, gaussian(shape, generator)
    x = point.matrix

    def gradient(y):
        return g + (hessian @ (y - x).flatten()).reshape(shape)

    z, w = tangent(point, generator, 1.0), tangent(point, generator, 1.0)
    actual = riemannian_hessian(point, g, gradient(x + z) - g, z)
    other = riemannian_hessian(point, g, gradient(x + w) - g, w)
    # Self-adjoint; the scale is that of the two vectors, whose product may be small.
    size = float(dln.inner(point, actual, actual).sqrt() + dln.inner(point, other, other).sqrt())
    assert_close(dln.inner(point, actual, w), dln.inner(point, other, z), ops=1000, scale=size)

    at = curve(point, z)
    gamma = connection(point, z, dln.cometric(point, g))

    def error(h):
        moved = [dln.cometric(p, gradient(p.matrix)) for p in (at(h), at(-h))]
        return float(((moved[0] - moved[1]) / (2 * h) + gamma - actual).norm())

    steps = [0.02 * spectrum[-1] / 2**k for k in range(4)]
    assert_order(steps, [error(h) for h in steps], 2)


@pytest.mark.parametrize("depth", [1, 2.7, 3, math.inf])
def test_hessian_in_blocks(depth, generator):
    """The thin form is the dense one, and at depth 1 that of the matrices of fixed rank."""
    point = draw((6, 5), (1.4, 1.4, 0.6), depth, generator)
    u, s, vh = point.u, point.s, point.vh
    g, h = gaussian((2, 6, 5), generator)
    z = tangent(point.replace(depth=2), generator)
    frozen = math.isinf(depth)
    if frozen:
        z = u @ u.mT @ z @ vh.mT @ vh
    zb, gb, hb = (blocks_of(u, vh, part, frozen) for part in (z, g, h))
    across = (None, None)
    if not frozen:
        beyond = (g - u @ u.mT @ g) @ (torch.eye(5) - vh.mT @ vh).double()
        across = (beyond @ zb.right.mT, zb.left.mT @ beyond)
    k = Differences(s, float(depth), frozen)
    actual = tangent_matrix(u, vh, hessian_blocks(k, gb, hb, zb, across))
    if depth == 1:
        # Absil, Mahony, Trumpf 2013: the projected Hessian and the Weingarten map.
        expected = tangent_matrix(u, vh, hb)
        expected = expected + (beyond @ zb.right.mT / s) @ vh
        expected = expected + u @ ((zb.left.mT @ beyond) / s[:, None])
        assert_close(actual, expected)
        assert_close(riemannian_hessian(point, g, h, z), h)
    else:
        assert_close(actual, riemannian_hessian(point, g, h, z), ops=1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_and_dtypes(dtype, generator):
    point = draw((4, 3), (1.2, 1.2, 0.5), 3, generator, dtype=dtype, batch=(2,))
    z, w = tangent(point, generator), tangent(point, generator)
    whole = connection(point, z, w)
    hessian = riemannian_hessian(point, z, w, z)
    assert whole.dtype == hessian.dtype == dtype
    for i in range(2):
        assert_close(connection(point[i], z[i], w[i]), whole[i])
        assert_close(riemannian_hessian(point[i], z[i], w[i], z[i]), hessian[i])
    double = connection(point.to(torch.float64), z.double(), w.double())
    assert_close(whole, double, condition=6)


@pytest.mark.parametrize("depth", [2, 3, 2.7, math.inf])
def test_large_problems_are_summed_in_slices(depth, generator, monkeypatch):
    point = draw((5, 5), (1.9, 1.2, 1.2, 0.8, 0.3), depth, generator)
    z, w = tangent(point, generator), tangent(point, generator)
    expected = connection(point, z, w)
    monkeypatch.setattr("dln_geometry.geometry.kernel.differences._MOST_ENTRIES", 10)
    assert_close(connection(point, z, w), expected)
    # The sum over terms of an integer depth is the tensor of second differences.
    monkeypatch.setattr("dln_geometry.geometry.kernel.differences.MOST_TERMS", 0)
    assert_close(connection(point, z, w), expected, ops=1000)


def test_bad_input():
    point = dln.EndToEnd.of(torch.diag(torch.tensor([2.0, 1.0, 0.0])), 3, rank=2)
    z, bad = torch.eye(3) * torch.tensor([1.0, 1.0, 0.0]), torch.eye(3)
    with pytest.raises(ValueError, match="w must be tangent to the matrices of rank 2"):
        connection(point, z, bad)
    with pytest.raises(ValueError, match=r"z must have shape \(..., 3, 3\) like the point"):
        riemannian_hessian(point, bad, bad, torch.eye(2))
    with pytest.raises(ValueError, match="gradient must be finite"):
        riemannian_hessian(point, bad * math.nan, bad, z)
    with pytest.raises(ValueError, match="point must have positive singular values"):
        connection(dln.EndToEnd.of(torch.diag(torch.tensor([1.0, 0.0])), 3), bad, bad)
    with pytest.raises(TypeError, match="point must be an EndToEnd"):
        connection(torch.eye(3), z, z)
    assert isinstance(blocks_of(point.u, point.vh, z), Blocks)
