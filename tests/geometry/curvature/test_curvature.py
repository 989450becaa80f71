from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.curvature import (
    ricci_curvature,
    riemann_curvature,
    scalar_curvature,
    sectional_curvature,
)
from dln_geometry.testing import assert_close, assert_order
from tests.geometry.geodesics.routes import (
    draw,
    gaussian,
    orthonormal_basis,
    riemann_tensor,
    tangent,
)

POINTS = [
    ((3, 3), (1.9, 0.8, 0.3)),
    ((3, 3), (1.2, 1.2, 0.5)),
    ((4, 2), (0.7, 0.7 - 1e-9)),
    ((3, 4), (1.1, 0.4)),
    ((3, 3), (0.7,)),
]
points = pytest.mark.parametrize(("shape", "spectrum"), POINTS, ids=str)


def numerator_upstairs(point, z, w):
    """Return g(R(Z,W)W, Z) by O'Neill's formula and Gauss' equation of the balanced manifold.

    The flat derivative of one horizontal lift along another has a part normal to the balanced
    manifold (its second fundamental form) and a vertical part (O'Neill's tensor).
    """
    factors = dln.balanced_factors(point)
    covectors = [dln.metric(point, z), dln.metric(point, w)]
    lifts = [dln.lift(factors, g) for g in covectors]

    def turned(i, j):
        def field(*layers):
            return dln.lift(layers, covectors[i])

        return torch.func.jvp(field, tuple(factors), tuple(lifts[j]))[1]

    def normal(v):
        return [a - b for a, b in zip(v, dln.tangent(factors, v), strict=True)]

    def dot(a, b):
        return sum((x * y).sum() for x, y in zip(a, b, strict=True))

    zz, ww, zw = normal(turned(0, 0)), normal(turned(1, 1)), normal(turned(1, 0))
    one = dln.vertical(factors, turned(1, 0))
    two = dln.vertical(factors, turned(0, 1))
    oneill = [0.5 * (a - b) for a, b in zip(one, two, strict=True)]
    return dot(zz, ww) - dot(zw, zw) + 3.0 * dot(oneill, oneill)


@points
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_formula_of_oneill_upstairs(shape, spectrum, depth, generator):
    point = draw(shape, spectrum, depth, generator)
    z, w = tangent(point, generator, 1.0), tangent(point, generator, 1.0)
    area = 1.0 - dln.inner(point, z, w) ** 2
    actual = sectional_curvature(point, z, w)
    assert_close(actual * area, numerator_upstairs(point, z, w), ops=1000, scale=10.0)


@pytest.mark.parametrize(
    ("shape", "depth"),
    # Of rectangular matrices at infinite depth there is no dense metric.
    [((2, 2), n) for n in (1.3, 2.7, 3, math.inf)] + [((3, 2), n) for n in (1.3, 2, 3)],
)
def test_the_riemann_tensor_of_the_dense_metric(shape, depth, generator):
    point = draw(shape, (1.9, 0.8), depth, generator)
    vectors = gaussian((4, *shape), generator)
    tensor = riemann_tensor(point.matrix.flatten(), shape, depth)
    x, y, z, w = (v.flatten() for v in vectors)
    image = torch.einsum("lkij,i,j,k->l", tensor, x, y, z).reshape(shape)
    expected = dln.inner(point, image, vectors[3])
    sizes = math.prod(float(dln.inner(point, v, v)) ** 0.5 for v in vectors)
    actual = riemann_curvature(point, *vectors)
    # Two derivatives of singular vectors lose the square of the inverse gap.
    assert_close(actual, expected, ops=1000, scale=sizes, condition=10.0)
    # Ricci and scalar curvature are its traces.
    ricci = torch.einsum("lklj,k,j->", tensor, z, w)
    assert_close(
        ricci_curvature(point, vectors[2], vectors[3]), ricci, ops=1000, scale=sizes, condition=10
    )


@points
@pytest.mark.parametrize("depth", [1.3, 3, math.inf])
def test_symmetries(shape, spectrum, depth, generator):
    point = draw(shape, spectrum, depth, generator)
    x, y, z, w = (tangent(point, generator, 1.0) for _ in range(4))

    def riemann(*v):
        return riemann_curvature(point, *v)

    value = riemann(x, y, z, w)
    options = {"ops": 1000, "scale": 10.0 / spectrum[-1]}
    assert_close(riemann(y, x, z, w), -value, **options)
    assert_close(riemann(z, w, x, y), value, **options)
    assert_close(riemann(y, z, x, w) + riemann(z, x, y, w), -value, **options)
    # The sectional curvature belongs to the plane.
    section = sectional_curvature(point, x, y) if math.isfinite(depth) or len(spectrum) > 1 else 0
    if math.isfinite(depth) or len(spectrum) > 1:
        other = sectional_curvature(point, 2 * x + y, y - 0.3 * x)
        assert_close(other, section, **options)
        area = 1 - dln.inner(point, x, y) ** 2
        assert_close(riemann(x, y, y, x), section * area, **options)


@points
@pytest.mark.parametrize("depth", [1.3, 3, math.inf])
def test_ricci_and_scalar_curvature_are_sums(shape, spectrum, depth, generator):
    """The representatives of all outer directions, and the sets of three indices."""
    point = draw(shape, spectrum, depth, generator, normalized=math.isinf(depth) or depth == 3)
    basis = orthonormal_basis(point)
    options = {"ops": 1000, "scale": 10.0 * len(basis) / spectrum[-1]}
    planes = {
        (i, j): sectional_curvature(point, basis[i], basis[j])
        for i, j in itertools.combinations(range(len(basis)), 2)
    }
    total = 2.0 * sum(planes.values(), start=torch.zeros((), dtype=torch.float64))
    assert_close(scalar_curvature(point), total, **options)
    first = sum((k for (i, _), k in planes.items() if i == 0), start=torch.zeros(()).double())
    assert_close(ricci_curvature(point, basis[0]), first, **options)


@pytest.mark.parametrize("depth", [1.5, 2, 3, 8])
@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (1, 2)])
def test_vectors_form_a_cone(depth, shape, generator):
    """g = d rho^2 + rho^2/N d theta^2: sectional curvature (N - 1)/rho^2 across the rays."""
    point = draw(shape, (0.7,), depth, generator)
    d, rho2 = max(shape), depth * 0.7 ** (2 / depth)
    expected = (depth - 1.0) / rho2
    assert_close(scalar_curvature(point), (d - 1) * (d - 2) * expected, scale=10.0)
    x = point.matrix
    assert_close(ricci_curvature(point, x), 0.0, scale=10.0)
    side = gaussian((2, *shape), generator)
    side = side - (side * x).sum((-2, -1), keepdim=True) * x / x.square().sum()
    if d > 2:
        assert_close(sectional_curvature(point, *side), expected, ops=1000)
        length = dln.inner(point, side[0], side[0])
        assert_close(ricci_curvature(point, side[0]) / length, (d - 2) * expected, ops=1000)


def test_flat_where_it_must_be(generator):
    point = draw((4, 3), (1.2, 0.5), 1, generator)
    z, w = gaussian((2, 4, 3), generator)
    for value in (
        sectional_curvature(point, z, w),
        ricci_curvature(point, z, w),
        scalar_curvature(point),
        riemann_curvature(point, z, w, w, z),
    ):
        assert_close(value, 0.0, scale=1.0, ops=1)
    # The radial directions span a flat of every depth.
    for depth in (1.5, 3, math.inf):
        point = draw((4, 3), (1.9, 0.8, 0.4), depth, generator)
        z, w = ((point.u * c) @ point.vh for c in gaussian((2, 3), generator))
        assert_close(sectional_curvature(point, z, w), 0.0, scale=10.0)


@pytest.mark.parametrize("depth", [1.3, 3, math.inf])
def test_continuous_at_equal_values(depth, generator):
    eye = torch.eye(3, dtype=torch.float64)
    z, w = gaussian((2, 3, 3), generator)

    def at(*gaps):
        s = torch.tensor([1.2 + gap for gap in gaps], dtype=torch.float64)
        point = dln.EndToEnd(eye, s, eye, depth, math.isinf(depth))
        return torch.stack([sectional_curvature(point, z, w), scalar_curvature(point)])

    exact = at(0.0, 0.0, 0.0)
    steps = [1e-2 / 2**k for k in range(4)]
    errors = [float((at(2 * h, h, -0.5 * h) - exact).abs().max()) for h in steps]
    assert_order(steps, errors, 1)
    assert_close(at(1e-13, 0.0, 0.0), exact, ops=1000, scale=10.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_dtypes_and_rotations(dtype, generator):
    point = draw((3, 2), (1.2, 1.2), 3, generator, dtype=dtype, batch=(2,))
    z, w = tangent(point, generator), tangent(point, generator)
    found = sectional_curvature(point, z, w)
    scalar = scalar_curvature(point)
    ricci = ricci_curvature(point, z)
    assert found.dtype == scalar.dtype == ricci.dtype == dtype
    assert found.shape == scalar.shape == ricci.shape == (2,)
    q, o = (torch.linalg.qr(gaussian((d, d), generator, dtype)).Q for d in (3, 2))
    for i in range(2):
        single = dln.EndToEnd(q @ point.u[i], point.s[i], point.vh[i] @ o, 3, False)
        turned = [q @ v[i] @ o for v in (z, w)]
        assert_close(sectional_curvature(single, *turned), found[i], ops=1000, scale=1.0)
        assert_close(ricci_curvature(single, turned[0]), ricci[i], ops=1000)
        assert_close(scalar_curvature(single), scalar[i], ops=1000)


def test_bad_input():
    point = dln.EndToEnd.of(torch.diag(torch.tensor([2.0, 1.0, 0.0])), 3, rank=2)
    z = torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="z and w must span a plane"):
        sectional_curvature(point, z, 2 * z)
    with pytest.raises(ValueError, match="w must be tangent"):
        sectional_curvature(point, z, torch.eye(3))
    with pytest.raises(ValueError, match="point must have positive singular values"):
        scalar_curvature(dln.EndToEnd.of(torch.zeros(2, 2), 3))
    with pytest.raises(TypeError, match="point must be an EndToEnd"):
        ricci_curvature(torch.eye(3), z)
    with pytest.raises(ValueError, match="y must be tangent"):
        riemann_curvature(point, z, torch.eye(3), z, z)


def plane_at_many_digits(sa, sb, depth):
    """Return ``K(e_aa, e_ab)`` of the closed form, at 90 digits, by plain divided differences."""

    def divided(*nodes):
        # Equal nodes are told apart in the 22nd digit.
        nodes = [x * (1 + i * mpmath.mpf(10) ** -22) for i, x in enumerate(nodes)]
        table = [x**depth for x in nodes]
        for k in range(1, len(nodes)):
            pairs = itertools.pairwise(table)
            table = [(b - a) / (nodes[i + k] - nodes[i]) for i, (a, b) in enumerate(pairs)]
        return table[0]

    with mpmath.workdps(90):
        depth = mpmath.mpf(depth)
        la, lb = (mpmath.mpf(s) ** (2 / depth) for s in (sa, sb))
        own, cross, cube = divided(la, la), divided(la, lb), divided(la, la, la)
        second, third = divided(la, la, lb), divided(la, la, la, lb)
        pa, pb = mpmath.mpf(sa) ** 2, mpmath.mpf(sb) ** 2
        total = (pa + pb) * (third - cube * second / own) / (own * cross)
        return float(total + cross * cube / own**2 - pb * second**2 / (own * cross**2))


@pytest.mark.parametrize("depth", [2, 2.7, 3, 8])
def test_how_many_digits_wide_spectra_leave(depth):
    """A few eps (s_max/s_min)^2 are lost, as is said, in a plane of the smallest value."""
    eye = torch.eye(3, dtype=torch.float64)
    for ratio in (1e1, 1e3, 1e5):
        s = torch.tensor([1.0, 0.5, 1.0 / ratio], dtype=torch.float64)
        point = dln.EndToEnd(eye, s, eye, depth, False)
        z, w = torch.zeros(2, 3, 3, dtype=torch.float64)
        z[2, 2] = w[2, 0] = 1.0
        found = sectional_curvature(point, z, w)
        expected = plane_at_many_digits(1.0 / ratio, 1.0, depth)
        assert_close(found, expected, scale=1.0, ops=100, condition=ratio**2)


def test_gradients_are_refused(generator):
    x = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    z, w = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    point = dln.EndToEnd.of(x.clone().requires_grad_(), 3)
    for call in (
        lambda: dln.sectional_curvature(point, z, w),
        lambda: dln.riemann_curvature(dln.EndToEnd.of(x, 3), z, w, z, w.clone().requires_grad_()),
        lambda: dln.ricci_curvature(point, z),
        lambda: dln.scalar_curvature(point),
    ):
        with pytest.raises(ValueError, match="has no derivative here"):
            call()
    assert not dln.scalar_curvature(point.detach()).requires_grad
