"""Tables of numbers from files and arrays: matrices with holes, triples, names of their sides.

Open `files` first: `read_entries` and `read_matrix` choose the reader by suffix. `textual` reads
text tables on `grid` (cells as numbers), `header` (header lines and index columns) and `triples`;
`text` knows encodings, comments and delimiters, `numbers` single cells. `binary` reads files of
numpy and Matrix Market, `arrays` takes arrays in memory. What may mean two things raises `Doubt`,
which names the option that decides.

Text goes through the csv module of Python: readers of larger libraries fill short lines with NaN,
drop columns and rename headers in silence.
"""

from __future__ import annotations

from dln_geometry.tables.arrays import as_entries, as_table
from dln_geometry.tables.entries import Doubt, Entries, Table
from dln_geometry.tables.files import read_entries, read_matrix, read_pairs
from dln_geometry.tables.ids import Ids, as_name, in_iso, load_ids, save_ids
from dln_geometry.tables.ids import Name as Name
from dln_geometry.tables.memory import Budget, as_budget
from dln_geometry.tables.text import as_delimiter
from dln_geometry.tables.textual import TextFormat
from dln_geometry.tables.triples import as_duplicates, first_duplicate, without_duplicates

__all__ = [
    "Budget",
    "Doubt",
    "Entries",
    "Ids",
    "Table",
    "TextFormat",
    "as_budget",
    "as_delimiter",
    "as_duplicates",
    "as_entries",
    "as_name",
    "as_table",
    "first_duplicate",
    "in_iso",
    "load_ids",
    "read_entries",
    "read_matrix",
    "read_pairs",
    "save_ids",
    "without_duplicates",
]
