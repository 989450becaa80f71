"""Tables of numbers in text files."""

from __future__ import annotations

import csv
import re
import warnings
from pathlib import Path

import numpy as np


def read_table(path: Path) -> np.ndarray:
    """Return a table of numbers, NaN where a cell is empty.

    The first of tabs, semicolons and commas that the first line has separates the cells, else
    blanks; lines that begin with # are skipped; a first line that is not numeric is a header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} must be a text file, got other bytes") from None
    numbered = enumerate(text.splitlines(), start=1)
    lines = [(k, line) for k, line in numbered if line.strip() and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{path} must hold data, got an empty file")
    delimiter = next((mark for mark in "\t;," if mark in lines[0][1]), None)
    if not all(_is_number(cell) for cell in _cells(lines[0][1], delimiter)):
        lines = lines[1:]
    if not lines:
        raise ValueError(f"{path} must hold numbers, got a header alone")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return np.loadtxt([x for _, x in lines], delimiter=delimiter, ndmin=2, comments=None)
    except (ValueError, UserWarning):
        # Read empty cells, or name the line of a mistake.
        return _table_with_holes(lines, delimiter, path)


def _table_with_holes(
    lines: list[tuple[int, str]], delimiter: str | None, path: Path
) -> np.ndarray:
    """Read numbered lines cell by cell."""
    rows: list[list[float]] = []
    for number, line in lines:
        cells = _cells(line, delimiter)
        for column, cell in enumerate(cells, start=1):
            if not _is_number(cell):
                raise ValueError(
                    f"{path} must hold numbers, got {cell[:40]!r} at line {number}, column {column}"
                )
        if rows and len(cells) != len(rows[0]):
            raise ValueError(
                f"{path} must have as many columns in every line, got {len(rows[0])} and "
                f"{len(cells)} at line {number}"
            )
        rows.append([float(cell) if cell.strip() else np.nan for cell in cells])
    return np.array(rows)


def _cells(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return re.split(r"\s+", line.strip())
    return next(csv.reader([line], delimiter=delimiter))


def _is_number(cell: str) -> bool:
    """Tell whether a cell is a number or empty."""
    try:
        float(cell.strip() or 0)
    except ValueError:
        return False
    return True
