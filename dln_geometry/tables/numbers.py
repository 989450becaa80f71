"""Cells as numbers: what is a number, what says that a value is unknown."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

# The words by which R, pandas, MATLAB, databases and spreadsheets write an unknown value.
_HOLES = frozenset(
    ("", "na", "n/a", "<na>", "#n/a", "#na", "nan", "-nan", "null", "none", "nil", "nat", "1.#qnan")
)
_INTEGER = re.compile(r"[+-]?\d+")
# A number that a float column made of an integer: ids are written like this beside holes.
_WHOLE = re.compile(r"-?(0|[1-9]\d*)(\.0*)?")
_DECIMAL = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}([.' ]\d{3})+),\d*([eE][+-]?\d+)?")
_GROUPED = re.compile(r"[+-]?\d{1,3}([,' _  ]\d{3})+(\.\d*)?")


def is_hole(cell: str) -> bool:
    """Tell whether a cell says that its value is unknown."""
    return cell.lower() in _HOLES


def is_number(cell: str) -> bool:
    """Tell whether a cell is a number, infinite ones included."""
    return not math.isnan(_value(cell)) and not is_hole(cell)


def is_integer(cell: str) -> bool:
    """Tell whether a cell is written as an integer."""
    return _INTEGER.fullmatch(cell) is not None


def whole(cell: str) -> int | None:
    """Return a whole number that a cell may name; None for others and for leading zeros."""
    return int(cell.partition(".")[0]) if _WHOLE.fullmatch(cell) else None


def floats(cells: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    """Return cells as numbers, NaN for holes and for text, and the places of the text."""
    try:
        # float() takes 1_000, which no program writes.
        if "_" not in "".join(cells):
            found = np.fromiter(map(float, cells), dtype=np.float64, count=len(cells))
            return found, []
    except ValueError:
        pass
    cells = list(cells)
    values = np.fromiter(map(_value, cells), dtype=np.float64, count=len(cells))
    text = [int(k) for k in np.flatnonzero(np.isnan(values)) if not is_hole(cells[k])]
    return values, text


def with_point(cell: str) -> str | None:
    """Return a cell in which a comma stands before the decimals with a point instead.

    None for a number with a point, which may stand between thousands; words stay as they are.
    """
    if _DECIMAL.fullmatch(cell):
        return cell.replace(",", ".")
    return None if "." in cell and is_number(cell) else cell


def advice(cell: str) -> str:
    """Return what to do about a cell that is no number, or an empty text."""
    if _GROUPED.fullmatch(cell):
        return ": remove the marks between thousands, or tell that a comma stands before decimals"
    return ": tell that a comma stands before decimals" if _COMMA.fullmatch(cell) else ""


def _value(cell: str) -> float:
    try:
        return math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan
