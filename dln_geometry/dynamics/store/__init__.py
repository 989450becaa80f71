"""Stores of runs: folders in the format of zarr from which a killed run continues.

Open `store` first. `resuming` gives a run its option, `columns` are the arrays that a run adds rows
to, `files` the sealed state beside them; `identity` tells one run from another.
"""

from __future__ import annotations

from dln_geometry.dynamics.store.columns import Column, write_json
from dln_geometry.dynamics.store.files import check_place, read_sealed, write_sealed
from dln_geometry.dynamics.store.identity import digests
from dln_geometry.dynamics.store.resuming import foreign_state, opened, resumable
from dln_geometry.dynamics.store.store import Store

__all__ = [
    "Column",
    "Store",
    "check_place",
    "digests",
    "foreign_state",
    "opened",
    "read_sealed",
    "resumable",
    "write_json",
    "write_sealed",
]
