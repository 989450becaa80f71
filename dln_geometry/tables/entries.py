"""What is read: a `Table` (a matrix with holes), `Entries` (places and values), or a `Doubt`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dln_geometry.tables.ids import Ids

Shape = tuple[int, int]
_CHOICES = {
    "layout": 'layout="triples" or layout="matrix"',
    "header": "header=True or header=False",
    "index": "index=True or index=False",
    "decimal": 'decimal=","',
}


@dataclass(frozen=True)
class Table:
    """A matrix, NaN where an entry is unknown; names of its sides, None where places count.

    `notes` are sentences about what was skipped or assumed, for the user to read.

    Examples
    --------
    >>> table = dln.tables.as_table([[1.0, None], [0.5, 2.0]])
    >>> table.values, table.rows is None
    (array([[1. , nan],
           [0.5, 2. ]]), True)
    """

    values: np.ndarray
    rows: Ids | None = None
    columns: Ids | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def shape(self) -> Shape:
        """The shape (m, n)."""
        return self.values.shape[0], self.values.shape[1]

    def entries(self) -> Entries:
        """Return the known entries; ValueError if there is none."""
        rows, cols = np.nonzero(~np.isnan(self.values))
        if rows.size == 0:
            raise ValueError("a table must hold a known entry, got NaN alone")
        values = self.values[rows, cols]
        return Entries(
            rows, cols, values, self.shape, "matrix", self.rows, self.columns, self.notes
        )


@dataclass(frozen=True)
class Entries:
    """Observed entries of a matrix: places from 0, values, the shape (m, n), how it was read.

    `row_ids` and `col_ids` name the rows and columns, and are None where places count.

    Examples
    --------
    >>> entries = dln.tables.as_entries([[1.0, None], [None, 2.0]])
    >>> entries.rows, entries.values, entries.shape
    (array([0, 1]), array([1., 2.]), (2, 2))
    """

    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    shape: Shape
    layout: str
    row_ids: Ids | None = None
    col_ids: Ids | None = None
    notes: tuple[str, ...] = field(default=())


class Doubt(ValueError):
    r"""A file may mean two things; `option` is the name of the option that decides.

    Attributes
    ----------
    message, option : str
        What is doubtful, and ``"layout"``, ``"header"``, ``"index"`` or ``"decimal"``.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "table.csv"
    ...     _ = file.write_text("1,2,3,4\n5,6,7,8\n")
    ...     try:
    ...         dln.tables.read_entries(file)
    ...     except dln.tables.Doubt as doubt:
    ...         print(doubt.option)
    layout
    """

    def __init__(self, message: str, option: str) -> None:
        super().__init__(f"{message}: give {_CHOICES[option]}")
        self.message, self.option = message, option

    def __reduce__(self) -> tuple[type[Doubt], tuple[str, str]]:
        return Doubt, (self.message, self.option)
