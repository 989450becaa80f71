from __future__ import annotations

import geomstats.backend as gs
import pytest
import torch

from dln_geometry.geometry.geodesics import GeodesicError
from dln_geometry.testing import assert_close, assert_mean
from manifolds._geomstats.arrays import as_tensor
from manifolds.geomstats_dln import BalancedNetworks


def test_geodesics_end_where_the_rank_falls():
    space = BalancedNetworks((1, 1, 1))
    one, other = (space.stack([gs.array([[s]])] * 2) for s in (1.0, -1.0))
    with pytest.raises(GeodesicError, match="joined to base_point"):
        space.metric.log(other, one)
    with pytest.raises(GeodesicError, match="change their sign"):
        space.metric.exp(other - one, one)
    assert_close(as_tensor(space.metric.exp(0.3 * (other - one), one)), 0.4 * as_tensor(one))


def test_random_unit_vectors_of_balanced_networks():
    networks = BalancedNetworks((2, 3, 2), 1)
    gs.random.seed(2)
    w = networks.random_point()
    v = networks.metric.random_unit_tangent_vec(w, 4000)
    assert bool(gs.all(networks.is_tangent(v, w, atol=1e-9)))
    assert_close(as_tensor(networks.metric.norm(v, w)), torch.ones(4000, dtype=torch.float64))
    one = as_tensor(networks.metric.random_unit_tangent_vec(w)).flatten()
    assert_mean((as_tensor(v).flatten(1) @ one) ** 2, 1.0 / networks.dim)
    assert networks.metric.random_unit_tangent_vec(gs.stack([w, w])).shape == (2, 2, 3, 3)
    with pytest.raises(ValueError, match="n_vectors must be 1 at several points"):
        networks.metric.random_unit_tangent_vec(gs.stack([w, w]), 2)
