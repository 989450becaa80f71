"""Which rows of a matrix a process holds: those that DTensor gives it."""

from __future__ import annotations


def width_of(count: int, processes: int) -> int:
    """Return the most rows that a process holds."""
    return -(-count // processes)


def rows_of(count: int, processes: int, process: int) -> tuple[int, int]:
    """Return the first row of a process and the one after its last; the last processes may be empty.

    Examples
    --------
    >>> [dln.sharded.rows_of(5, 4, k) for k in range(4)]
    [(0, 2), (2, 4), (4, 5), (5, 5)]
    """
    width = width_of(count, processes)
    return min(process * width, count), min((process + 1) * width, count)
