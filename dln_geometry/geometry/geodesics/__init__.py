"""geodesics."""

from __future__ import annotations

from dln_geometry.geometry.geodesics.exponential import (
    as_tolerance,
    exponential,
    geodesic,
    parallel_transport,
)
from dln_geometry.geometry.geodesics.hamilton import Flow
from dln_geometry.geometry.geodesics.hamiltonian import GeodesicError, follow
from dln_geometry.geometry.geodesics.logarithm import distance, logarithm

__all__ = [
    "Flow",
    "GeodesicError",
    "as_tolerance",
    "distance",
    "exponential",
    "follow",
    "geodesic",
    "logarithm",
    "parallel_transport",
]
