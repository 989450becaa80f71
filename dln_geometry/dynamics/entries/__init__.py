"""Products of thin matrices with observed entries: all the work of a completion.

Open `placed` first: it holds the data and chooses between torch's kernels (`pattern`) and a pass in
C (`tiles`, `tiles.c`), which the machine's own compiler translates (`compiled`).
"""

from __future__ import annotations

from dln_geometry.dynamics.entries.compiled import find_compiler, library
from dln_geometry.dynamics.entries.pattern import Pattern, has_compressed_kernels, in_coordinates
from dln_geometry.dynamics.entries.placed import PlacedEntries
from dln_geometry.dynamics.entries.tiles import Tiles, is_compiled

__all__ = [
    "Pattern",
    "PlacedEntries",
    "Tiles",
    "find_compiler",
    "has_compressed_kernels",
    "in_coordinates",
    "is_compiled",
    "library",
]
