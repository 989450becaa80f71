"""curvature."""

from __future__ import annotations

from dln_geometry.geometry.curvature.tensors import (
    ricci_curvature,
    riemann_curvature,
    scalar_curvature,
    sectional_curvature,
)

__all__ = [
    "ricci_curvature",
    "riemann_curvature",
    "scalar_curvature",
    "sectional_curvature",
]
