"""End-to-end matrices as geomstats spaces, with the metric of any depth.

Open `metrics` first: `DepthMetric` stands on `curvatures`, and that on `coordinates`. `spaces`
holds the matrices of full and of one rank, `fixed_spaces` those between two spaces. A new space
has a `shape`, a `rank` and, if its matrices lie between two spaces, the `frames` of these.
"""

from __future__ import annotations

from manifolds._geomstats.matrices.fixed_spaces import FixedSpacesEndToEnd
from manifolds._geomstats.matrices.metrics import DepthMetric
from manifolds._geomstats.matrices.spaces import FixedRankEndToEnd, FullRankEndToEnd
from manifolds._geomstats.matrices.tangents import without_roundings

__all__ = [
    "DepthMetric",
    "FixedRankEndToEnd",
    "FixedSpacesEndToEnd",
    "FullRankEndToEnd",
    "without_roundings",
]
