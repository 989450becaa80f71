"""What architectures have: symmetric groups of parameters, read from the graph of a module."""

from __future__ import annotations

from dln_geometry.learning.architecture.groups import Part, SymmetricGroup
from dln_geometry.learning.architecture.search import symmetries_of

__all__ = [
    "Part",
    "SymmetricGroup",
    "symmetries_of",
]
