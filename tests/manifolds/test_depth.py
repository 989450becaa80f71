from __future__ import annotations

from dln_geometry.support import Depth
from manifolds._depth import depth_at_rank


def test_other_depths_and_full_rank_stay_as_they_are():
    assert depth_at_rank(Depth(1.0), 2, (2, 3)) == 1.0
    assert depth_at_rank(Depth(2.0), 1, (2, 3)) == 2.0
    assert depth_at_rank(Depth("inf"), 1, (2, 3)).infinite
    assert 1.0 < depth_at_rank(Depth(1.0), 1, (2, 3)) < 1.0 + 1e-15
