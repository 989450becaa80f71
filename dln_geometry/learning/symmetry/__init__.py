"""Symmetries of a loss, given by how they move the parameters.

Open `symmetries` first: `Symmetry`, an action with one parameter or a family of them. `actions` has
the named ones, four of them built on `units`; `claims` tests whether a loss has a symmetry. Add one
as a subclass with `shape` and `moved`; automatic differentiation gives `generated` and `pair`.
"""

from __future__ import annotations

from dln_geometry.learning.symmetry.actions import Gauge, Rescale, Rotation, Scale, Translation
from dln_geometry.learning.symmetry.claims import check_symmetric, is_symmetric, symmetry_residual
from dln_geometry.learning.symmetry.symmetries import Symmetry, SymmetryError, as_symmetry
from dln_geometry.learning.symmetry.units import check_names

__all__ = [
    "Gauge",
    "Rescale",
    "Rotation",
    "Scale",
    "Symmetry",
    "SymmetryError",
    "Translation",
    "as_symmetry",
    "check_names",
    "check_symmetric",
    "is_symmetric",
    "symmetry_residual",
]
