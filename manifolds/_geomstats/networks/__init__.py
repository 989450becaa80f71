"""Networks as geomstats spaces, and their bundle over the end-to-end matrices.

Open `balanced` first: the balanced networks, whose base is a space of matrices. `layers` holds all
networks, `metric` the metric of the balanced ones, `rotations` the group that acts on the hidden
layers, `bundle` and `quotient` the way down to the matrices.
"""

from __future__ import annotations

from manifolds._geomstats.networks.balanced import BalancedNetworks
from manifolds._geomstats.networks.bundle import BalancedBundle
from manifolds._geomstats.networks.layers import FrobeniusMetric, LayeredNetworks
from manifolds._geomstats.networks.metric import BalancedMetric
from manifolds._geomstats.networks.quotient import BalancedQuotientMetric
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
