"""Geodesics of the depth-N metric: exponential map, logarithm, distance, parallel transport.

`exponential` and `logarithm` hold the public functions; open `hamilton` first, for the equation in
the roots of the singular values (`root_metric`). `shooting` finds the velocities to the goals of an
`Aim`: `chart` has that of points, and another manifold adds its own.
"""

from __future__ import annotations

from dln_geometry.geometry.geodesics.exponential import exponential, geodesic, parallel_transport
from dln_geometry.geometry.geodesics.hamilton import (
    Flow,
    as_times,
    as_tolerance,
    follow_geodesic,
)
from dln_geometry.geometry.geodesics.logarithm import distance, logarithm
from dln_geometry.geometry.geodesics.rank_loss import GeodesicError, rank_loss
from dln_geometry.geometry.geodesics.root_metric import RootCoordinate
from dln_geometry.geometry.geodesics.shooting import Aim, shoot

__all__ = [
    "Aim",
    "Flow",
    "GeodesicError",
    "RootCoordinate",
    "as_times",
    "as_tolerance",
    "distance",
    "exponential",
    "follow_geodesic",
    "geodesic",
    "logarithm",
    "parallel_transport",
    "rank_loss",
    "shoot",
]
