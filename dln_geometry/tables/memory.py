"""How much memory a file may take: estimated before it is taken."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

GIB = 2**30
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Budget:
    """A limit in bytes; `need` refuses what would pass it.

    Examples
    --------
    >>> budget = dln.tables.Budget(1000.0)
    >>> budget.need(800.0, "a table")  # fits
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit = machine_memory() if limit is None else float(limit)

    def need(self, size: float, what: str) -> None:
        """Refuse `what` if it takes more than the limit; `size` in bytes."""
        if size > self.limit:
            raise ValueError(
                f"{what} would take {_in_units(size)} of memory, the limit is "
                f"{_in_units(self.limit)}"
            )


def as_budget(limit: Any) -> Budget:
    """Return the budget of a limit in bytes; None stands for the memory of the machine.

    Examples
    --------
    >>> dln.tables.as_budget(2e9).limit
    2000000000.0
    """
    if limit is None or isinstance(limit, Budget):
        return limit or Budget()
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        raise TypeError(f"max_memory must be a number of bytes, got {limit!r}")
    if not 0 < limit < math.inf:
        raise ValueError(f"max_memory must be positive and finite, got {limit!r}")
    return Budget(limit)


def machine_memory() -> float:
    """Return the memory of the machine or of the container in bytes; 8 GiB where none is told."""
    limits = []
    with suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in _CGROUPS:
        with suppress(ValueError, OSError):
            limits.append(int(Path(name).read_text()))
    return float(min((x for x in limits if x > 0), default=8 * GIB))


def _in_units(size: float) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB / 100 else f"{size / 2**20:.3g} MiB"
