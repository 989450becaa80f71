"""Mirrors: reflections of the parameters of a network that leave its loss unchanged.

Open `mirrors` first: it builds each kind from the axes on which units live. `reflection` holds what
every mirror can do, `isometry` how the matrix O is stored. A new kind is a classmethod of `Mirror`
that returns `Mirror.of_terms`.
"""

from __future__ import annotations

from dln_geometry.learning.mirror.isometry import as_places, named
from dln_geometry.learning.mirror.mirrors import Mirror, as_mirror
from dln_geometry.learning.mirror.reflection import NotFiniteError, as_scalar, value_and_gradient

__all__ = [
    "Mirror",
    "NotFiniteError",
    "as_mirror",
    "as_places",
    "as_scalar",
    "named",
    "value_and_gradient",
]
