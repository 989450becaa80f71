"""Triples (row, column, value): recognise them in a table, make entries of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dln_geometry.tables.entries import Doubt, Entries, Shape
from dln_geometry.tables.grid import CellGrid, ids_of
from dln_geometry.tables.header import has_corner, is_counted
from dln_geometry.tables.ids import Ids, Name
from dln_geometry.tables.numbers import floats, is_number, whole

_VALUES = ("rating", "ratings", "value", "values", "score", "stars")
DUPLICATES = ("raise", "mean", "last")
"""What to do with an entry that is given repeatedly."""
# Unix times of this century and some decades before, in seconds or finer units.
_TIMES = 1e8


def fit_triples(grid: CellGrid, index: bool | None) -> bool:
    """Tell whether a table holds triples: two full columns of ids, numbers, perhaps a time.

    Doubt is raised if that cannot be told.
    """
    if has_corner(grid) if index is None else index:
        return _is_entry_table(grid, 1)
    if _is_entry_table(grid, 0):
        return True
    if index is None and grid.width > 3 and is_counted(grid, 0) and _is_entry_table(grid, 1):
        raise Doubt(f"{grid.path} must tell whether its first column is an index", "index")
    if grid.width in (3, 4) and not grid.text:
        lines = grid.values
        if len(grid.first) == grid.width and any(map(is_number, grid.first)):
            lines = np.vstack([floats(grid.first)[0], lines])
        return looks_like_triples(lines, str(grid.path))
    return False


def _is_entry_table(grid: CellGrid, start: int) -> bool:
    """Tell whether every line is an entry, the first perhaps a header."""
    value = start + 2
    if grid.width <= value:
        return False
    first = [""] * (grid.width - len(grid.first)) + grid.first
    alone = is_number(first[value])  # a header has a word above the values
    full = all(_is_id(grid, j, first[j] if alone else None) for j in (start, start + 1))
    numbers = value not in grid.text and not np.isnan(grid.values[:, value]).any()
    return full and numbers and all(_is_time(grid, j) for j in range(value + 1, grid.width))


def _is_id(grid: CellGrid, column: int, first: str | None) -> bool:
    """Tell whether a column is full of whole numbers >= 0 or of words; `first` as the others."""
    x = grid.values[:, column]
    if first is not None:
        number, text = floats([first])
        if text:
            return grid.texts[column] == len(x)
        x = np.concatenate([number, x])
    elif grid.texts[column]:
        return grid.texts[column] == len(x)
    return bool(x.size and are_whole(x).all() and (x >= 0).all())


def _is_time(grid: CellGrid, column: int) -> bool:
    """Tell whether a column holds times: numbers of seconds or more, or words such as dates."""
    if grid.texts[column]:
        return grid.texts[column] == len(grid.values)
    return bool((grid.values[:, column] >= _TIMES).all())


def looks_like_triples(table: np.ndarray, name: str) -> bool:
    """Tell whether an array holds triples, perhaps with a time; Doubt where that is doubtful."""
    count, columns = table.shape
    if columns in (3, 4):
        like = int((are_whole(table[:, :2]) & (table[:, :2] >= 0)).all(axis=1).sum())
        filled = not np.isnan(table[:, :3]).any()
        timed = columns == 3 or bool((table[:, 3] >= _TIMES).all())
        if like == count and filled and timed:
            return True
        if (columns == 3 and 2 * like > count) or (columns == 4 and like == count and filled):
            raise Doubt(
                f"{name} must tell what it holds, got {columns} columns of which the first two "
                f"look like row and column in {like} of {count} lines",
                "layout",
            )
    return False


def check_order(grid: CellGrid, start: int, header: bool) -> None:
    """Refuse a header that names the values in another column than the third."""
    names = [cell.lower() for cell in grid.first] if header else []
    shift = grid.width - len(grid.first)
    found = [j + shift for j, name in enumerate(names) if name in _VALUES]
    if found and start + 2 not in found:
        raise ValueError(
            f"{grid.path} must hold row, column, value in this order, got the header "
            f"{', '.join(grid.first)}"
        )


def are_whole(x: np.ndarray) -> np.ndarray:
    """Tell which numbers are finite and whole."""
    return np.isfinite(x) & (x == np.floor(x))


def from_places(
    rows: Any,
    cols: Any,
    values: Any,
    first: int,
    shape: Shape | None,
    layout: str | None = None,
) -> Entries:
    """Return entries from three columns whose places count from `first`."""
    lengths = [x.shape for x in (rows, cols, values)]
    if len(set(lengths)) != 1 or rows.ndim != 1 or rows.size == 0:
        got = ", ".join(map(str, lengths))
        raise ValueError(f"rows, cols and values must have one shape (k,), got {got}")
    check_values(values)
    places = []
    for name, x in (("rows", rows), ("columns", cols)):
        if x.dtype.kind not in "iuf" or not are_whole(x).all():
            raise ValueError(f"{name} must be whole numbers, got others")
        if x.min() < first:
            raise ValueError(f"{name} must be at least {first}, got {int(x.min())}")
        if x.max() >= 2**62:
            raise ValueError(f"{name} must be less than 2^62, got {int(x.max())}")
        places.append(x.astype(np.int64) - first)
    if shape is None:
        shape = int(places[0].max()) + 1, int(places[1].max()) + 1
    for name, x, count in zip(("rows", "columns"), places, shape, strict=True):
        if x.max() >= count:
            raise ValueError(
                f"{name} must be at most {count - 1 + first} for the shape {shape}, "
                f"got {int(x.max()) + first}"
            )
    layout = layout or f"triples (row, column, value) counted from {first}"
    return Entries(places[0], places[1], values.astype(np.float64), shape, layout)


def from_names(
    rows: tuple[Any, np.ndarray], cols: tuple[Any, np.ndarray], values: np.ndarray
) -> Entries:
    """Return entries whose rows and columns are those that occur: (distinct names, codes) each."""
    check_values(values)
    row_ids, row = Ids.sorted(*rows, "row")
    col_ids, col = Ids.sorted(*cols, "column")
    shape, counted = (len(row_ids), len(col_ids)), "triples (row, column, value) counted from 0"
    if all(ids.names == tuple(range(len(ids))) for ids in (row_ids, col_ids)):
        return Entries(row, col, values, shape, counted)
    named = "triples (row, column, value) by names"
    return Entries(row, col, values, shape, named, row_ids, col_ids)


def check_values(values: np.ndarray) -> None:
    """Refuse values that are no finite real numbers."""
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise ValueError("values must be finite numbers, got others")


def first_duplicate(rows: np.ndarray, cols: np.ndarray, width: int) -> tuple[int, int] | None:
    """Return the positions of the first pair of entries at one place.

    Examples
    --------
    >>> import numpy as np
    >>> dln.tables.first_duplicate(np.array([0, 1, 0]), np.array([1, 0, 1]), 2)
    (0, 2)
    """
    key = rows * width + cols
    ordered = np.sort(key)
    if not (ordered[1:] == ordered[:-1]).any():
        return None  # a sort of the places takes four times as long
    order = np.argsort(key, kind="stable")
    same = np.flatnonzero(key[order[1:]] == key[order[:-1]])
    k = same[np.argmin(order[same + 1])]
    return int(order[k]), int(order[k + 1])


def without_duplicates(entries: Entries, rule: str) -> Entries:
    """Return every entry once, with the mean or the last of its values, and a note of it.

    Examples
    --------
    >>> import numpy as np
    >>> entries = dln.tables.Entries(
    ...     np.array([0, 0]), np.array([1, 1]), np.array([2.0, 4.0]), (1, 2), "triples"
    ... )
    >>> dln.tables.without_duplicates(entries, "mean").values
    array([3.])
    """
    n = entries.shape[1]
    key, inverse = np.unique(entries.rows * n + entries.cols, return_inverse=True)
    if (more := len(inverse) - len(key)) == 0:
        return entries
    merged = np.empty(len(key))
    if rule == "mean":
        merged = np.bincount(inverse, entries.values) / np.bincount(inverse)
    else:
        merged[inverse] = entries.values  # later ones overwrite
    note = f"{more} entries are repeated: {'the mean' if rule == 'mean' else 'the last'} counts"
    return replace(
        entries, rows=key // n, cols=key % n, values=merged, notes=(*entries.notes, note)
    )


def as_duplicates(rule: Any) -> str:
    """Return a rule for entries that are given repeatedly; ValueError for others.

    Examples
    --------
    >>> dln.tables.as_duplicates("mean")
    'mean'
    """
    if rule not in DUPLICATES:
        raise ValueError(f"duplicates must be one of {', '.join(DUPLICATES)}, got {rule!r}")
    return rule


def pairs_of(
    grid: CellGrid, sides: tuple[Ids | None, Ids | None], first: int
) -> tuple[list[Name], list[Name], tuple[str, ...]]:
    """Return the rows and columns that a table lists, as `sides` name them, and notes.

    Where `sides` have no names, places count from `first`.
    """
    notes, start = list(grid.notes), int(has_corner(grid) and grid.width > 2)
    if grid.width < start + 2:
        raise ValueError(f"{grid.path} must have columns row and column, got {grid.width}")
    cells = [""] * (grid.width - len(grid.first)) + grid.first
    header = not any(
        is_number(cell) or (ids is not None and cell in ids)
        for cell, ids in zip(cells[start : start + 2], sides, strict=True)
    )
    if header:
        notes.append(f"line {grid.line_of(-1)} of {grid.path.name} is read as a header")
    if grid.width > start + 2:
        notes.append(f"columns of {grid.path.name} after the second are left out")
    found = []
    for j, ids in zip((start, start + 1), sides, strict=True):
        names, codes = ids_of(grid, j, header)
        if ids is None and not all(is_number(name) for name in names):
            raise ValueError(f"{grid.path} must hold places, whole numbers, got words")
        named = [int(float(x)) - first if ids is None else _named(x, ids) for x in names]
        found.append([named[code] for code in codes])
    return found[0], found[1], tuple(notes)


def _named(cell: str, ids: Ids) -> Name:
    """Return a cell as names of a side write it."""
    number = whole(cell)
    return cell if cell in ids or number is None else number
