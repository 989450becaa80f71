from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import geomstats.backend as gs
from geomstats.learning.geodesic_regression import GeodesicRegression
from manifolds.geomstats_dln import DepthMetric, FullRankEndToEnd

space = FullRankEndToEnd(2, 2, positive_det=True).equip_with_metric(DepthMetric, depth=3)
intercept, slope = gs.array([[1.5, 0.2], [0.1, 1.0]]), gs.array([[0.3, -0.2], [0.1, 0.2]])
times = gs.linspace(-0.5, 0.5, 4)
data = space.metric.exp(gs.stack([t * slope for t in times]), intercept)
begin = gs.array([[1.45, 0.25], [0.1, 1.05]])
fit = GeodesicRegression(
    space, center_X=False, method="riemannian", initialization=gs.stack([begin, 0.8 * slope])
)
fit.optimizer.max_iter = 12
fit.fit(times, data)
assert space.metric.dist(fit.intercept_, intercept) < 0.2 * space.metric.dist(begin, intercept)
"""


@pytest.mark.slow
def test_geodesic_regression_follows_gradients_of_the_exponential_map():
    """On the pytorch backend, which geomstats chooses when it is imported."""
    environment = {**os.environ, "GEOMSTATS_BACKEND": "pytorch"}
    command = [sys.executable, "-c", SCRIPT]
    outcome = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr[-2000:]
