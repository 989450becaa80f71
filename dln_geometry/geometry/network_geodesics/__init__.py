"""network_geodesics."""

from __future__ import annotations

from dln_geometry.geometry.network_geodesics.exponential import (
    Framed,
    balanced_geodesic,
    balanced_transport,
    geodesic_of,
)
from dln_geometry.geometry.network_geodesics.frames import LayerBox
from dln_geometry.geometry.network_geodesics.logarithm import (
    balanced_distance,
    balanced_logarithm,
    logarithm_of,
)
from dln_geometry.geometry.network_geodesics.motion import travel

__all__ = [
    "Framed",
    "LayerBox",
    "balanced_distance",
    "balanced_geodesic",
    "balanced_logarithm",
    "balanced_transport",
    "geodesic_of",
    "logarithm_of",
    "travel",
]
