"""Networks as geomstats spaces, and their bundle over the end-to-end matrices.

Open `balanced` first: the balanced networks, with their metric in `metric`. `layers` holds all
networks, `rotations` the group that acts on hidden layers, `bundle` the submersion.
"""

from __future__ import annotations

from manifolds._geomstats.networks.balanced import BalancedNetworks
from manifolds._geomstats.networks.bundle import BalancedBundle, BalancedQuotientMetric
from manifolds._geomstats.networks.layers import FrobeniusMetric, LayeredNetworks
from manifolds._geomstats.networks.metric import BalancedMetric
from manifolds._geomstats.networks.rotations import HiddenRotationAction, HiddenRotations

__all__ = [
    "BalancedBundle",
    "BalancedMetric",
    "BalancedNetworks",
    "BalancedQuotientMetric",
    "FrobeniusMetric",
    "HiddenRotationAction",
    "HiddenRotations",
    "LayeredNetworks",
]
