"""The cells of a text table as numbers, and as names in the columns that may hold ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from dln_geometry.tables.entries import Doubt
from dln_geometry.tables.memory import Budget
from dln_geometry.tables.numbers import advice, floats, is_hole, is_number, whole, with_point
from dln_geometry.tables.text import TextFile, split_line

NAMED = 3
"""Number of leading columns that may hold names: an index, a row, a column."""
_CELLS = 2**18


@dataclass
class Labels:
    """The cells of a column as names: distinct ones in order of occurrence, a code for each row."""

    first: dict[str, int] = field(default_factory=dict)
    codes: list[np.ndarray] = field(default_factory=list)
    kept: bool = True

    def add(self, cells: list[str], numbers: np.ndarray) -> None:
        """Append cells; a column with fractions names nothing and is dropped."""
        if self.kept and bool(np.any(numbers != np.floor(numbers), where=~np.isnan(numbers))):
            self.kept, self.first, self.codes = False, {}, []
        if self.kept:
            for cell in dict.fromkeys(cells):
                self.first.setdefault(cell, len(self.first))
            codes = map(self.first.__getitem__, cells)
            self.codes.append(np.fromiter(codes, dtype=np.int32, count=len(cells)))

    def joined(self) -> np.ndarray:
        """Return the codes of all rows."""
        return np.concatenate(self.codes or [np.empty(0, np.int32)])


@dataclass
class CellGrid:
    """A table whose first line stands apart, for it may be a header.

    `values` (rows, columns) holds the other lines, NaN for holes and text; ``text[j]`` is the first
    cell of column j that is text, as (row, cell), ``texts[j]`` their number; `labels` the names of
    the leading columns; `sample` the first lines as they are written.
    """

    file: TextFile
    first: list[str]
    values: np.ndarray
    text: dict[int, tuple[int, str]]
    texts: np.ndarray
    labels: list[Labels]
    sample: list[list[str]]
    notes: list[str]

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.file.path

    @property
    def width(self) -> int:
        """The number of columns."""
        return self.values.shape[1]

    def line_of(self, row: int) -> int:
        """Return the line of a row of `values`; -1 is the first line."""
        return self.file.line_of(row + 1)

    def no_number(self, row: int, column: int, cell: str) -> ValueError:
        """Return the error for a cell that is no number."""
        where = f"line {self.line_of(row)}, column {column + 1}"
        message = f"{self.path} must hold numbers, got {cell[:40]!r} at {where}"
        more = advice(cell)
        return Doubt(message + more, "decimal") if more else ValueError(message)


def read_grid(
    path: Path, budget: Budget, *, delimiter: str | None = None, decimal: str = "."
) -> CellGrid:
    """Read a text table; ValueError for lines of different lengths."""
    if decimal not in (".", ","):
        raise ValueError(f"decimal must be a point or a comma, got {decimal!r}")
    file = TextFile(path, budget, delimiter)
    if decimal == file.delimiter:
        raise ValueError(f"decimal must differ from the delimiter, got {decimal!r} for both")
    chunks = file.chunks(_CELLS)
    first = next(chunks, [None])[0]
    if first is None:
        raise ValueError(f"{path} must hold data, got no line of data")
    if decimal == ",":
        (first,) = _with_points(file, 0, [first])
    first = list(map(str.strip, first))
    blocks, sample, labels = [], [], [Labels() for _ in range(NAMED)]
    text: dict[int, tuple[int, str]] = {}
    count, width, texts = 0, len(first), np.zeros(len(first) + 1, dtype=np.int64)
    for rows in chunks:
        if not blocks:
            # A header may be one cell shorter than the lines below it.
            width = len(rows[0]) if len(rows[0]) == len(first) + 1 else len(first)
        if set(map(len, rows)) != {width}:
            k = next(k for k, cells in enumerate(rows) if len(cells) != width)
            raise ValueError(
                f"{path} must have as many columns in every line, got {width} and {len(rows[k])} "
                f"at line {file.line_of(count + k + 1)}"
            )
        if decimal == ",":
            rows = _with_points(file, count + 1, rows)
        sample = sample or [list(map(str.strip, cells)) for cells in rows[:1000]]
        block, leading, found = _block(rows)
        for column, places in found.items():
            cell = rows[places[0]][column].strip()
            text.setdefault(column, (count + places[0], cell))
            texts[column] += len(places)
        for column, (own, cells) in enumerate(zip(labels, leading, strict=False)):
            own.add(cells, block[:, column])
        blocks.append(block)
        count += len(rows)
        names = sum(len(own.first) for own in labels)
        budget.need(16.0 * count * width + 12.0 * count + 120.0 * names, f"{path.name} as numbers")
    _check_comments(file, width)
    values = np.concatenate(blocks) if blocks else np.empty((0, width))
    notes = [*file.notes, *_skipped(file)]
    return CellGrid(file, first, values, text, texts, labels, sample, notes)


def without_last(grid: CellGrid) -> CellGrid:
    """Return the grid without its last column if every line, the first too, ends with nothing."""
    last = grid.width - 1
    same = len(grid.first) == grid.width and grid.width > 1 and grid.first[-1] == ""
    if not same or not np.isnan(grid.values[:, -1]).all() or last in grid.text:
        return grid
    if any(cells[-1] for cells in grid.sample):
        return grid
    grid.values, grid.first = grid.values[:, :-1], grid.first[:-1]
    grid.sample = [cells[:-1] for cells in grid.sample]
    grid.notes.append("every line ends with a delimiter: the empty last column is left out")
    return grid


def ids_of(grid: CellGrid, column: int, header: bool) -> tuple[list[str], np.ndarray]:
    """Return the distinct names of a column and the code of each row; refuse cells without one."""
    own = grid.labels[column]
    found = grid.values[:, column]
    if not header:
        found = np.concatenate([floats([grid.first[column]])[0], found])
    if (fractions := np.flatnonzero((found != np.floor(found)) & ~np.isnan(found))).size:
        row = int(fractions[0])
        raise ValueError(
            f"{grid.path} must name rows and columns by whole numbers or words, got "
            f"{found[row]:g} at line {grid.line_of(row - (not header))}, column {column + 1}"
        )
    names, codes = dict(own.first), own.joined()
    if not header:
        code = names.setdefault(grid.first[column], len(names))
        codes = np.concatenate([np.array([code], dtype=codes.dtype), codes])
    for name, code in names.items():
        if is_hole(name):
            row = int(np.flatnonzero(codes == code)[0]) - (0 if header else 1)
            raise ValueError(
                f"{grid.path} must name a row and a column in every line, got {name!r} at line "
                f"{grid.line_of(row)}, column {column + 1}"
            )
    return list(names), codes


def as_names(cells: list[str]) -> list[str | int]:
    """Return integers if every cell is one ("7", "7.0"), else the cells: "007" is a name."""
    numbers = [whole(cell) for cell in cells]
    return [n for n in numbers if n is not None] if None not in numbers else list(cells)


def _with_points(file: TextFile, start: int, rows: list[list[str]]) -> list[list[str]]:
    """Return lines with a point before the decimals; refuse numbers that have one."""
    changed = [[with_point(cell.strip()) for cell in cells] for cells in rows]
    for k, cells in enumerate(changed):
        if None in cells:
            column = cells.index(None)
            raise ValueError(
                f"{file.path} must have a comma before decimals, got {rows[k][column]!r} at line "
                f"{file.line_of(start + k)}, column {column + 1}"
            )
    return [[cell or "" for cell in cells] for cells in changed]


def _block(
    rows: list[list[str]],
) -> tuple[np.ndarray, list[list[str]], dict[int, list[int]]]:
    """Return lines as numbers, their leading columns, and the rows of each column that are text."""
    width, found = len(rows[0]), {}
    leading = [_stripped([cells[j] for cells in rows]) for j in range(min(NAMED, width))]
    if width <= 16:  # by columns: one of text does not slow the others
        block = np.empty((len(rows), width))
        for j in range(width):
            cells = leading[j] if j < NAMED else _stripped([cells[j] for cells in rows])
            block[:, j], text = floats(cells)
            if text:
                found[j] = text
        return block, leading, found
    values, text = floats(_stripped(list(chain.from_iterable(rows))))
    for place in text:
        found.setdefault(place % width, []).append(place // width)
    return values.reshape(len(rows), width), leading, found


def _stripped(cells: list[str]) -> list[str]:
    """Return cells without outer blanks; most tables have none."""
    joined = "".join(cells)
    padded = " " in joined or "\t" in joined or not joined.isprintable()
    return list(map(str.strip, cells)) if padded else cells


def _skipped(file: TextFile) -> list[str]:
    if not file.comments:
        return []
    count, line = len(file.comments), file.comments[0][0]
    many = "comment is" if count == 1 else "comments are"
    return [f"{count} {many} skipped, the first at line {line}"]


def _check_comments(file: TextFile, width: int) -> None:
    """Refuse lines after the first of data that begin with # but may be data."""
    for line, comment in file.comments:
        cells = split_line(comment.lstrip("#% "), file.delimiter)
        if width > 1 and len(cells) == width and any(map(is_number, cells)):
            raise ValueError(
                f"{file.path} must tell comments from data, got {comment[0]!r} before as many "
                f"cells as elsewhere at line {line}: remove the line or the mark"
            )
    if width == 1 and file.blank is not None:
        raise ValueError(
            f"{file.path} must have no empty line in a single column, got one at line {file.blank}"
        )
