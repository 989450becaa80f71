"""The rooms behind `manifolds.geomstats_dln`."""

from __future__ import annotations

from manifolds._geomstats.arrays import as_tensor, to_backend, to_padded
from manifolds._geomstats.bundle import BalancedBundle
from manifolds._geomstats.fixed_spaces import FixedSpacesEndToEnd
from manifolds._geomstats.layers import FrobeniusMetric, LayeredNetworks
from manifolds._geomstats.metrics import DepthMetric
from manifolds._geomstats.networks import BalancedNetworks
from manifolds._geomstats.quotient import BalancedQuotientMetric
from manifolds._geomstats.rotations import HiddenRotationAction, HiddenRotations
from manifolds._geomstats.spaces import FixedRankEndToEnd, FullRankEndToEnd
from manifolds._geomstats.upstairs import BalancedMetric

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
