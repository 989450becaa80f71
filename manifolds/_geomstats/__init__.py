"""The classes behind `manifolds.geomstats_dln`, in two rooms: `matrices` and `networks`.

`arrays` converts between geomstats' backend and the library. Networks stand on matrices.
"""

from __future__ import annotations

from manifolds._geomstats.arrays import as_tensor, to_backend, to_padded
from manifolds._geomstats.matrices import (
    DepthMetric,
    FixedRankEndToEnd,
    FixedSpacesEndToEnd,
    FullRankEndToEnd,
)
from manifolds._geomstats.networks import (
    BalancedBundle,
    BalancedMetric,
    BalancedNetworks,
    BalancedQuotientMetric,
    FrobeniusMetric,
    HiddenRotationAction,
    HiddenRotations,
    LayeredNetworks,
)

__all__ = [
    "BalancedBundle",
    "BalancedMetric",
    "BalancedNetworks",
    "BalancedQuotientMetric",
    "DepthMetric",
    "FixedRankEndToEnd",
    "FixedSpacesEndToEnd",
    "FrobeniusMetric",
    "FullRankEndToEnd",
    "HiddenRotationAction",
    "HiddenRotations",
    "LayeredNetworks",
    "as_tensor",
    "to_backend",
    "to_padded",
]
