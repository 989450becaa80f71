from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close, assert_order
from manifolds._pymanopt import BalancedManifold
from tests.manifolds.pymanopt.routes import STEPS, a_network, each_case, listed, problem_of_layers


def skewed_cost(rng, widths):
    """Return a cost of the layers that sees more than their product."""
    weights = [
        torch.from_numpy(rng.standard_normal((after, before))) for before, after in pairwise(widths)
    ]

    def cost(*layers):
        x = layers[0]
        for w in layers[1:]:
            x = w @ x
        parts = sum(
            (torch.sin(w * a) + 0.2 * w.square() * a).sum()
            for w, a in zip(layers, weights, strict=True)
        )
        return x.pow(3).sum() + parts

    return cost


@each_case
@pytest.mark.parametrize("spectrum", [None, 0.8])
def test_taylor_expansion_of_a_cost_of_the_layers(widths, rank, spectrum, rng):
    """Gradient and Hessian along a retraction of second order, with their slopes."""
    manifold = BalancedManifold(widths, rank, rng=rng)
    x = a_network(manifold, rng, spectrum)
    problem = problem_of_layers(manifold, skewed_cost(rng, widths))
    z, w = (manifold.random_tangent_vector(x) for _ in range(2))
    gradient, hz, hw = (
        problem.riemannian_gradient(x), problem.riemannian_hessian(x, z),
        problem.riemannian_hessian(x, w),
    )  # fmt: skip
    slope, curvature = manifold.inner_product(x, gradient, z), manifold.inner_product(x, hz, z)
    ahead, back = (
        np.array([problem.cost(manifold.retraction(x, h * z)) for h in sign * STEPS])
        for sign in (1, -1)
    )
    odd, even = 0.5 * (ahead - back), 0.5 * (ahead + back) - problem.cost(x)
    assert_order(STEPS, np.abs(odd - STEPS * slope), 3, at_least=True)
    assert_order(STEPS, np.abs(even - 0.5 * STEPS**2 * curvature), 4, at_least=True)
    size = manifold.norm(x, hz) + manifold.norm(x, hw)
    one, two = manifold.inner_product(x, hz, w), manifold.inner_product(x, z, hw)
    assert_close(one, two, ops=1000, scale=size)
    for vector in (gradient, hz):
        residual = manifold.to_tangent_space(x, vector) - vector
        assert_close(manifold.norm(x, residual), 0.0, ops=1000, scale=size)


@each_case
def test_retraction_stays_on_the_manifold(widths, rank, rng):
    manifold = BalancedManifold(widths, rank, rng=rng)
    x = manifold.random_point()
    z = manifold.random_tangent_vector(x)
    for length in (0.0, 0.3, 3.0):
        y = listed(manifold.retraction(x, length * z))
        assert bool(dln.is_balanced([torch.from_numpy(w) for w in y]))
        for w in y:
            assert np.linalg.matrix_rank(w) == rank
        if length == 0.0:
            for got, expected in zip(y, listed(x), strict=True):
                assert_close(got, expected, scale=2.0)


@each_case
def test_retraction_is_the_exponential_map_to_second_order(widths, rank, rng):
    manifold = BalancedManifold(widths, rank, rng=rng)
    x = manifold.random_point()
    z = manifold.random_tangent_vector(x)
    gaps = []
    for h in STEPS:
        pairs = zip(
            listed(manifold.exp(x, h * z)), listed(manifold.retraction(x, h * z)), strict=True
        )
        gaps.append(np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs)))
    if max(gaps) > 1e-11:
        assert_order(STEPS, gaps, 3, 0.2, at_least=True)
