from __future__ import annotations

import numpy as np
import pytest
import torch

from manifolds.pymanopt_dln import BalancedManifold, EndToEndManifold
from tests.doors import wrong
from tests.doors.calls import Call, faults_of

X = np.array([[1.0, 0.3], [0.2, 2.0], [0.5, 0.1]])
RNG = [*(v for v in wrong.junk() if v is not None), wrong.NAN, True, -1, 2.7, "3"]
SHARED = {"exact_log": wrong.FLAG, "rng": RNG}
PARTS = {"depth": wrong.DEPTH, "normalized": wrong.NORMALIZED, "rank": wrong.RANK, **SHARED}
CALLS = {
    "EndToEndManifold": Call(
        EndToEndManifold,
        {"m": 3, "n": 2, "rank": 2, "depth": 3},
        {"m": wrong.COUNT, "n": wrong.COUNT, **PARTS},
    ),
    "point": Call(
        EndToEndManifold(3, 2, 2, 3.0).point,
        {"x": X},
        {"x": [*wrong.matrices(torch.tensor(X)), np.ones((3, 2))]},
        ("x",),
    ),
    "BalancedManifold": Call(
        BalancedManifold,
        {"widths": (2, 3, 2)},
        {"widths": wrong.SEQUENCE, "rank": wrong.RANK, **SHARED},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_values_are_refused_by_the_name_of_the_argument(name):
    assert not faults_of(CALLS[name])


def test_points_are_read_from_every_make_of_an_array():
    manifold = EndToEndManifold(3, 2, 2, 3.0)
    for make, x in wrong.makes(torch.tensor(X)):
        assert np.allclose(manifold.matrix(manifold.point(x)), X, atol=1e-14), make
