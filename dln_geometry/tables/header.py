"""Recognise a header line and an index column, or refuse the table; nothing is guessed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dln_geometry.tables.grid import CellGrid, ids_of
from dln_geometry.tables.numbers import floats, is_hole, is_integer, is_number

YES, DOUBT, NO = True, None, False
_CORNERS = ("", "unnamed: 0", "row.names", "rownames")


@dataclass(frozen=True)
class Framing:
    """What frames the numbers of a table; `header` and `index` are None where that is doubtful."""

    header: bool | None
    index: bool | None


def has_short_header(grid: CellGrid) -> bool:
    """Tell whether the first line lacks the cell above the index, as R writes it."""
    return len(grid.first) == grid.width - 1


def has_corner(grid: CellGrid) -> bool:
    """Tell whether the first cell says that an index stands below it."""
    corner = len(grid.first) > 1 and grid.first[0].lower() in _CORNERS
    return has_short_header(grid) or (corner and any(map(_is_text, grid.first[1:])))


def matrix_frame(grid: CellGrid, header: bool | None, index: bool | None) -> Framing:
    """Decide what frames a matrix; `header` and `index` are what the user says."""
    if has_short_header(grid):
        counted = _counts([*grid.first]) is YES or any(map(_is_text, grid.first))
        return Framing(header if header is not None else counted or DOUBT, _or(index, YES))
    named = len(grid.values) > 0 and grid.texts[0] == len(grid.values)
    if header is not True and is_number(grid.first[0]):
        named = False  # a word below a number is a mistake
    if header is None and index is None and (crossed := _crossed(grid, named)) is not NO:
        return Framing(crossed, crossed)
    if header is None:
        # A name of the first line counts as an index like those below it.
        start = 1 if (named and index is not False) or index else 0
        header = _header_of(grid, start)
    if index is None:
        index = _index_of(grid, header, named)
    return Framing(header, index)


def triples_header(grid: CellGrid, start: int) -> bool | None:
    """Tell whether the first line is a header above triples that begin at a column."""
    if has_short_header(grid):
        return YES
    cells = grid.first[start : start + 3]
    if _is_text(cells[-1]):
        return YES
    over_numbers = [_is_text(c) and j + start not in grid.text for j, c in enumerate(cells[:2])]
    if any(over_numbers):
        return YES if len(cells) == 3 and not is_number(cells[2]) else DOUBT
    if start == 0 and _names_columns(grid):
        return DOUBT
    # The columns of a frame of pandas without names count from 0.
    numbers = [str(k) for k in range(len(grid.first))]
    return DOUBT if grid.first in (numbers, ["", *numbers[:-1]]) and len(grid.values) else NO


def _names_columns(grid: CellGrid) -> bool:
    """Tell whether years or such may stand above two columns, right of a word above other words.

    No word stands twice, and the two integers of the first line rise, and are consecutive or lie
    outside of what the numbers below reach.
    """
    first = grid.first
    if len(first) != 3 or 0 not in grid.text or not (is_integer(first[1]) and is_integer(first[2])):
        return False
    low, high = int(first[1]), int(first[2])
    names, codes = ids_of(grid, 0, False)
    if not len(grid.values) or len(names) < len(codes) or low >= high:
        return False
    below = grid.values[:, 1:]
    outside = low > np.nanmax(below, initial=-np.inf) or high < np.nanmin(below, initial=np.inf)
    return outside or high == low + 1


def is_counted(grid: CellGrid, column: int) -> bool:
    """Tell whether a column below the first line counts the lines, from any start."""
    x = grid.values[:, column]
    if column in grid.text or len(x) < 2 or not x[0].is_integer():
        return False
    return bool((np.diff(x) == 1).all())


def _header_of(grid: CellGrid, start: int) -> bool | None:
    first = grid.first[start:]
    if not first or not len(grid.values):
        return NO if not any(map(_is_text, grid.first)) else YES
    if any(_is_text(c) and j not in grid.text for j, c in enumerate(grid.first)):
        # Names over numbers. One word among numbers would be a mistake, not a header.
        words = sum(map(_is_text, first))
        corner = start == 0 and _is_text(first[0]) and words == 1 and len(first) > 2
        return YES if words * 2 > len(first) or corner else DOUBT
    if all(map(_is_text, first)):
        return YES
    corner = start == 0 and is_hole(first[0]) and len(first) > 2
    below = [cells[start + corner :] for cells in grid.sample]
    if _is_scale(first[corner:], grid.values[:, start + corner :]):
        return DOUBT
    return _counts(first[corner:], below, grid.values[:, start + corner :], across=True)


def _is_scale(cells: list[str], values: np.ndarray) -> bool:
    """Tell whether numbers may be a scale, such as of wavelengths: they rise, lines below do not.

    By chance, one in 720 lines of six numbers rises.
    """
    if len(cells) < 6 or not all(map(is_number, cells)):
        return False
    rising = (np.diff(values, axis=1) > 0).all(axis=1)
    return bool((np.diff(floats(cells)[0]) > 0).all() and rising.mean() < 0.5)


def _index_of(grid: CellGrid, header: bool | None, named: bool) -> bool | None:
    """Tell whether the first column is an index."""
    if named:
        return YES
    if 0 in grid.text:
        return NO  # The text is refused as a cell, by its line.
    if header and has_corner(grid):
        return YES
    if header and _is_text(grid.first[0]) and len(grid.first) > 2:
        rest = grid.first[1:]
        if all(is_integer(cell) for cell in rest):
            return YES
    if grid.width < 2 or len(grid.values) < 1:
        return NO
    column = [cells[0] for cells in grid.sample]
    other = [cells[1:] for cells in grid.sample]
    if not header:
        column, other = [grid.first[0], *column], [grid.first[1:], *other]
    if len(column) == len(grid.values) + (not header):
        return _counts(column, [list(x) for x in zip(*other, strict=True)], grid.values[:, 1:])
    # A sample that looks like an index is compared with the whole column.
    found = _counts(column, [list(x) for x in zip(*other, strict=True)], grid.values[:, 1:])
    rising = bool((np.diff(grid.values[:, 0]) > 0).all())
    return found if found is NO or rising else NO


def _counts(
    cells: list[str],
    others: list[list[str]] | None = None,
    values: np.ndarray | None = None,
    *,
    across: bool = False,
) -> bool | None:
    """Tell whether cells number the lines (columns) whose cells are `others`.

    0, 1, 2, ... or 1, 2, 3, ... beside numbers with decimals do. Doubtful are such numbers beside
    integers, other integers beside numbers with decimals, and integers in order or far from the
    others, if none stands twice. Two numbers `across` a line may be the header of many lines; two
    below one another are just data.
    """
    if len(cells) < 2 or not all(map(is_integer, cells)):
        return NO
    numbers = [int(cell) for cell in cells]
    steps = {b - a for a, b in pairwise(numbers)}
    consecutive, rising = steps == {1}, min(steps) > 0
    if others is None:
        return YES if consecutive and numbers[0] in (0, 1) else NO
    written = [cell for line in others for cell in line]
    fractions = not any(map(is_integer, written)) and any(map(is_number, written))
    if consecutive and numbers[0] in (0, 1) and len(cells) > 2 and fractions:
        return YES
    if fractions and len(cells) > 2 and len(set(numbers)) == len(numbers):
        return DOUBT
    if (consecutive and (across or len(cells) > 2)) or (rising and (len(cells) > 3 or fractions)):
        return DOUBT
    if values is None or min(values.shape, default=0) < 3 or len(set(numbers)) < len(numbers):
        return NO
    # Names lie elsewhere than values: most of them outside of what the others reach.
    low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
    outside = sum(not low <= number <= high for number in numbers)
    return DOUBT if 2 * outside > len(numbers) else NO


def _crossed(grid: CellGrid, named: bool) -> bool | None:
    """Tell whether first line and first column are names that meet in an empty cell."""
    first, column = grid.first[1:], grid.values[:, 0]
    if grid.first[0] != "" or len(first) < 2 or any(map(is_hole, first)):
        return NO
    if named:
        return YES
    if not all(map(is_integer, first)) or len(set(first)) < len(first) or 0 in grid.text:
        return NO
    # Integers, none of them missing or twice, as a matrix with holes hardly begins.
    if not (column == np.floor(column)).all() or len(np.unique(column)) < len(column):
        return NO
    counted = is_counted(grid, 0) and column[0] in (0, 1)
    return YES if counted and (len(column) > 2 or _counts(first) is YES) else DOUBT


def _is_text(cell: str) -> bool:
    return not is_hole(cell) and not is_number(cell) and bool(floats([cell])[1])


def _or(said: bool | None, found: bool | None) -> bool | None:
    return found if said is None else said
