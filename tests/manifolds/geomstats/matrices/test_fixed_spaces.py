"""The matrices between a fixed column and a fixed row space. Runs on both backends."""

from __future__ import annotations

import math

import geomstats.backend as gs
import numpy as np
import pytest
import torch
from geomstats.learning.frechet_mean import FrechetMean
from scipy.integrate import solve_ivp

from dln_geometry.testing import assert_close, assert_order
from manifolds._geomstats.arrays import as_tensor, to_backend
from manifolds.geomstats_dln import (
    DepthMetric,
    FixedRankEndToEnd,
    FixedSpacesEndToEnd,
    FullRankEndToEnd,
)
from tests.manifolds.geomstats.routes import normal

SHAPES = [(4, 3, 2), (3, 5, 3), (4, 4, 2), (3, 2, 1)]

CORE = ((1.5, 0.3, -0.2), (0.1, 1.1, 0.4), (-0.3, 0.2, 0.8))


def space_of(shape, generator, depth=math.inf, **options):
    m, n, r = shape
    left, right = normal(generator, m, r), normal(generator, n, r)
    space = FixedSpacesEndToEnd(to_backend(left), to_backend(right), positive_det=True)
    return space.equip_with_metric(DepthMetric, depth=depth, **options)


def point_of(space):
    """Return a point of middling condition and determinant above zero."""
    r = space.rank
    return space.embed(to_backend(torch.tensor(CORE, dtype=torch.float64)[:r, :r]))


def vectors(space, count, generator, size=0.15):
    r = space.rank
    return [space.embed(to_backend(size * normal(generator, r, r))) for _ in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
def test_dimension_is_the_rank_of_a_jacobian(shape, generator):
    space = space_of(shape, generator)
    r = space.rank
    basis = torch.eye(r * r, dtype=torch.float64).unflatten(-1, (r, r))
    images = as_tensor(space.embed(to_backend(basis)))
    assert space.dim == r * r == int(torch.linalg.matrix_rank(images.flatten(1)))
    assert_close(as_tensor(space.core(to_backend(images))), basis, scale=1.0)


@pytest.mark.parametrize("depth", [1, 2, 2.7, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_at_finite_depth_it_is_totally_geodesic(shape, depth, generator):
    """In the matrices of its rank, which know nothing of the spaces."""
    m, n, r = shape
    space = space_of(shape, generator, depth)
    around = FullRankEndToEnd(m, n) if r == min(m, n) else FixedRankEndToEnd(m, n, r)
    around.equip_with_metric(DepthMetric, depth=depth)
    x = point_of(space)
    z, w, v = vectors(space, 3, generator)
    inner, outer = space.metric, around.metric
    for value, other in (
        (inner.inner_product(z, w, x), outer.inner_product(z, w, x)),
        (inner.flat(z, x), outer.flat(z, x)),
        (inner.sharp(z, x), outer.sharp(z, x)),
    ):
        assert_close(as_tensor(value), as_tensor(other), ops=1000, scale=1.0)
    state = gs.stack([x, z])
    ours, theirs = (as_tensor(g.geodesic_equation(state)) for g in (inner, outer))
    assert_close(ours, theirs, ops=1000)
    ours, theirs = (as_tensor(g.curvature(z, w, v, x)) for g in (inner, outer))
    assert_close(ours, theirs, ops=1000, scale=as_tensor(z).norm() ** 3, condition=depth**2)
    for value, other in (
        (inner.exp(z, x), outer.exp(z, x)),
        (inner.parallel_transport(w, x, direction=z), outer.parallel_transport(w, x, direction=z)),
        (inner.log(inner.exp(z, x), x), z),
    ):
        # The default tolerance of geodesics is eps^{3/4}.
        assert float((as_tensor(value) - as_tensor(other)).abs().max()) < 1e-11


@pytest.mark.parametrize("shape", [(4, 3, 2), (3, 5, 3)])
def test_geodesic_of_infinite_depth_is_hamiltons(shape, generator):
    """By scipy's DOP853 and autodiff of ``A(G) = int_0^1 (Y Y^T)^{1-t} G (Y^T Y)^t dt``."""
    space = space_of(shape, generator)
    y = as_tensor(space.core(point_of(space)))
    momentum = 0.3 * normal(generator, *y.shape)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(24))
    nodes, weights = 0.5 + 0.5 * nodes, 0.5 * weights

    def cometric(y, g):
        p, u = torch.linalg.eigh(y @ y.mT)
        q, v = torch.linalg.eigh(y.mT @ y)
        powers = p[:, None] ** (1.0 - nodes[:, None, None]) * q ** nodes[:, None, None]
        return u @ ((weights[:, None, None] * powers).sum(0) * (u.mT @ g @ v)) @ v.mT

    def field(_, state):
        y, g = torch.from_numpy(state).unflatten(-1, (2, *y_shape))
        y = y.clone().requires_grad_()
        moved = cometric(y, g)
        (slope,) = torch.autograd.grad(0.5 * (g * moved).sum(), y)
        return torch.stack((moved.detach(), -slope)).flatten().numpy()

    y_shape = y.shape
    start = torch.stack((y, momentum)).flatten().numpy()
    path = solve_ivp(field, (0.0, 1.0), start, method="DOP853", rtol=1e-12, atol=1e-13)
    end = torch.from_numpy(path.y[:, -1]).unflatten(-1, (2, *y_shape))[0]
    z = space.metric.sharp(space.embed(to_backend(momentum)), point_of(space))
    assert_close(as_tensor(space.core(z)), cometric(y, momentum), ops=1000)
    found = as_tensor(space.core(space.metric.exp(z, point_of(space))))
    assert float((found - end).abs().max()) < 1e-11
    reached = space.embed(to_backend(end))
    assert float((as_tensor(space.metric.log(reached, point_of(space)) - z)).abs().max()) < 1e-10


@pytest.mark.parametrize("shape", [(4, 3, 2), (3, 5, 3)])
def test_infinite_depth_is_the_limit_of_normalized_depths(shape, generator):
    space = space_of(shape, generator)
    x = point_of(space)
    z, w = vectors(space, 2, generator)
    end = space.metric.exp(z, x)

    def values(depth):
        # At depth N roundings of the N-th roots are N times as large in X.
        space.equip_with_metric(DepthMetric, depth=depth, normalized=True, rtol=1e-10)
        metric = space.metric
        parts = [
            metric.dist(x, end), metric.sectional_curvature(z, w, x), metric.scalar_curvature(x),
            metric.squared_norm(z, x),
        ]  # fmt: skip
        return torch.stack([as_tensor(part) for part in parts])

    limit, depths = values(math.inf), [256.0, 512.0, 1024.0, 2048.0]
    errors = torch.stack([(values(depth) - limit).abs() for depth in depths])
    for quantity in errors.unbind(-1):
        assert_order([1.0 / depth for depth in depths], quantity, 1.0)


@pytest.mark.parametrize("depth", [2.7, math.inf])
def test_traces_of_curvature_are_those_of_the_space(depth, generator):
    """Over r^2 directions, not over all of the matrices around it."""
    space = space_of((4, 3, 2), generator, depth)
    metric, x = space.metric, point_of(space)
    raised, ricci = as_tensor(metric.cometric_matrix(x)), as_tensor(metric.ricci_tensor(x))
    assert_close((raised * ricci).sum(), as_tensor(metric.scalar_curvature(x)), ops=1000)
    riemann = as_tensor(metric.riemann_tensor(x))
    assert_close(torch.einsum("ijkj->ik", riemann), ricci, ops=1000)
    lowered = as_tensor(metric.metric_matrix(x))
    projection = lowered @ raised
    assert_close(projection @ projection, projection, ops=1000)
    assert float(projection.trace()) == pytest.approx(space.dim)
    cores = FullRankEndToEnd(2, 2, positive_det=True).equip_with_metric(DepthMetric, depth=depth)
    alone = as_tensor(cores.metric.scalar_curvature(space.core(x)))
    assert_close(as_tensor(metric.scalar_curvature(x)), alone, ops=1000)


def test_default_is_infinite_depth():
    space = FixedSpacesEndToEnd(gs.eye(3)[:, :2], gs.eye(4)[:, 1:3])
    assert math.isinf(space.metric.depth)
    assert math.isinf(space.new().metric.depth)
    assert space.equip_with_metric(depth=3).metric.depth == 3
    again = space.new(equip=False)
    assert (again.shape, again.rank, again.positive_det) == ((3, 4), 2, False)
    assert_close(as_tensor(again.left), as_tensor(space.left))
    assert_close(as_tensor(again.right), as_tensor(gs.eye(4)[:, 1:3]))
    assert not hasattr(again, "metric")


def test_orientation_is_that_of_the_columns_given(generator):
    left, right, y = (normal(generator, *size) for size in ((5, 3), (4, 3), (3, 3)))
    space = FixedSpacesEndToEnd(to_backend(left), to_backend(right), positive_det=True)
    x = to_backend(left @ y @ right.mT)
    assert bool(space.belongs(x, atol=1e-9)) == bool(torch.linalg.det(y) > 0)
    assert bool(space.belongs(space.projection(x), atol=1e-9))
    flipped = left * torch.tensor([1.0, -1.0, 1.0])
    other = FixedSpacesEndToEnd(to_backend(flipped), to_backend(right), positive_det=True)
    assert bool(space.belongs(x, atol=1e-9)) != bool(other.belongs(x, atol=1e-9))


def test_space_through_a_matrix(generator):
    x = to_backend(normal(generator, 4, 2) @ normal(generator, 2, 5))
    space = FixedSpacesEndToEnd.of(x, rank=2, positive_det=True)
    assert (space.dim, space.shape) == (4, (4, 5))
    assert bool(space.belongs(x, atol=1e-9))
    assert float(space.metric.dist(x, 2.0 * x)) == pytest.approx(math.sqrt(2) * math.log(2.0))


def test_points_outside_do_not_belong(generator):
    space = space_of((4, 3, 2), generator)
    x = as_tensor(point_of(space))
    points = torch.stack([x, x + 1e-3 * normal(generator, 4, 3), -x, 0 * x])
    inside = as_tensor(space.belongs(to_backend(points), atol=1e-9))
    # det(-Y) = det(Y) at even rank.
    assert inside.tolist() == [True, False, True, False]
    assert bool(gs.all(space.belongs(space.projection(to_backend(points)))))
    assert bool(gs.all(space.is_tangent(space.to_tangent(to_backend(points)))))
    assert not bool(space.is_tangent(to_backend(normal(generator, 4, 3)), to_backend(x)))


def test_mean_of_two_points_and_their_middle_is_the_middle(generator):
    space = space_of((4, 3, 2), generator)
    a = point_of(space)
    (z,) = vectors(space, 1, generator, 0.3)
    b, middle = space.metric.exp(z, a), space.metric.exp(0.5 * z, a)
    mean = FrechetMean(space).set(epsilon=1e-18).fit(gs.stack([a, b, middle])).estimate_
    # The descent stops at a squared step of dim * epsilon.
    assert float((as_tensor(mean) - as_tensor(middle)).abs().max()) < 1e-8


def test_single_precision_is_kept(generator):
    space = space_of((4, 3, 2), generator)
    (z,) = vectors(space, 1, generator)
    x, z = (to_backend(as_tensor(v).float()) for v in (point_of(space), z))
    end = space.metric.exp(z, x)
    assert as_tensor(end).dtype == torch.float32
    # Roundings of single precision leave the spaces of double precision.
    fine = [space.to_tangent(to_backend(as_tensor(v).double())) for v in (z, x)]
    exact = space.metric.exp(*fine)
    assert_close(as_tensor(end), as_tensor(exact), ops=1000)
    assert as_tensor(space.metric.metric_matrix(x)).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: FixedSpacesEndToEnd(gs.eye(3), gs.eye(3)[:, :2]), "one number of columns"),
        (lambda s: FixedSpacesEndToEnd(gs.ones((2, 3)), gs.eye(3)), "left must be a matrix with"),
        (lambda s: FixedSpacesEndToEnd(gs.eye(3), gs.ones(3)), "right must be a matrix with"),
        (lambda s: FixedSpacesEndToEnd(gs.ones((3, 2)), gs.eye(3)), "left must have independent"),
        (
            lambda s: FixedSpacesEndToEnd(gs.eye(2), gs.array([[1.0, 0.0], [0.0, math.nan]])),
            "right must be finite",
        ),
        (lambda s: FixedSpacesEndToEnd.of(gs.ones((3, 3)), rank=2), "point must have rank 2"),
        (lambda s: FixedSpacesEndToEnd.of(gs.ones((2, 3, 3))), "point must be one matrix"),
        (lambda s: s.metric.dist(gs.ones((3, 4)), gs.eye(3)[:, :2]), "must have shape"),
        (lambda s: s.metric.norm(gs.ones((3, 3)), s.embed(gs.eye(2))), "tangent_vec must lie"),
        (lambda s: s.metric.norm(s.embed(gs.eye(2)), gs.ones((3, 3))), "base_point must lie"),
        (
            lambda s: s.metric.log(s.embed(gs.array([[0.0, 1.0], [1.0, 0.0]])), s.embed(gs.eye(2))),
            "determinants of one sign",
        ),
    ],
)
def test_doors_say_what_they_want(call, message):
    space = FixedSpacesEndToEnd(gs.eye(3)[:, :2], gs.eye(3)[:, 1:])
    with pytest.raises(ValueError, match=message):
        call(space)
