from __future__ import annotations

import numpy as np
import pymanopt
import pytest
import torch
from scipy import sparse

import dln_geometry as dln
from dln_geometry.geometry.metric import riemannian_hessian
from dln_geometry.testing import assert_close, assert_order
from manifolds._pymanopt import EndToEndManifold, FixedRankPoint
from tests.manifolds.pymanopt.routes import (
    STEPS,
    a_point,
    each_depth,
    each_shape,
    each_spectrum,
    in_library,
    in_matrices,
    problem_of,
    smooth,
)


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
