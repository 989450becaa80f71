from __future__ import annotations

import math

import numpy as np
import pytest

from dln_geometry.testing import assert_close
from manifolds._pymanopt import EndToEndManifold
from tests.manifolds.pymanopt.routes import a_point, each_depth, each_shape


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
