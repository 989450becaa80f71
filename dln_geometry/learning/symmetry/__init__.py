"""Symmetries of a loss by their actions: one, or a family at a time."""

from __future__ import annotations

from dln_geometry.learning.symmetry.actions import Rescale, Scale, Translation
from dln_geometry.learning.symmetry.claims import check_symmetric, is_symmetric, symmetry_residual
from dln_geometry.learning.symmetry.symmetries import Symmetry, SymmetryError, as_symmetry
from dln_geometry.learning.symmetry.turns import Gauge, Rotation

__all__ = [
    "Gauge",
    "Rescale",
    "Rotation",
    "Scale",
    "Symmetry",
    "SymmetryError",
    "Translation",
    "as_symmetry",
    "check_symmetric",
    "is_symmetric",
    "symmetry_residual",
]
