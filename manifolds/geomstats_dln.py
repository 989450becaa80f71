"""Deep linear networks as geomstats manifolds.

Spaces of end-to-end matrices with the metric of any depth (of full rank, of one rank, or with one
column and one row space, all that moves at infinite depth), the balanced networks over them, and
the bundle that joins the two:

>>> import geomstats.backend as gs
>>> from manifolds.geomstats_dln import DepthMetric, FullRankEndToEnd
>>> space = FullRankEndToEnd(2, 2, positive_det=True).equip_with_metric(DepthMetric, depth=3)
>>> a, b = gs.array([[8.0, 0.0], [0.0, 1.0]]), gs.array([[27.0, 0.0], [0.0, 8.0]])
>>> round(float(space.metric.squared_dist(a, b)), 6)  # N (cube roots differ by 1 and by 1)
6.0

geomstats chooses its backend when it is imported, by the environment variable
``GEOMSTATS_BACKEND``: with ``numpy`` (the default) or ``pytorch`` points go in and come out as
that library's arrays.
"""

from __future__ import annotations

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
]
