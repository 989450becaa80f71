from __future__ import annotations

import math

import geomstats.backend as gs
import numpy as np
import pytest
import torch

from manifolds.geomstats_dln import (
    BalancedMetric,
    BalancedNetworks,
    DepthMetric,
    FixedRankEndToEnd,
    FixedSpacesEndToEnd,
    FullRankEndToEnd,
    HiddenRotations,
    LayeredNetworks,
)
from tests.doors import wrong
from tests.doors.calls import Call, faults_of

X = np.array([[1.0, 0.3], [0.2, 2.0], [0.5, 0.1]])
SPACE, NETWORKS = FullRankEndToEnd(3, 2), BalancedNetworks((2, 3, 2))
METRIC = FullRankEndToEnd(3, 2, equip=False).equip_with_metric(DepthMetric, depth=3).metric
MATRICES, FREE = wrong.matrices(torch.tensor(X)), wrong.matrices(torch.tensor(X), shaped=False)
SIDES = {"m": wrong.COUNT, "n": wrong.COUNT, "equip": wrong.FLAG}
SIGN = {"positive_det": wrong.FLAG, "equip": wrong.FLAG}
DRAWN = {"n_samples": wrong.COUNT, "bound": wrong.POSITIVE}
WIDTHS, RANK = wrong.SEQUENCE, wrong.RANK
CALLS = {
    "FullRankEndToEnd": Call(FullRankEndToEnd, {"m": 3, "n": 3}, {**SIDES, **SIGN}),
    "FixedRankEndToEnd": Call(
        FixedRankEndToEnd, {"m": 3, "n": 3, "rank": 2}, {**SIDES, "rank": RANK}
    ),
    "FixedSpacesEndToEnd": Call(
        FixedSpacesEndToEnd, {"left": X, "right": X}, {"left": FREE, "right": FREE, **SIGN}
    ),
    "FixedSpacesEndToEnd.of": Call(
        FixedSpacesEndToEnd.of, {"point": X}, {"point": FREE, "rank": RANK}
    ),
    "DepthMetric": Call(
        lambda **options: DepthMetric(SPACE, **options),
        {"depth": 3},
        {
            "depth": [*wrong.DEPTH, math.inf],
            "normalized": wrong.NORMALIZED,
            "rtol": [*wrong.RTOL, 1.5],
        },
    ),
    "exp": Call(
        METRIC.exp,
        {"tangent_vec": 0.1 * X, "base_point": X},
        {"tangent_vec": MATRICES, "base_point": MATRICES},
    ),
    "log": Call(
        METRIC.log, {"point": 1.1 * X, "base_point": X}, {"point": MATRICES, "base_point": MATRICES}
    ),
    "dist": Call(
        METRIC.dist, {"point_a": 1.1 * X, "point_b": X}, {"point_a": MATRICES, "point_b": MATRICES}
    ),
    "inner_product": Call(
        METRIC.inner_product,
        {"tangent_vec_a": X, "tangent_vec_b": X, "base_point": X},
        {"tangent_vec_a": MATRICES, "tangent_vec_b": MATRICES, "base_point": MATRICES},
    ),
    "random_point": Call(SPACE.random_point, {"n_samples": 2}, DRAWN),
    "random_point at fixed rank": Call(
        FixedRankEndToEnd(3, 3, 2).random_point, {"n_samples": 2}, DRAWN
    ),
    "random_point of networks": Call(NETWORKS.random_point, {"n_samples": 2}, DRAWN),
    "LayeredNetworks": Call(
        LayeredNetworks, {"widths": (2, 3, 2)}, {"widths": WIDTHS, "equip": wrong.FLAG}
    ),
    "BalancedNetworks": Call(
        BalancedNetworks, {"widths": (2, 3, 2)}, {"widths": WIDTHS, "rank": RANK, **SIGN}
    ),
    "HiddenRotations": Call(HiddenRotations, {"widths": (2, 3, 2)}, {"widths": WIDTHS}),
    "BalancedMetric": Call(
        lambda **options: BalancedMetric(NETWORKS, **options), {}, {"rtol": [*wrong.RTOL, 1.5]}
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_values_are_refused_by_the_name_of_the_argument(name):
    assert not faults_of(CALLS[name])


def test_points_are_read_from_every_make_of_an_array():
    expected = METRIC.dist(gs.array(X), gs.array(1.1 * X))
    for make, x in wrong.makes(torch.tensor(X)):
        if make != "parameter":
            assert gs.allclose(METRIC.dist(x, gs.array(1.1 * X)), expected), make
