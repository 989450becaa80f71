"""Geodesics of the balanced networks, with the Frobenius metric of their layers.

`exponential` and `logarithm` hold the public functions; open `motion` first, for the equation in
moving frames. `rank_one` has closed forms; the logarithm shoots as in `geodesics`.
"""

from __future__ import annotations

from dln_geometry.geometry.network_geodesics.exponential import (
    balanced_geodesic,
    balanced_transport,
    starting,
)
from dln_geometry.geometry.network_geodesics.frames import LayerBox
from dln_geometry.geometry.network_geodesics.logarithm import (
    aim_at,
    balanced_distance,
    balanced_logarithm,
)
from dln_geometry.geometry.network_geodesics.motion import travel

__all__ = [
    "LayerBox",
    "aim_at",
    "balanced_distance",
    "balanced_geodesic",
    "balanced_logarithm",
    "balanced_transport",
    "starting",
    "travel",
]
