"""The command line: ``dln`` or ``python -m dln_geometry``.

Open `app` first: it holds `main` and the commands. `completion` and `photograph` do the two long
jobs, `matrices` holds the short commands on one matrix, `files` the options of files and what is
written, `report` prints, `signals` turns signals into interrupts. The room `tables` reads data. A
new command is a function that `app` registers.
"""

from __future__ import annotations

from dln_geometry.cli.app import main
from dln_geometry.cli.photograph import Puzzle, complete_at_depth, hide, load_photograph
from dln_geometry.tables import read_entries

__all__ = ["Puzzle", "complete_at_depth", "hide", "load_photograph", "main", "read_entries"]
