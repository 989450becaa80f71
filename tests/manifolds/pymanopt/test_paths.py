from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dln_geometry.geometry.geodesics import exponential
from dln_geometry.testing import assert_close, assert_order
from manifolds._pymanopt import EndToEndManifold, FixedRankPoint, FixedRankTangent
from tests.manifolds.pymanopt.routes import STEPS, in_library


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
