from __future__ import annotations

import math

import numpy as np
import pymanopt
import pytest
import torch
from pymanopt.manifolds import FixedRankEmbedded
from pymanopt.optimizers import (
    ConjugateGradient,
    NelderMead,
    ParticleSwarm,
    SteepestDescent,
    TrustRegions,
)

from dln_geometry.testing import assert_close
from manifolds._pymanopt import BalancedManifold, EndToEndManifold, FixedRankPoint


def completion(manifold, target, mask):
    """Return the problem of completing a matrix from the entries of a mask."""
    a, w = torch.from_numpy(target), torch.from_numpy(mask.astype(float))

    if isinstance(manifold, EndToEndManifold):

        @pymanopt.function.pytorch(manifold)
        def cost(u, s, vt):
            return 0.5 * (w * ((u * s) @ vt - a).square()).sum()

    else:

        @pymanopt.function.pytorch(manifold)
        def cost(*layers):
            x = layers[0]
            for layer in layers[1:]:
                x = layer @ x
            return 0.5 * (w * (x - a).square()).sum()

    return pymanopt.Problem(manifold, cost)


def near(manifold, target, rng, size=0.3):
    """Return a point that is not far from a matrix."""
    x = manifold.point(target)
    return manifold.retraction(x, size * manifold.random_tangent_vector(x))


@pytest.mark.parametrize("depth", [1, 2, 2.7, 3, 8, math.inf])
@pytest.mark.parametrize("shape", [(8, 7, 2), (3, 3, 3)], ids=str)
@pytest.mark.parametrize("optimizer", [SteepestDescent, ConjugateGradient, TrustRegions])
def test_gradient_methods_find_the_matrix(depth, shape, optimizer, rng):
    m, n, r = shape
    manifold = EndToEndManifold(m, n, r, depth, rng=rng)
    target = manifold.matrix(manifold.random_point())
    mask = rng.uniform(size=(m, n)) < (0.8 if r < min(m, n) else 1.1)
    problem = completion(manifold, target, mask)
    start = near(manifold, target, rng)
    result = optimizer(verbosity=0, max_iterations=300, min_gradient_norm=1e-8).run(
        problem, initial_point=start
    )
    # Trust regions stop by the gradient, 1e-8 over the root of the smallest curvature.
    assert result.cost < (1e-14 if optimizer is TrustRegions else 1e-10)
    assert np.linalg.norm(manifold.matrix(result.point) - target) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 2.7, 3, 8])
def test_trust_regions_complete_a_matrix_from_ten_random_starts(depth, rng):
    m, n, r = 12, 10, 2
    manifold = EndToEndManifold(m, n, r, depth, rng=rng)
    target = rng.standard_normal((m, r)) @ rng.standard_normal((r, n))
    problem = completion(manifold, target, rng.uniform(size=(m, n)) < 0.85)
    for _ in range(10):
        result = TrustRegions(verbosity=0, max_iterations=200, min_gradient_norm=1e-10).run(
            problem, initial_point=manifold.random_point()
        )
        assert result.gradient_norm < 1e-10
        assert result.cost < 1e-18
        # Superlinear: no first-order method is there after this many iterations.
        assert result.iterations < 60


@pytest.mark.parametrize("optimizer", [SteepestDescent, ConjugateGradient, TrustRegions])
@pytest.mark.parametrize(("widths", "rank"), [((7, 8, 8), 2), ((3, 3, 3, 3), 3)], ids=str)
def test_gradient_methods_on_balanced_networks(widths, rank, optimizer, rng):
    manifold = BalancedManifold(widths, rank, rng=rng)
    x = manifold.random_point()
    target = manifold.product(x)
    mask = rng.uniform(size=target.shape) < (0.8 if rank < min(target.shape) else 1.1)
    problem = completion(manifold, target, mask)
    start = manifold.retraction(x, 0.3 * manifold.random_tangent_vector(x))
    # The fibre of the target consists of minimisers: the Hessian is singular along it.
    result = optimizer(verbosity=0, max_iterations=300, min_gradient_norm=1e-8).run(
        problem, initial_point=start
    )
    # Trust regions stop by the gradient, 1e-8 over the root of the smallest curvature.
    assert result.cost < (1e-14 if optimizer is TrustRegions else 1e-10)


def test_steepest_descent_upstairs_is_that_downstairs(rng):
    """The same line searches, the same iterates: the submersion, seen by an optimizer."""
    widths, rank = (5, 4, 6), 2
    up = BalancedManifold(widths, rank, rng=rng)
    down = EndToEndManifold(6, 5, rank, 2, rng=rng)
    x = up.random_point()
    target = rng.standard_normal((6, 5))
    mask = np.ones((6, 5), bool)
    results = [
        SteepestDescent(verbosity=0, max_iterations=12).run(
            completion(manifold, target, mask), initial_point=start
        )
        for manifold, start in ((up, x), (down, down.point(up.product(x))))
    ]
    assert_close(up.product(results[0].point), down.matrix(results[1].point), condition=1e5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [NelderMead, ParticleSwarm])
@pytest.mark.parametrize(
    "manifold",
    [
        EndToEndManifold(3, 3, 1, 3, rng=1),
        EndToEndManifold(3, 2, 1, 1, rng=2),
        EndToEndManifold(3, 3, 2, 2.7, rng=3, exact_log=False),
        EndToEndManifold(4, 3, 2, math.inf, rng=4, exact_log=False),
        EndToEndManifold(2, 2, 2, 4, rng=5, exact_log=False),
        BalancedManifold((3, 2, 3), 1, rng=6, exact_log=False),
        BalancedManifold((2, 3, 2), 2, rng=7, exact_log=False),
    ],
    ids=str,
)
def test_methods_without_derivatives_run(optimizer, manifold):
    upstairs = isinstance(manifold, BalancedManifold)
    matrix = manifold.product if upstairs else manifold.matrix
    target = matrix(manifold.random_point())
    costs = []

    @pymanopt.function.numpy(manifold)
    def cost(*parts):
        costs.append(0.5 * np.sum((matrix(parts) - target) ** 2))
        return costs[-1]

    result = optimizer(verbosity=0, max_iterations=8).run(pymanopt.Problem(manifold, cost))
    first = costs[: manifold.dim + 1]
    assert result.iterations == 8
    assert math.isfinite(result.cost)
    assert result.cost < min(first)


def test_nelder_mead_along_geodesics_of_networks():
    """Exact logarithms: the mean of the simplex by the host's own descent."""
    manifold = BalancedManifold((3, 2, 3), 1, rng=6)
    target = manifold.product(manifold.random_point())
    costs = []

    @pymanopt.function.numpy(manifold)
    def cost(*parts):
        costs.append(0.5 * np.sum((manifold.product(parts) - target) ** 2))
        return costs[-1]

    result = NelderMead(verbosity=0, max_iterations=5).run(pymanopt.Problem(manifold, cost))
    assert result.cost < min(costs[: manifold.dim + 1])


def test_depth_one_is_the_manifold_of_the_host(rng):
    """Where the host's own manifold works at all: values apart, first order."""
    ours, host = EndToEndManifold(6, 5, 3, 1, rng=rng), FixedRankEmbedded(6, 5, 3)
    x = ours.random_point()
    g = rng.standard_normal((6, 5))
    derivative = g @ x.vt.T * x.s, np.diag(x.u.T @ g @ x.vt.T), x.s[:, None] * (x.u.T @ g)
    gradient = ours.euclidean_to_riemannian_gradient(x, derivative)
    theirs = host.euclidean_to_riemannian_gradient(x, derivative)
    for part, other in zip(gradient, theirs, strict=True):
        assert_close(part, other, condition=100)
    assert_close(ours.inner_product(x, gradient, gradient), host.inner_product(x, theirs, theirs),
                 condition=100)  # fmt: skip
    moved = ours.retraction(x, gradient)
    u, s, vt = host.retraction(x, theirs)
    assert_close(ours.matrix(moved), (u * s) @ vt, condition=100)
    back, their_back = ours.transport(x, moved, gradient), host.transport(x, moved, theirs)
    for part, other in zip(back, their_back, strict=True):
        assert_close(part, other, condition=100)
    equal = FixedRankPoint(x.u, np.full(3, 0.8), x.vt)
    derivative = g @ x.vt.T * 0.8, np.diag(x.u.T @ g @ x.vt.T), 0.8 * (x.u.T @ g)
    with np.errstate(all="ignore"):
        lost = host.euclidean_to_riemannian_gradient(equal, derivative).M
    kept = ours.euclidean_to_riemannian_gradient(equal, derivative).M
    assert_close(kept, x.u.T @ g @ x.vt.T)
    assert not np.allclose(lost, kept)
