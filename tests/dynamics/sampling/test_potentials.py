from __future__ import annotations

import math

import pytest
import torch

from dln_geometry.dynamics.sampling import Potential
from dln_geometry.testing import assert_close, assert_order
from tests.dynamics.noise.routes import F64, quadratic, start_at


@pytest.mark.parametrize(
    ("shape", "rank", "depth"),
    [((3, 3), 3, 2.7), ((4, 3), 3, 2.7), ((3, 5), 3, 2.7), ((4, 5), 2, 2.7),
     ((3, 3), 3, math.inf), ((4, 5), 2, math.inf)],
)  # fmt: skip
def test_drift_is_the_gradient_of_the_potential(shape, rank, depth, generator):
    p = start_at(shape, rank, depth, generator).point()
    excess = 0.0 if math.isinf(depth) else 3.0
    potential = Potential(quadratic(shape, generator), 1.7, (0.8, excess), p)
    a, q = potential.coordinates(p)
    # The repulsion from zero is exact where steps are small.
    h = torch.tensor(1e-14, dtype=F64)
    _, drift, u, s, v, _ = potential.at(a, q, h)
    assert_close((u * s) @ v.mT, p.matrix, ops=1000)
    direction = potential.increment(torch.randn(a.shape, generator=generator, dtype=F64))
    steps = [0.04 / 2**k for k in range(4)]
    expected = -float((drift * direction).sum())
    errors = []
    for e in steps:
        ahead, behind = (potential.at(a + t * direction, q, h)[0] for t in (e, -e))
        errors.append(abs(float(ahead - behind) / (2 * e) - expected))
    assert_order(steps, errors, 2)
