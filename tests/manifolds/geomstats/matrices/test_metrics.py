from __future__ import annotations

import math

import geomstats.backend as gs
import pytest
import torch
from geomstats.learning.frechet_mean import FrechetMean

import dln_geometry as dln
from dln_geometry.testing import assert_close
from manifolds._geomstats.arrays import as_tensor, to_backend
from manifolds.geomstats_dln import DepthMetric, FixedRankEndToEnd, FullRankEndToEnd
from tests.manifolds.geomstats.routes import normal


@pytest.mark.parametrize("depth", [1, 2, 2.7, 3, math.inf])
def test_metric_is_that_of_the_library(depth, generator):
    space = FullRankEndToEnd(3, 3, positive_det=True).equip_with_metric(DepthMetric, depth=depth)
    x = torch.eye(3, dtype=torch.float64) + 0.2 * normal(generator, 4, 3, 3)
    p = dln.EndToEnd.of(x, depth)
    z, w = 0.1 * normal(generator, 4, 3, 3), normal(generator, 4, 3, 3)
    metric = space.metric
    base, one, two = (to_backend(v) for v in (x, z, w))
    assert_close(as_tensor(metric.inner_product(one, two, base)), dln.inner(p, z, w))
    assert_close(as_tensor(metric.sharp(one, base)), dln.cometric(p, z))
    assert_close(as_tensor(metric.flat(one, base)), dln.metric(p, z))
    energy = metric.hamiltonian((base, one))
    assert_close(as_tensor(energy), 0.5 * (z * dln.cometric(p, z)).sum((-2, -1)))


def test_distance_along_shared_singular_vectors_is_flat():
    space = FullRankEndToEnd(2, 2, positive_det=True).equip_with_metric(DepthMetric, depth=3)
    a, b = gs.array([[8.0, 0.0], [0.0, 1.0]]), gs.array([[27.0, 0.0], [0.0, 8.0]])
    assert float(space.metric.dist(a, b)) == pytest.approx(math.sqrt(3 * 2))
    middle = space.metric.geodesic(a, end_point=b)(0.5)[0]
    assert_close(as_tensor(middle), [[2.5**3, 0.0], [0.0, 1.5**3]], ops=1000)


@pytest.mark.parametrize("depth", [2.7, math.inf])
def test_mean_of_two_points_and_their_middle_is_the_middle(depth):
    """By geomstats' own descent, which starts at one of the points."""
    space = FullRankEndToEnd(2, 2, positive_det=True).equip_with_metric(DepthMetric, depth=depth)
    a, b = gs.array([[1.4, 0.2], [-0.1, 0.7]]), gs.array([[0.9, -0.3], [0.3, 1.1]])
    middle = space.metric.geodesic(a, end_point=b)(0.5)[0]
    mean = FrechetMean(space).set(epsilon=1e-18)
    found = as_tensor(mean.fit(gs.stack([a, b, middle])).estimate_)
    # The descent stops at a squared step of dim * epsilon.
    assert float((found - as_tensor(middle)).abs().max()) < 1e-8


def test_arrays_keep_their_backend_and_dtype():
    space = FullRankEndToEnd(3, 2).equip_with_metric(DepthMetric, depth=3)
    x = as_tensor(space.random_point()).float()
    result = space.metric.sharp(to_backend(x), to_backend(x))
    assert type(result) is type(gs.zeros(1))
    assert as_tensor(result).dtype == torch.float32
    whole = space.metric.sharp(gs.array([[1, 0], [0, 2], [1, 1]]), [[2, 0], [0, 1], [0, 0]])
    assert as_tensor(whole).dtype == as_tensor(gs.zeros(1)).dtype


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FullRankEndToEnd(3, 2, positive_det=True), "positive_det must be False"),
        (lambda: FixedRankEndToEnd(3, 2, 3), "rank must lie between 1 and 2"),
        (lambda: DepthMetric(FullRankEndToEnd(2, 2), depth=0.5), "depth must be a real number"),
        (
            lambda: DepthMetric(FullRankEndToEnd(3, 2), depth=math.inf),
            r"depth must be finite .* FixedSpacesEndToEnd\(left, right\)",
        ),
        (
            lambda: DepthMetric(FixedRankEndToEnd(3, 3, 2), depth=math.inf),
            r"depth must be finite .* FixedSpacesEndToEnd\(left, right\)",
        ),
        (
            lambda: FullRankEndToEnd(2, 2).metric.parallel_transport(gs.eye(2), gs.eye(2)),
            "direction or end_point must be given",
        ),
        (
            lambda: FixedRankEndToEnd(3, 3, 2).metric.inner_product_derivative_matrix(gs.eye(3)),
            "space must be of full rank",
        ),
    ],
)
def test_doors_say_what_they_want(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_random_unit_vectors_of_several_points():
    space = FullRankEndToEnd(3, 2)
    x = space.random_point(3)
    assert space.metric.random_unit_tangent_vec(x).shape == (3, 3, 2)
    assert space.metric.random_unit_tangent_vec(x[0]).shape == (3, 2)
    assert space.metric.random_unit_tangent_vec(x[0], 4).shape == (4, 3, 2)
    with pytest.raises(ValueError, match="n_vectors must be 1 at several points"):
        space.metric.random_unit_tangent_vec(x, 2)
