from __future__ import annotations

import zlib

import geomstats.backend as gs
import numpy as np
import pytest
import torch

# What geomstats' own suite deselects: test cases for which no data are given.
from geomstats.test.conf import pytest_collection_modifyitems  # noqa: F401
from geomstats.test.random import RandomDataGenerator

from manifolds.geomstats_dln import (
    DepthMetric,
    FixedRankEndToEnd,
    FixedSpacesEndToEnd,
    FullRankEndToEnd,
)


def pytest_configure(config):
    for name in ("ignore", "mathprop", "random", "shape", "type", "vec"):
        config.addinivalue_line("markers", f"{name}: mark of geomstats' test cases")


@pytest.fixture(autouse=True)
def _seed_of_the_host(request):
    """Let the host's global generator depend on the test's name, and leave it as it was."""
    before = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        gs.random.seed(zlib.crc32(request.node.name.encode()))
        yield
    np.random.set_state(before)  # noqa: NPY002


class ModestGenerator(RandomDataGenerator):
    """Points around one of middling condition, and short vectors: all geodesics exist.

    Parameters
    ----------
    space : Manifold
    spread : float
        Standard deviation of the entries around the centre.
    """

    def __init__(self, space, spread=0.2, amplitude=8.0):
        super().__init__(space, amplitude=amplitude)
        self.spread = spread
        self.centre = space.projection(self._centre())

    def _centre(self):
        rows = [
            [1.4 - 0.3 * i if i == j else 0.1 * (i - j) for j in range(self.space.shape[-1])]
            for i in range(self.space.shape[-2])
        ]
        centre = gs.array(rows)
        return centre if self.space.point_ndim == 2 else gs.stack([centre] * self.space.shape[0])

    def random_point(self, n_points=1):
        batch = () if n_points == 1 else (n_points,)
        noise = gs.random.normal(size=(*batch, *self.space.shape))
        if self.space.point_ndim == 3:
            noise = self.space.embedding_space.projection(noise)
        return self.space.projection(self.centre + self.spread * noise)


@pytest.fixture(scope="session")
def modest_generator():
    return ModestGenerator


def _equipped(m, n, rank, depth, kind=None, rtol=None):
    """Return a space with the metric of a depth; `rank` is None at full rank."""
    if kind == "fixed spaces":
        rows = [[1.0 - 0.3 * i if i == j else 0.2 * (i - j) for j in range(rank)] for i in range(4)]
        left, right = (gs.array(rows[:size]) for size in (m, n))
        space = FixedSpacesEndToEnd(left, right, positive_det=True)
    elif rank is None:
        space = FullRankEndToEnd(m, n, positive_det=m == n)
    else:
        space = FixedRankEndToEnd(m, n, rank)
    return space.equip_with_metric(DepthMetric, depth=depth, rtol=rtol)


@pytest.fixture(scope="session")
def equipped():
    return _equipped
