"""Losses that several processes hold."""

from __future__ import annotations

from typing import Any


def ranks_of(loss: Any) -> Any:
    """Return the processes that a loss is cut over, None where one process has all of it.

    Examples
    --------
    >>> dln.losses.ranks_of(dln.losses.Quadratic([[1.0]])) is None
    True
    """
    ranks = getattr(loss, "ranks", None)
    return ranks if hasattr(ranks, "mesh") else None
