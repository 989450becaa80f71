"""Curvatures of the depth metric: Riemann, sectional, Ricci and scalar.

Open `tensors` first. It contracts the first and second variations of the cometric, which `frames`
makes with all indices explicit; `planes` has the scalar curvature in closed form.
"""

from __future__ import annotations

from dln_geometry.geometry.curvature.tensors import (
    ricci_curvature,
    riemann_curvature,
    scalar_curvature,
    sectional_curvature,
)

__all__ = ["ricci_curvature", "riemann_curvature", "scalar_curvature", "sectional_curvature"]
