"""A text table as a matrix or as entries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dln_geometry.tables.entries import Doubt, Entries, Shape, Table
from dln_geometry.tables.grid import CellGrid, as_names, ids_of, read_grid, without_last
from dln_geometry.tables.header import (
    has_corner,
    has_short_header,
    is_counted,
    matrix_frame,
    triples_header,
)
from dln_geometry.tables.ids import Ids, Name
from dln_geometry.tables.memory import Budget
from dln_geometry.tables.numbers import advice, floats, is_number
from dln_geometry.tables.triples import (
    check_order,
    first_duplicate,
    fit_triples,
    from_names,
    from_places,
    pairs_of,
)


@dataclass(frozen=True)
class TextFormat:
    """What the user says about a text table; None is recognised or refused as doubtful.

    Examples
    --------
    >>> form = dln.tables.TextFormat(header=True, decimal=",")
    >>> form.delimiter is None  # to be recognised
    True
    """

    header: bool | None = None
    index: bool | None = None
    delimiter: str | None = None
    decimal: str = "."


def text_matrix(path: Path, form: TextFormat, budget: Budget, *, whole: bool) -> Table:
    """Read a matrix; with `whole`, every cell must be a number."""
    return _matrix(_grid(path, form, budget), form, whole)


def text_entries(
    path: Path,
    form: TextFormat,
    budget: Budget,
    layout: str,
    first: int | None,
    shape: Shape | None,
    *,
    once: bool = True,
) -> Entries:
    """Read entries; places count from `first`, or from 0 with a `shape`, else they are names.

    With `once`, entries that are given repeatedly are refused.
    """
    grid = _grid(path, form, budget)
    if layout == "auto":
        layout = "triples" if fit_triples(grid, form.index) else "matrix"
        table = None if layout == "triples" else _perhaps_matrix(grid, form, once)
        if table is not None and not np.isnan(table.values).any():
            count, columns = table.shape
            raise Doubt(
                f"{path} must have empty or NaN cells to complete, got {count} x {columns} numbers "
                "without a hole",
                "layout",
            )
    if layout == "matrix":
        table = _matrix(grid, form, False)
        if np.isnan(table.values).all():
            raise ValueError(f"{path} must hold a known entry, got NaN alone")
        return table.entries()
    return _triples(grid, form, first, shape, once)


def text_pairs(
    path: Path, form: TextFormat, budget: Budget, sides: tuple[Ids | None, Ids | None], first: int
) -> tuple[list[Name], list[Name], tuple[str, ...]]:
    """Read rows and columns that a table lists, as `sides` name them, and notes."""
    return pairs_of(_grid(path, form, budget), sides, first)


def _perhaps_matrix(grid: CellGrid, form: TextFormat, once: bool) -> Table:
    """Return a table that looks like no triples as a matrix; a word in it may yet be an id."""
    wrong = sorted(column for column in grid.text if column > 0 or grid.texts[0] < len(grid.values))
    if not wrong or grid.width < 3:
        return _matrix(grid, form, False)
    words = grid.texts[1] == len(grid.values) and not is_number(grid.first[1])
    if len(grid.values) and words:
        _triples(grid, form, None, None, once)  # a matrix has no words there: what is wrong is told
        raise Doubt(
            f"{grid.path} must hold row, column, value and perhaps a time, got further columns",
            "layout",
        )
    row, cell = grid.text[wrong[0]]
    error = grid.no_number(row, wrong[0], cell)
    raise error if isinstance(error, Doubt) else Doubt(str(error), "layout")


def _grid(path: Path, form: TextFormat, budget: Budget) -> CellGrid:
    return without_last(read_grid(path, budget, delimiter=form.delimiter, decimal=form.decimal))


def _matrix(grid: CellGrid, form: TextFormat, whole: bool) -> Table:
    frame = matrix_frame(grid, form.header, form.index)
    header, index, notes = frame.header, frame.index, list(grid.notes)
    if has_short_header(grid) and not (header and index):
        raise ValueError(
            f"{grid.path} must have as many columns in every line, got {len(grid.first)} and "
            f"{grid.width} at line {grid.line_of(0)}"
        )
    if wrong := sorted(column for column in grid.text if column > 0 or index is False):
        # A mistake in a cell is told before any doubt.
        row, cell = grid.text[wrong[0]]
        raise grid.no_number(row, wrong[0], cell)
    if header is None:
        for column, cell in enumerate(grid.first):
            if advice(cell):
                raise grid.no_number(-1, column, cell)
        raise _header_doubt(grid)
    if index is None:
        raise Doubt(f"{grid.path} must tell whether its first column is an index", "index")
    if header and not len(grid.values):
        raise ValueError(f"{grid.path} must hold numbers, got a header alone")
    start = int(index)
    _check_cells(grid, header, start, whole)
    values = _with_first(grid, header)[:, start:]
    if values.shape[1] == 0:
        raise ValueError(f"{grid.path} must hold numbers, got an index alone")
    names = _names_of_columns(grid, start, notes) if header else None
    rows = None
    if index:
        notes.append("the first column is read as an index")
        found, codes = ids_of(grid, 0, header)
        rows = _ids([as_names(found)[c] for c in codes], "row", notes)
    return Table(values, rows, names, tuple(notes))


def _header_doubt(grid: CellGrid) -> Doubt:
    line = ", ".join(grid.first[:6]) + (", ..." if len(grid.first) > 6 else "")
    return Doubt(
        f"{grid.path} must tell whether line {grid.line_of(-1)} ({line}) is a header", "header"
    )


def _names_of_columns(grid: CellGrid, start: int, notes: list[str]) -> Ids | None:
    first = grid.first if has_short_header(grid) else grid.first[start:]
    notes.append(f"line {grid.line_of(-1)} is read as a header")
    return _ids(as_names(first), "column", notes)


def _ids(names: list[Any], what: str, notes: list[str]) -> Ids | None:
    """Return names as ids; none, and a note, where one stands twice."""
    if len(set(names)) == len(names):
        return Ids(names, what)
    notes.append(f"the {what}s are counted, for a name stands twice")
    return None


def _check_cells(grid: CellGrid, header: bool, start: int, whole: bool) -> None:
    """Refuse text and infinite numbers where numbers must be, and holes in a whole matrix."""
    _check_first(grid, header, range(start, grid.width))
    for column, (row, cell) in sorted(grid.text.items()):
        if column >= start:
            raise grid.no_number(row, column, cell)
    _check_numbers(grid, header, range(start, grid.width), whole)


def _check_first(grid: CellGrid, header: bool, columns: range) -> None:
    for column in columns if not header else ():
        if floats([grid.first[column]])[1]:
            raise grid.no_number(-1, column, grid.first[column])


def _check_numbers(grid: CellGrid, header: bool, columns: range, whole: bool) -> None:
    values = _with_first(grid, header)[:, columns.start : columns.stop]
    wrong = ~np.isfinite(values) if whole else np.isinf(values)
    if wrong.any():
        row, column = (int(x[0]) for x in np.nonzero(wrong))
        line, value = grid.line_of(row - (not header)), values[row, column]
        what = "an infinite one" if np.isinf(value) else "an empty cell or NaN"
        raise ValueError(
            f"{grid.path} must hold finite numbers, got {what} at line {line}, "
            f"column {columns.start + column + 1}"
        )


def _with_first(grid: CellGrid, header: bool) -> np.ndarray:
    if header:
        return grid.values
    return np.vstack([floats(grid.first)[0], grid.values])


def _triples(
    grid: CellGrid, form: TextFormat, first: int | None, shape: Shape | None, once: bool
) -> Entries:
    """Return the entries of a table of triples."""
    path, notes = grid.path, list(grid.notes)
    index = has_corner(grid) if form.index is None else form.index
    if form.index is None and not index and grid.width > 4 and is_counted(grid, 0):
        raise Doubt(f"{path} must tell whether its first column is an index", "index")
    start = int(index)
    if grid.width < start + 3:
        raise ValueError(
            f"{path} must have columns row, column, value, got {grid.width - start} columns"
        )
    header = triples_header(grid, start) if form.header is None else form.header
    doubtful, header = header is None, bool(header)
    if has_short_header(grid) and not (header and index):
        raise ValueError(f"{path} must have as many columns in every line, got a short first one")
    if header and not len(grid.values):
        raise ValueError(f"{path} must hold numbers, got a header alone")
    check_order(grid, start, header)
    value = start + 2
    _check_first(grid, header, range(value, value + 1))
    if value in grid.text:
        row, cell = grid.text[value]
        raise grid.no_number(row, value, cell)
    _check_numbers(grid, header, range(value, value + 1), True)
    whole = _with_first(grid, header)
    places, notes = whole[:, start : start + 2], [*notes, *_skipped_columns(grid, start, header)]
    if first is None and shape is None:
        sides = (ids_of(grid, j, header) for j in (start, start + 1))
        rows, cols = ((as_names(names), codes) for names, codes in sides)
        entries = from_names(rows, cols, whole[:, value])
    else:
        for column in (start, start + 1):
            _check_first(grid, header, range(column, column + 1))
            if column in grid.text:
                raise grid.no_number(grid.text[column][0], column, grid.text[column][1])
        entries = from_places(places[:, 0], places[:, 1], whole[:, value], first or 0, shape)
    twice = first_duplicate(entries.rows, entries.cols, entries.shape[1])
    if once and twice is not None:
        lines = " and ".join(str(grid.line_of(k - (not header))) for k in twice)
        pair = places[twice[0]]
        named = ", ".join(
            f"{x:.0f}" if ids is None else repr(ids[place])
            for x, ids, place in zip(
                pair,
                (entries.row_ids, entries.col_ids),
                (entries.rows[twice[0]], entries.cols[twice[0]]),
                strict=True,
            )
        )
        raise ValueError(
            f"{path} must hold every entry once, got ({named}) repeatedly, at lines {lines}"
        )
    if doubtful:
        raise _header_doubt(grid)
    return replace(entries, notes=tuple(notes))


def _skipped_columns(grid: CellGrid, start: int, header: bool) -> list[str]:
    """Say which line and columns are no entries."""
    notes = [f"line {grid.line_of(-1)} is read as a header"] if header else []
    if start:
        notes.append("the first column is read as an index")
    further = range(start + 3, grid.width)
    if further:
        last = "" if len(further) == 1 else f" to {grid.width}"
        names = [grid.first[j - grid.width] for j in further] if header else []
        named = f" ({', '.join(names)})" if names else ""
        notes.append(f"column{'s' if last else ''} {further[0] + 1}{last}{named} left out")
    return notes
