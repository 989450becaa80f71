from __future__ import annotations

import math

import numpy as np
import pymanopt
import pytest
import torch
from scipy import sparse

import dln_geometry as dln
from dln_geometry.geometry.geodesics import exponential
from dln_geometry.geometry.kernel import log_kernel_of_log
from dln_geometry.geometry.metric import riemannian_hessian
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import Depth
from dln_geometry.testing import assert_close, assert_order
from manifolds._pymanopt import (
    EndToEndManifold,
    FixedRankPoint,
    FixedRankTangent,
    inner_christoffel,
    outer_christoffel,
)

DEPTHS = [1, 1.4, 2, 2.7, 3, 8, 20, math.inf]
# Thin, square of full rank, rectangular of full rank either way, rank one.
SHAPES = [(5, 6, 2), (3, 3, 3), (4, 3, 3), (2, 4, 2), (4, 5, 1)]
STEPS = 0.04 * 2.0 ** -np.arange(5)

each_depth = pytest.mark.parametrize("depth", DEPTHS)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_spectrum = pytest.mark.parametrize("equal", [False, True], ids=["generic", "equal"])


def a_point(manifold, equal=False):
    x = manifold.random_point()
    return FixedRankPoint(x.u, np.full_like(x.s, 0.8), x.vt) if equal else x


def in_library(manifold, point):
    """Return the same point for the functions of the library, which know no rank at depth 1."""
    depth = math.nextafter(1.0, 2.0) if manifold.depth == 1 else manifold.depth
    u, s, vt = (torch.from_numpy(np.ascontiguousarray(part)) for part in point)
    return EndToEnd(u, s, vt, depth, math.isinf(depth))


def smooth(rng, m, n):
    """Return a cost of a matrix without symmetries, in torch, and what it needs."""
    a, b = (torch.from_numpy(rng.standard_normal((m, n))) for _ in range(2))

    def cost(x):
        return (torch.sin(x * b) + 0.3 * x.square() * a).sum() + 0.1 * (x @ a.mT).det()

    return cost


def problem_of(manifold, cost):
    @pymanopt.function.pytorch(manifold)
    def wrapped(u, s, vt):
        return cost((u * s) @ vt)

    return pymanopt.Problem(manifold, wrapped)


def in_matrices(manifold, point, cost, z):
    """Return Euclidean gradient and Hessian along z of a cost of matrices."""
    x = torch.from_numpy(manifold.matrix(point))
    gradient = torch.func.grad(cost)
    direction = torch.from_numpy(manifold.tangent_matrix(point, z))
    return torch.func.jvp(gradient, (x,), (direction,))


@each_depth
@each_shape
@each_spectrum
def test_gradient_is_the_cometric_of_the_gradient_in_matrices(depth, shape, equal, rng):
    manifold = EndToEndManifold(*shape, depth, rng=rng)
    x, cost = a_point(manifold, equal), smooth(rng, *shape[:2])
    g, _ = in_matrices(manifold, x, cost, manifold.zero_vector(x))
    expected = dln.cometric(in_library(manifold, x), g)
    got = problem_of(manifold, cost).riemannian_gradient(x)
    assert_close(manifold.tangent_matrix(x, got), expected, ops=1000)
    from_matrix = manifold.euclidean_to_riemannian_gradient(x, g.numpy())
    assert_close(manifold.tangent_matrix(x, from_matrix), expected, ops=1000)
    assert_close(got.up.T @ x.u, np.zeros((shape[2], shape[2])), scale=np.abs(g.numpy()).max())
    assert_close(x.vt @ got.vp, np.zeros((shape[2], shape[2])), scale=np.abs(g.numpy()).max())


@each_depth
@each_shape
@each_spectrum
def test_hessian_is_that_of_the_connection_in_matrices(depth, shape, equal, rng):
    """Against the connection by variations of the cometric, another formula from other parts."""
    manifold = EndToEndManifold(*shape, depth, rng=rng)
    x, cost = a_point(manifold, equal), smooth(rng, *shape[:2])
    z, w = (manifold.random_tangent_vector(x) for _ in range(2))
    g, h = in_matrices(manifold, x, cost, z)
    expected = riemannian_hessian(
        in_library(manifold, x), g, h, torch.from_numpy(manifold.tangent_matrix(x, z))
    )
    problem = problem_of(manifold, cost)
    got = problem.riemannian_hessian(x, z)
    assert_close(manifold.tangent_matrix(x, got), expected, ops=3000)
    by_matrices = manifold.euclidean_to_riemannian_hessian(x, g.numpy(), h.numpy(), z)
    assert_close(manifold.tangent_matrix(x, by_matrices), expected, ops=3000)
    # Self-adjoint, linear, tangent: what the host's own check prints.
    other = problem.riemannian_hessian(x, w)
    size = manifold.norm(x, got) + manifold.norm(x, other)
    difference = manifold.inner_product(x, got, w) - manifold.inner_product(x, z, other)
    assert_close(difference, 0.0, ops=1000, scale=size)
    both = problem.riemannian_hessian(x, 0.7 * z - 1.9 * w) - (0.7 * got - 1.9 * other)
    assert_close(manifold.norm(x, both), 0.0, ops=1000, scale=size)
    residual = got - manifold.to_tangent_space(x, got)
    assert_close(manifold.norm(x, residual), 0.0, ops=1000, scale=size)


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
@each_shape
def test_projection_is_orthogonal(depth, shape, rng):
    m, n, _ = shape
    manifold = EndToEndManifold(*shape, depth, rng=rng)
    x = a_point(manifold)
    y, w = rng.standard_normal((2, m, n))
    dense = [manifold.tangent_matrix(x, manifold.projection(x, v)) for v in (y, w)]
    again = manifold.tangent_matrix(x, manifold.projection(x, dense[0]))
    assert_close(again, dense[0])
    assert_close((dense[0] * w).sum(), (y * dense[1]).sum(), scale=m * n)
    a, b, c = rng.standard_normal((m, 3)), rng.standard_normal((3, 3)), rng.standard_normal((n, 3))
    thin, full = manifold.projection(x, (a, b, c)), manifold.projection(x, a @ b @ c.T)
    assert_close(manifold.tangent_matrix(x, thin), manifold.tangent_matrix(x, full))
    # The trace of the projection is the dimension.
    basis = np.eye(m * n).reshape(-1, m, n)
    traces = [
        (e * manifold.tangent_matrix(x, manifold.projection(x, e))).sum() for e in basis
    ]  # fmt: skip
    assert_close(sum(traces), float(manifold.dim))


@each_depth
@each_shape
def test_embedding_moves_the_product_and_stays_small_at_equal_values(depth, shape, rng):
    manifold = EndToEndManifold(*shape, depth, rng=rng)
    x = a_point(manifold, equal=True)
    z = manifold.random_tangent_vector(x)
    parts = manifold.embedding(x, z)
    assert [part.shape for part in parts] == [part.shape for part in x]
    _, moved = torch.func.jvp(
        lambda u, s, vt: (u * s) @ vt,
        tuple(torch.from_numpy(part) for part in x),
        tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in parts),
    )
    assert_close(moved, manifold.tangent_matrix(x, z))


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


@each_depth
@each_shape
def test_gradients_of_costs_that_know_that_singular_vectors_are_orthonormal(depth, shape, rng):
    """|X|^2 from the singular values, projectors on the spaces: functions of X all the same."""
    m, n, r = shape
    manifold = EndToEndManifold(*shape, depth, rng=rng)
    x = a_point(manifold)
    b, c, d = (
        torch.from_numpy(rng.standard_normal(size)) for size in ((m, n), (m, m), (n, n))
    )  # fmt: skip

    def by_parts(u, s, vt):
        left, right = (c * (u @ u.mT)).sum(), (d * ((vt.mT * s.square()) @ vt)).sum()
        return s.square().sum() + (b * ((u * s) @ vt)).sum() + left + right

    def by_matrix(x):
        u, _, _ = torch.linalg.svd(x, full_matrices=False)
        u = u[:, :r]
        return x.square().sum() + (b * x).sum() + (c * (u @ u.mT)).sum() + (d * (x.mT @ x)).sum()

    @pymanopt.function.pytorch(manifold)
    def cost(u, s, vt):
        return by_parts(u, s, vt)

    problem = pymanopt.Problem(manifold, cost)
    dense = torch.from_numpy(manifold.matrix(x)).requires_grad_()
    if r == min(m, n):
        # Through a decomposition of thinner matrices than these no gradient is defined.
        by_matrix(dense).backward()
        expected = dln.cometric(in_library(manifold, x), dense.grad)
        got = manifold.tangent_matrix(x, problem.riemannian_gradient(x))
        assert_close(got, expected, ops=1000, condition=100)
    z = manifold.random_tangent_vector(x)
    slope = manifold.inner_product(x, problem.riemannian_gradient(x), z)
    change = [problem.cost(manifold.retraction(x, h * z)) - problem.cost(x) for h in STEPS]
    assert_order(STEPS, np.abs(np.array(change) - STEPS * slope), 2, 0.3, at_least=True)
    with pytest.raises(ValueError, match="cost must be a function of the product"):
        problem.riemannian_hessian(x, z)
    if r > 1:
        with pytest.raises(ValueError, match="where singular values are equal"):
            problem.riemannian_gradient(FixedRankPoint(x.u, np.full(r, 0.8), x.vt))


def test_nearly_equal_singular_values_lose_nothing(rng):
    """Between equal and distinct values nothing is divided by their differences."""
    cost = smooth(rng, 5, 4)
    manifold = EndToEndManifold(5, 4, 3, 3, rng=rng)
    x = manifold.random_point()
    for gap in (1e-3, 1e-7, 1e-12, 1e-15):
        y = FixedRankPoint(x.u, np.array([1 + gap, 1.0, 1 - gap]), x.vt)
        z = manifold.random_tangent_vector(y)
        g, h = in_matrices(manifold, y, cost, z)
        problem = problem_of(manifold, cost)
        assert_close(
            manifold.tangent_matrix(y, problem.riemannian_gradient(y)),
            dln.cometric(in_library(manifold, y), g),
        )
        assert_close(
            manifold.tangent_matrix(y, problem.riemannian_hessian(y, z)),
            riemannian_hessian(
                in_library(manifold, y), g, h, torch.from_numpy(manifold.tangent_matrix(y, z))
            ),
            ops=3000,
        )


@pytest.mark.parametrize("depth", [1, 2, 2.7, 8])
def test_small_singular_values_cost_no_digits(depth, rng):
    """Relative to what the gradient is: nothing is divided by the smallest value alone."""
    manifold = EndToEndManifold(5, 4, 3, depth, rng=rng)
    x = manifold.random_point()
    y = FixedRankPoint(x.u, np.array([1.0, 1e-4, 1e-8]), x.vt)
    g = rng.standard_normal((5, 4))
    gv, gu = g @ y.vt.T, y.u.T @ g
    derivative = gv * y.s, np.diag(y.u.T @ gv).copy(), y.s[:, None] * gu
    got = manifold.euclidean_to_riemannian_gradient(y, derivative)
    kernel = dln.depth_kernel(y.s, depth).numpy()
    assert_close(got.M / kernel, y.u.T @ gv)
    outside = y.s ** (2 - 2 / depth)
    assert_close(got.up / outside, gv - y.u @ (y.u.T @ gv), scale=1.0)
    assert_close(got.vp / outside, gu.T - y.vt.T @ (y.vt @ gu.T), scale=1.0)
    # The rounding of an inner product is relative to its summands.
    z = manifold.random_tangent_vector(y)
    pairs = zip(derivative, manifold.embedding(y, z), strict=True)
    terms = np.concatenate([(part * other).ravel() for part, other in pairs])
    assert_close(manifold.inner_product(y, got, z), terms.sum(), scale=np.abs(terms).sum())


def test_backends_agree(rng):
    m, n, r = 5, 4, 2
    manifold = EndToEndManifold(m, n, r, 3, rng=rng)
    target, mask = rng.standard_normal((m, n)), rng.uniform(size=(m, n)) < 0.7
    rows, cols = np.nonzero(mask)
    t_target, t_mask = torch.from_numpy(target), torch.from_numpy(mask)

    def residual(u, s, vt):
        return (((u * s) @ vt - target) * mask)[rows, cols]

    @pymanopt.function.pytorch(manifold)
    def by_torch(u, s, vt):
        return 0.5 * (((u * s) @ vt - t_target) * t_mask).square().sum()

    @pymanopt.function.numpy(manifold)
    def by_hand(u, s, vt):
        return 0.5 * (residual(u, s, vt) ** 2).sum()

    def sparse_matrix(values):
        return sparse.csr_array((values, (rows, cols)), shape=(m, n))

    @pymanopt.function.numpy(manifold)
    def gradient(u, s, vt):
        return sparse_matrix(residual(u, s, vt))

    @pymanopt.function.numpy(manifold)
    def hessian(u, s, vt, du, ds, dvt):
        moved = (du * s + u * ds) @ vt + (u * s) @ dvt
        return sparse_matrix(moved[rows, cols])

    @pymanopt.function.numpy(manifold)
    def gradient_by_parts(u, s, vt):
        g = sparse_matrix(residual(u, s, vt))
        return g @ vt.T * s, np.einsum("ik,ik->k", u, g @ vt.T), s[:, None] * (g.T @ u).T

    @pymanopt.function.numpy(manifold)
    def hessian_by_parts(u, s, vt, du, ds, dvt):
        h = sparse_matrix(((du * s + u * ds) @ vt + (u * s) @ dvt)[rows, cols])
        g = sparse_matrix(residual(u, s, vt))
        gv, ug, hv, uh = g @ vt.T, (g.T @ u).T, h @ vt.T, (h.T @ u).T
        by_s = (u * hv).sum(0) + (du * gv).sum(0) + (u * (g @ dvt.T)).sum(0)
        by_u = hv * s + g @ dvt.T * s + gv * ds
        return by_u, by_s, s[:, None] * (uh + (g.T @ du).T) + ds[:, None] * ug

    problems = [
        pymanopt.Problem(manifold, by_torch),
        pymanopt.Problem(
            manifold, by_hand, euclidean_gradient=gradient, euclidean_hessian=hessian
        ),
        pymanopt.Problem(
            manifold, by_hand, euclidean_gradient=gradient_by_parts,
            euclidean_hessian=hessian_by_parts,
        ),
    ]  # fmt: skip
    x = manifold.random_point()
    z = manifold.random_tangent_vector(x)
    costs, gradients, hessians = zip(
        *[(p.cost(x), p.riemannian_gradient(x), p.riemannian_hessian(x, z)) for p in problems],
        strict=True,
    )
    for cost, g, h in zip(costs, gradients, hessians, strict=True):
        assert_close(float(cost), float(costs[0]))
        for got, expected in ((g, gradients[0]), (h, hessians[0])):
            for part, other in zip(got, expected, strict=True):
                assert_close(part, other)
    with pytest.raises(ValueError, match="must both be matrices"):
        manifold.euclidean_to_riemannian_hessian(
            x, problems[0].euclidean_gradient(x), np.ones((m, n)), z
        )


def test_autograd_agrees_with_torch(rng):
    pytest.importorskip("autograd")
    manifold = EndToEndManifold(5, 4, 2, 3, rng=rng)
    target = rng.standard_normal((5, 4))
    t_target = torch.from_numpy(target)

    @pymanopt.function.autograd(manifold)
    def by_autograd(u, s, vt):
        return 0.5 * (((u * s) @ vt - target) ** 4).sum()

    @pymanopt.function.pytorch(manifold)
    def by_torch(u, s, vt):
        return 0.5 * ((u * s) @ vt - t_target).pow(4).sum()

    x = manifold.random_point()
    z = manifold.random_tangent_vector(x)
    ours, theirs = (pymanopt.Problem(manifold, cost) for cost in (by_autograd, by_torch))
    for operator in ("riemannian_gradient", "riemannian_hessian"):
        arguments = (x,) if operator == "riemannian_gradient" else (x, z)
        got, expected = (getattr(p, operator)(*arguments) for p in (ours, theirs))
        for part, other in zip(got, expected, strict=True):
            assert_close(part, other)


@pytest.mark.parametrize("depth", [1, 2, 2.7, 3, 8, math.inf])
@pytest.mark.parametrize("shape", [(4, 5, 2), (3, 3, 3), (4, 3, 1), (3, 1, 1)], ids=str)
def test_exponential_logarithm_and_distance(depth, shape, rng):
    manifold = EndToEndManifold(*shape, depth, rng=rng)
    x = manifold.random_point()
    z = 0.3 * manifold.random_tangent_vector(x)
    y = manifold.exp(x, z)
    found = manifold.log(x, y)
    assert manifold.norm(x, found - z) < 1e-9
    assert abs(manifold.dist(x, y) - manifold.norm(x, z)) < 1e-9
    assert abs(manifold.dist(y, x) - manifold.dist(x, y)) < 1e-9
    middle = manifold.pair_mean(x, y)
    assert abs(manifold.dist(x, middle) - 0.5 * manifold.norm(x, z)) < 1e-9
    assert abs(manifold.dist(middle, y) - 0.5 * manifold.norm(x, z)) < 1e-9
    assert manifold.norm(x, manifold.log(x, x)) < 1e-12
    assert_close(manifold.matrix(manifold.exp(x, manifold.zero_vector(x))), manifold.matrix(x))
    # An approximation for those who ask for hundreds of them.
    quick = EndToEndManifold(*shape, depth, exact_log=False)
    gaps = [manifold.norm(x, quick.log(x, manifold.exp(x, h * z)) - h * z) for h in STEPS * 3]
    if max(gaps) > 1e-12:
        assert_order(STEPS, gaps, 2, 0.4, at_least=True)


@pytest.mark.parametrize("depth", [1.5, 3])
def test_rank_one_is_a_cone(depth, rng):
    """The closed form against the geodesics of higher ranks: a second, remote singular value."""
    manifold = EndToEndManifold(4, 3, 1, depth, rng=rng)
    x = manifold.random_point()
    z = 0.4 * manifold.random_tangent_vector(x)
    cone = manifold.matrix(manifold.exp(x, z))
    direction = torch.from_numpy(manifold.tangent_matrix(x, z))
    expected = exponential(in_library(manifold, x), direction).matrix
    assert_close(cone, expected, ops=1e5)
    # Through the far side of the cone: the sign of both vectors is free.
    y = FixedRankPoint(-x.u, x.s, -x.vt)
    assert manifold.dist(x, y) < 1e-12


def test_points_of_other_manifolds_have_no_logarithm(rng):
    square = EndToEndManifold(3, 3, 3, 3, rng=rng)
    x = square.random_point()
    y = FixedRankPoint(x.u * np.array([1, 1, -1.0]), x.s, x.vt)
    with pytest.raises(ValueError, match="determinants of one sign"):
        square.log(x, y)
    frozen = EndToEndManifold(4, 3, 2, math.inf, rng=rng)
    a, b = (EndToEndManifold(4, 3, 2, 2, rng=rng).random_point() for _ in range(2))
    with pytest.raises(ValueError, match="same row and column spaces"):
        frozen.dist(a, b)
    x = frozen.random_point()
    assert frozen.dist(x, frozen.retraction(x, 0.1 * frozen.random_tangent_vector(x))) > 0
    number = EndToEndManifold(1, 1, 1, 3)
    with pytest.raises(ValueError, match="determinants of one sign"):
        number.log(number.point([[1.0]]), number.point([[-1.0]]))
    with pytest.raises(ArithmeticError, match="keep its rank"):
        number.exp(number.point([[1.0]]), FixedRankTangent(*np.array([[[0.0]], [[-9.0]], [[0.0]]])))


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


def test_points_of_matrices(rng):
    manifold = EndToEndManifold(5, 4, 2, 3)
    x = rng.standard_normal((5, 2)) @ rng.standard_normal((2, 4))
    assert_close(manifold.matrix(manifold.point(x)), x)
    assert manifold.point(np.eye(5, 4, dtype=int)).s.dtype == float
    for bad, message in ((np.ones((4, 5)), "shape"), (np.ones((5, 4)), "must have rank 2")):
        with pytest.raises(ValueError, match=message):
            manifold.point(bad)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 3, 1, 2), ValueError, "m must be at least 1, got 0"),
        ((3, -1, 1, 2), ValueError, "n must be at least 1, got -1"),
        ((3.0, 3, 1, 2), TypeError, "m must be an integer, got 3.0"),
        ((3, True, 1, 2), TypeError, "n must be an integer, got True"),
        ((3, 4, 4, 2), ValueError, "rank"),
        ((3, 4, 0, 2), ValueError, "rank"),
        ((3, 4, 2, 0.5), ValueError, "depth"),
        ((3, 4, 2, math.nan), ValueError, "depth"),
    ],
)
def test_arguments_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        EndToEndManifold(*arguments)


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


@pytest.mark.parametrize("depth", [2, 3, 7, 16])
def test_tables_of_integer_depths_are_those_of_real_ones(depth, rng):
    """Sums over pairs of layers against divided differences."""
    s = np.sort(np.concatenate((rng.uniform(0.5, 1.5, 4), [0.9, 0.9, 1e-3, 1e-8])))[::-1].copy()
    x = np.log(s)
    kernel = log_kernel_of_log(torch.from_numpy(x), Depth(depth), True).numpy()
    sums, differences = (
        (inner_christoffel(x, n, kernel), outer_christoffel(x, n))
        for n in (Depth(depth), Depth(math.nextafter(depth, 20)))
    )
    for got, expected in zip(sums, differences, strict=True):
        assert_close(got / expected, np.ones_like(got), ops=1000)


@pytest.mark.parametrize("depth", [1.2, 1.5, 3.0, 8.0, 17.0, math.inf])
@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_tables_scale(depth, size):
    """The Christoffel symbols are of degree -1 in the point."""
    s, depth = np.array([1.9, 0.8, 0.8, 0.3]), Depth(depth)

    def tables(s):
        x = np.log(s)
        kernel = log_kernel_of_log(torch.from_numpy(x), depth, True).numpy()
        return inner_christoffel(x, depth, kernel), outer_christoffel(x, depth)

    for got, expected in zip(tables(size * s), tables(s), strict=True):
        # A logarithm of size 460 goes in.
        assert_close(size * got, expected, ops=5000)


def test_the_logarithm_that_is_kept_belongs_to_its_points(rng):
    """Another point may share the array of singular values; a vector given out may be changed."""
    manifold = EndToEndManifold(5, 4, 2, 3, rng=rng)
    x = manifold.random_point()
    z = manifold.random_tangent_vector(x) * 0.3
    y, near = manifold.exp(x, z), manifold.exp(x, z * 0.3)
    other = FixedRankPoint(near.u, x.s, near.vt)
    assert manifold.dist(x, y) == pytest.approx(0.3)
    fresh = manifold.dist(*(FixedRankPoint(*(part.copy() for part in p)) for p in (other, y)))
    assert manifold.dist(other, y) == pytest.approx(fresh)
    manifold.log(x, y).M[:] = 0
    assert manifold.dist(x, y) == pytest.approx(0.3)


def test_exact_logarithms_are_not_those_of_chords(rng):
    """Two manifolds that share points keep their logarithms apart."""
    exact, quick = (EndToEndManifold(4, 3, 2, 3, rng=rng, exact_log=e) for e in (True, False))
    x = exact.random_point()
    y = exact.retraction(x, 0.6 * exact.random_tangent_vector(x))
    short = quick.dist(x, y)
    length = exact.dist(x, y)
    assert_close(length, exact.dist(x, FixedRankPoint(*y)))
    assert abs(length - short) > 1e-6
    assert quick.dist(x, y) == short
