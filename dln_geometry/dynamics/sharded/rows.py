"""Which rows of a matrix a process holds: those that DTensor gives it."""

from __future__ import annotations

from dln_geometry.support import as_count


def width_of(count: int, processes: int) -> int:
    """Return the most rows that a process holds."""
    return -(-count // processes)


def rows_of(count: int, processes: int, process: int) -> tuple[int, int]:
    """Return the first row of a process and the one after its last; late processes may be empty.

    Examples
    --------
    >>> [dln.sharded.rows_of(5, 4, k) for k in range(4)]
    [(0, 2), (2, 4), (4, 5), (5, 5)]
    """
    count = as_count(count, "count", 0)
    processes = as_count(processes, "processes")
    if as_count(process, "process", 0) >= processes:
        raise ValueError(f"process must lie between 0 and {processes - 1}, got {process}")
    width = width_of(count, processes)
    return min(process * width, count), min((process + 1) * width, count)
