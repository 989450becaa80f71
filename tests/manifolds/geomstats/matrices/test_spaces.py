from __future__ import annotations

import pytest
import torch

from dln_geometry.testing import assert_close
from manifolds._geomstats.arrays import as_tensor, to_backend
from manifolds.geomstats_dln import FixedRankEndToEnd, FullRankEndToEnd
from tests.manifolds.geomstats.routes import normal, rank_of


@pytest.mark.parametrize(("m", "n", "rank"), [(3, 3, 2), (2, 4, 1), (4, 3, 2)])
def test_dimension_at_fixed_rank_is_the_rank_of_a_jacobian(m, n, rank, generator):
    left, right = normal(generator, m, rank), normal(generator, rank, n)
    parts = torch.autograd.functional.jacobian(lambda a, b: (a @ b).flatten(), (left, right))
    space = FixedRankEndToEnd(m, n, rank)
    assert space.dim == rank_of(torch.cat([p.flatten(1) for p in parts], 1))


def test_projection_flips_the_smallest_singular_value_alone(generator):
    space = FullRankEndToEnd(3, 3, positive_det=True)
    x = normal(generator, 3, 3)
    x = x if float(torch.det(x)) < 0 else -x
    flipped = as_tensor(space.projection(to_backend(x)))
    assert_close(torch.linalg.svdvals(flipped), torch.linalg.svdvals(x))
    assert float(torch.det(flipped)) > 0
    assert_close(torch.linalg.matrix_norm(flipped - x), 2 * torch.linalg.svdvals(x)[-1], ops=1000)
