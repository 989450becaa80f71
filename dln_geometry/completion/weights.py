"""Weights of entries: as many as these, or a matrix beside theirs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dln_geometry.support import read_array, sparse_places
from dln_geometry.tables import Entries


def counted(entries: Entries, weight: Any) -> tuple[Entries, np.ndarray | None]:
    """Return the entries whose weights are not 0, and these weights."""
    if weight is None:
        return entries, None
    w = _weights_of(weight, entries)
    kept = w > 0
    parts = {name: getattr(entries, name)[kept] for name in ("rows", "cols", "values")}
    return replace(entries, **parts), w[kept]


def _weights_of(weight: Any, entries: Entries) -> np.ndarray:
    """Return one weight for each entry, from as many or from a matrix."""
    if stored := sparse_places(weight, "weights"):
        (rows, cols), values, shape = stored
        if shape != entries.shape:
            raise ValueError(f"weights must have shape {entries.shape}, got {shape}")
        key = (rows * shape[1] + cols).cpu().numpy()
        order, wanted = np.argsort(key), entries.rows * shape[1] + entries.cols
        place = order[np.searchsorted(key, wanted, sorter=order).clip(max=len(key) - 1)]
        if (key[place] != wanted).any():
            raise ValueError("weights must hold every entry that X holds")
        weight = np.asarray(values)[place]
    # Where an entry is unknown, its weight may be, too.
    w = read_array(weight, "weights", holes=True)[0].detach().cpu().double().numpy()
    if w.shape == entries.shape and entries.layout != "pairs":
        w = w[entries.rows, entries.cols]
    if w.shape != entries.values.shape:
        expected = entries.values.shape if entries.layout == "pairs" else entries.shape
        raise ValueError(f"weights must have shape {expected}, got {w.shape}")
    if not np.isfinite(w).all():
        raise ValueError("weights of known entries must be finite, got NaN or infinite ones")
    if not (w >= 0).all() or not w.any():
        raise ValueError(
            f"weights must be at least 0 and not zero everywhere, got {w.min():g} to {w.max():g}"
        )
    return w
