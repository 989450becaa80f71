from __future__ import annotations

import geomstats.backend as gs
import numpy as np
import pytest
import torch
from geomstats.learning.frechet_mean import FrechetMean

import dln_geometry as dln
from dln_geometry.testing import assert_close
from manifolds._geomstats.arrays import as_tensor, to_backend
from manifolds.geomstats_dln import (
    BalancedMetric,
    BalancedNetworks,
    BalancedQuotientMetric,
    FullRankEndToEnd,
    HiddenRotationAction,
)
from tests.manifolds.geomstats.routes import balanced_layers, equipped, normal


def test_quotient_is_the_space_of_end_to_end_matrices():
    space = equipped((3, 4, 2))
    assert isinstance(space.quotient, FullRankEndToEnd)
    assert space.quotient.shape == (2, 3)
    assert isinstance(space.quotient.metric, BalancedQuotientMetric)
    assert isinstance(space.metric, BalancedMetric)
    assert space.base().metric.depth == 2
    again = space.new(equip=False)
    assert (again.widths, again.rank, hasattr(again, "metric")) == ((3, 4, 2), 2, False)


@pytest.mark.parametrize(("widths", "rank"), [((3, 4, 2), 1), ((3, 3), 2)])
def test_mean_in_the_quotient_below_full_rank(widths, rank, generator):
    """Near its end the descent lifts vectors as small as roundings of others."""
    space = equipped(widths, rank)
    a = to_backend(dln.end_to_end(balanced_layers(widths, rank, generator)))
    z = space.quotient.to_tangent(to_backend(0.1 * normal(generator, *space.quotient.shape)), a)
    metric = space.quotient.metric
    b, middle = metric.exp(z, a), metric.exp(0.5 * z, a)
    mean = FrechetMean(space.quotient).set(epsilon=1e-18).fit(gs.stack([a, b, middle]))
    assert float((as_tensor(mean.estimate_) - as_tensor(middle)).abs().max()) < 1e-8


def test_derivative_of_the_curvature_is_that_of_the_matrices(generator):
    """geomstats' own for quotients asks for derivatives of O'Neill's tensor."""
    networks = BalancedNetworks((2, 2, 2), positive_det=True)
    networks.equip_with_group_action(HiddenRotationAction(networks.widths))
    quotient = networks.equip_with_quotient()
    below = networks.base()
    x = to_backend(torch.eye(2, dtype=torch.float64) + 0.2 * normal(generator, 2, 2))
    vectors = [to_backend(normal(generator, 2, 2)) for _ in range(4)]
    found = as_tensor(quotient.metric.curvature_derivative(*vectors, x))
    assert_close(found, as_tensor(below.metric.curvature_derivative(*vectors, x)))
    found = as_tensor(quotient.metric.directional_curvature_derivative(*vectors[:2], x))
    other = as_tensor(below.metric.directional_curvature_derivative(*vectors[:2], x))
    assert_close(found, other)


def test_networks_of_one_layer_are_their_own_quotient(generator):
    """Upstairs knows nothing of the depth: second form, shooting and Gauss on the layer itself."""
    space = BalancedNetworks((3, 4), 2)
    space.equip_with_group_action(HiddenRotationAction(space.widths))
    metric, matrices = space.equip_with_quotient().metric, space.base()
    below, spectrum = matrices.metric, torch.tensor([2.0, 1.3], dtype=torch.float64)
    x = dln.Collapsed.random((4, 3), 2, 2, spectrum=spectrum, generator=generator).matrix
    base = to_backend(x)
    one, two = (
        matrices.to_tangent(to_backend(0.1 * normal(generator, 4, 3)), base) for _ in range(2)
    )
    assert float(np.max(np.abs(np.asarray(metric.exp(one, base) - below.exp(one, base))))) < 1e-9
    for value, other in (
        (metric.inner_product(one, two, base), below.inner_product(one, two, base)),
        (metric.curvature(one, two, one, base), below.curvature(one, two, one, base)),
        (metric.sectional_curvature(one, two, base), below.sectional_curvature(one, two, base)),
    ):
        assert_close(as_tensor(value), as_tensor(other), ops=1000)
    layer = space.fiber_bundle.lift(base)
    twice = gs.stack([layer, layer])
    assert_close(as_tensor(space.fiber_bundle.align(layer, twice)), as_tensor(twice))
