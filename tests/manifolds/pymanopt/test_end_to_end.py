from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close, assert_order
from manifolds._pymanopt import EndToEndManifold, FixedRankPoint
from tests.manifolds.pymanopt.routes import (
    STEPS,
    a_point,
    each_depth,
    each_shape,
    each_spectrum,
    in_library,
    problem_of,
    smooth,
)


@each_depth
@each_shape
def test_inner_product_is_the_metric(depth, shape, rng):
    manifold = EndToEndManifold(*shape, depth, rng=rng)
    x = a_point(manifold)
    z, w = (manifold.random_tangent_vector(x) for _ in range(2))
    dense = [torch.from_numpy(manifold.tangent_matrix(x, v)) for v in (z, w)]
    assert_close(manifold.inner_product(x, z, w), dln.inner(in_library(manifold, x), *dense),
                 scale=1.0)  # fmt: skip
    assert_close(manifold.norm(x, z), 1.0)
    g = rng.standard_normal(shape[:2])
    gradient = manifold.euclidean_to_riemannian_gradient(x, g)
    directional = float((g * manifold.tangent_matrix(x, z)).sum())
    assert_close(manifold.inner_product(x, gradient, z), directional, scale=np.linalg.norm(g))


@pytest.mark.parametrize("depth", [3, math.inf])
def test_normalised_metric_differs_by_the_depth(depth, rng):
    plain = EndToEndManifold(5, 4, 2, depth, rng=rng)
    x = plain.random_point()
    z = plain.random_tangent_vector(x)
    normalized = EndToEndManifold(5, 4, 2, depth, normalized=True)
    factor = 1.0 if math.isinf(depth) else depth
    assert_close(normalized.inner_product(x, z, z), factor * plain.inner_product(x, z, z))
    g = rng.standard_normal((5, 4))
    ours, theirs = (
        m.euclidean_to_riemannian_gradient(x, g).M for m in (plain, normalized)
    )  # fmt: skip
    assert_close(ours, factor * theirs)
    moved = [m.matrix(m.retraction(x, 0.3 * z)) for m in (plain, normalized)]
    assert_close(*moved)
    assert_close(normalized.typical_dist, math.sqrt(factor) * plain.typical_dist)


@each_depth
@pytest.mark.parametrize("shape", [(5, 6, 2), (3, 3, 3), (4, 5, 1)], ids=str)
@each_spectrum
def test_taylor_expansion_along_geodesics_and_retractions(depth, shape, equal, rng):
    """The host's check_gradient, check_hessian and check_retraction, with their slopes."""
    manifold = EndToEndManifold(*shape, depth, rng=rng)
    x, cost = a_point(manifold, equal), smooth(rng, *shape[:2])
    problem, z = problem_of(manifold, cost), manifold.random_tangent_vector(x)
    slope = manifold.inner_product(x, problem.riemannian_gradient(x), z)
    curvature = manifold.inner_product(x, problem.riemannian_hessian(x, z), z)
    # Deeper is more curved.
    steps = STEPS if depth in (1, math.inf) else STEPS * min(1, 8 / depth)
    for move in (manifold.exp, manifold.retraction):
        ahead, back = (
            np.array([problem.cost(move(x, h * z)) for h in sign * steps]) for sign in (1, -1)
        )
        odd, even = 0.5 * (ahead - back), 0.5 * (ahead + back) - problem.cost(x)
        assert_order(steps, np.abs(odd - steps * slope), 3, at_least=True)
        assert_order(steps, np.abs(even - 0.5 * steps**2 * curvature), 4, at_least=True)
    flat = shape[2] == min(shape[:2]) and depth == 1
    gaps = [
        np.linalg.norm(
            manifold.matrix(manifold.exp(x, h * z)) - manifold.matrix(manifold.retraction(x, h * z))
        )
        for h in steps
    ]
    if flat or (shape[2] == 1 and math.isinf(depth)):
        assert_close(np.array(gaps), np.zeros(5), scale=1.0)
    else:
        assert_order(steps, gaps, 3, at_least=True)


@each_depth
@each_shape
@each_spectrum
def test_transport_never_lengthens_and_is_the_identity_in_place(depth, shape, equal, rng):
    m, n, r = shape
    manifold = EndToEndManifold(*shape, depth, rng=rng)
    x = a_point(manifold, equal)
    z, w = (manifold.random_tangent_vector(x) for _ in range(2))
    in_place = manifold.transport(x, x, z)
    for got, expected in zip(in_place, z, strict=True):
        assert_close(got, expected, scale=1.0)
    y = manifold.retraction(x, 0.4 * w)
    moved = manifold.transport(x, y, z)
    residual = moved - manifold.to_tangent_space(y, moved)
    assert_close(manifold.norm(y, residual), 0.0, scale=1.0)
    if r == min(m, n) or math.isinf(depth):
        assert_close(manifold.norm(y, moved), 1.0)
        other = manifold.inner_product(y, moved, manifold.transport(x, y, w))
        assert_close(other, manifold.inner_product(x, z, w), scale=1.0)
    else:
        assert manifold.norm(y, moved) <= 1 + 1e-12
    # Continuous: what it does differs from the identity by the length of the way.
    gaps = []
    for h in STEPS:
        back = manifold.transport(manifold.retraction(x, h * w), x, manifold.transport(
            x, manifold.retraction(x, h * w), z))  # fmt: skip
        gaps.append(manifold.norm(x, back - z))
    if r == min(m, n) or math.isinf(depth):
        assert max(gaps) < 1e-12
    else:
        assert_order(STEPS, gaps, 2, 0.2)


def test_random_points_leave_the_global_generator_alone():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (EndToEndManifold(5, 4, 2, 3, rng=7) for _ in range(2))
    x, y = first.random_point(), second.random_point()
    for a, b in zip(x, y, strict=True):
        assert np.array_equal(a, b)
    z, w = first.random_tangent_vector(x), second.random_tangent_vector(y)
    assert np.array_equal(z.M, w.M)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert not np.array_equal(first.random_point().s, x.s)
    square = EndToEndManifold(3, 3, 3, 3, rng=1)
    assert all(np.linalg.det(square.matrix(square.random_point())) > 0 for _ in range(20))


def test_single_precision_stays_single(rng):
    manifold = EndToEndManifold(5, 4, 2, 2.7, rng=rng)
    x = FixedRankPoint(*(part.astype(np.float32) for part in manifold.random_point()))
    g = rng.standard_normal((5, 4)).astype(np.float32)
    gradient = manifold.euclidean_to_riemannian_gradient(x, g)
    y = manifold.retraction(x, -0.1 * gradient)
    for part in (*gradient, *y, *manifold.transport(x, y, gradient), *manifold.exp(x, gradient)):
        assert part.dtype == np.float32
    wide = FixedRankPoint(*(part.astype(float) for part in x))
    exact = manifold.euclidean_to_riemannian_gradient(wide, g.astype(float))
    assert_close(gradient.M, exact.M.astype(np.float32))


def test_nothing_is_dense_where_the_rank_is_small(rng):
    """Two matrices of this size would fill 160 gigabytes each."""
    m = n = 100_000
    manifold = EndToEndManifold(m, n, 2, 3, rng=rng)
    x = manifold.random_point()
    z = 0.1 * manifold.random_tangent_vector(x)
    y = manifold.exp(x, z)
    assert manifold.norm(x, manifold.log(x, y) - z) < 1e-9
    # That of |X|^2/2.
    derivative = x.u * x.s**2, x.s, x.s[:, None] ** 2 * x.vt
    gradient = manifold.euclidean_to_riemannian_gradient(x, derivative)
    manifold.transport(x, manifold.retraction(x, gradient), z)
    zero = tuple(np.zeros_like(part) for part in x)
    manifold.euclidean_to_riemannian_hessian(x, derivative, zero, z)


def test_a_plain_tuple_is_a_point(rng):
    manifold = EndToEndManifold(5, 4, 2, 3, rng=rng)
    x = manifold.random_point()
    z = manifold.random_tangent_vector(x)
    assert manifold.norm(tuple(x), z) == manifold.norm(x, z)
    assert_close(manifold.retraction(tuple(x), z).s, manifold.retraction(x, z).s)
    # Unsorted singular values are no exception.
    order = [1, 0]
    y = (x.u[:, order], x.s[order], x.vt[order])
    g = rng.standard_normal((5, 4))
    turned = manifold.euclidean_to_riemannian_gradient(y, g)
    straight = manifold.euclidean_to_riemannian_gradient(x, g)
    assert_close(manifold.tangent_matrix(y, turned), manifold.tangent_matrix(x, straight))
    moved = manifold.matrix(manifold.retraction(y, turned))
    assert_close(moved, manifold.matrix(manifold.retraction(x, straight)))


def test_what_does_not_fit_is_refused(rng):
    manifold = EndToEndManifold(5, 4, 2, 3, rng=rng)
    x = manifold.random_point()
    with pytest.raises(ValueError, match="normalized"):
        EndToEndManifold(5, 4, 2, math.inf, normalized=False)
    with pytest.raises(ValueError, match=r"point must be \(u, s, vt\) of shapes"):
        manifold.zero_vector(x) and manifold.norm((x.u, x.s, x.vt.T), manifold.zero_vector(x))
    with pytest.raises(ValueError, match="positive singular values, got 0.0"):
        manifold.norm((x.u, np.array([1.0, 0.0]), x.vt), manifold.zero_vector(x))
    with pytest.raises(ValueError, match="positive singular values"):
        manifold.norm((x.u, np.array([1.0, np.nan]), x.vt), manifold.zero_vector(x))
    with pytest.raises(ValueError, match="euclidean_gradient must have the shapes"):
        manifold.euclidean_to_riemannian_gradient(x, (x.u, x.s, x.vt.T))
    with pytest.raises(ValueError, match="euclidean_gradient must be a matrix of the shape"):
        manifold.euclidean_to_riemannian_gradient(x, np.ones((4, 5)))
    with pytest.raises(ValueError, match="vector must have shape"):
        manifold.projection(x, np.ones((4, 5)))
    assert "rank 2" in str(manifold)
    assert (manifold.depth, manifold.rank, manifold.point_layout) == (3.0, 2, 3)


@pytest.mark.parametrize("depth", [1.5, 3, np.inf])
@pytest.mark.parametrize("size", [1e-300, 1e-150, 1e150, 1e300])
def test_all_sizes_are_right_or_refused_in_words(size, depth):
    manifold = EndToEndManifold(4, 3, 2, depth, rng=1)
    u, s, vt = manifold.random_point()
    point = FixedRankPoint(u, size * s, vt)
    if abs((2 - 2 / depth) * math.log10(size)) > 308:
        with pytest.raises(ValueError, match="singular values whose powers"):
            manifold.random_tangent_vector(point)
        return
    z = manifold.random_tangent_vector(point)
    one = manifold.norm(point, z)
    assert abs(one - 1.0) < 1e-12
    for found in (manifold.retraction(point, z), manifold.embedding(point, z)):
        assert all(np.isfinite(part).all() for part in found)
