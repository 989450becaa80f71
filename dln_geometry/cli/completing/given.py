"""Files beside the table: features of its sides, weights, held-out entries, a saved estimator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dln_geometry.cli.files import deciding, option
from dln_geometry.completion import MatrixCompleter
from dln_geometry.tables import (
    Budget,
    Entries,
    Ids,
    Table,
    TextFormat,
    read_entries,
    read_matrix,
)


@dataclass(frozen=True)
class Beside:
    """Files with what the estimator may know beside the entries, and how these are read."""

    row_features: Path | None
    col_features: Path | None
    weights: Path | None
    validation_entries: Path | None
    form: TextFormat
    reading: dict[str, Any]

    def read(self, entries: Entries, budget: Budget) -> dict[str, Any]:
        """Return options of `fit`: features, the weights of the entries, held-out entries."""
        sides = zip(
            ("row_features", "col_features"), (entries.row_ids, entries.col_ids), strict=True
        )
        found: dict[str, Any] = {
            name: self._features(getattr(self, name), name, ids, budget) for name, ids in sides
        }
        if self.weights is not None:
            given = self._entries(self.weights, "weights", entries, budget)
            found["weights"] = aligned(given, entries)
        if self.validation_entries is not None:
            held = self._entries(self.validation_entries, "validation-entries", entries, budget)
            found["validation_entries"] = (*pair_labels(held), held.values)
        return {name: x for name, x in found.items() if x is not None}

    def _features(
        self, path: Path | None, name: str, ids: Ids | None, budget: Budget
    ) -> Table | None:
        if path is None:
            return None
        text = path.suffix.lower() not in (".npy", ".npz", ".mtx", ".parquet")
        form = replace(self.form, index=True if ids is not None else None) if text else TextFormat()
        with option(name.replace("_", "-")), deciding():
            table = read_matrix(path, form=form, max_memory=budget)
        return table if ids is not None else Table(table.values)

    def _entries(self, path: Path, name: str, like: Entries, budget: Budget) -> Entries:
        reading = dict(self.reading)
        if like.row_ids is None and like.col_ids is None and like.layout.startswith("triples"):
            reading["shape"] = like.shape  # these are places too
        with option(name), deciding():
            return read_entries(path, form=self.form, max_memory=budget, **reading)


def pair_labels(entries: Entries) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of entries as the estimator knows them."""
    sides = zip((entries.rows, entries.cols), (entries.row_ids, entries.col_ids), strict=True)
    rows, cols = (x if ids is None else np.array(ids.names, dtype=object)[x] for x, ids in sides)
    return rows, cols


def aligned(given: Entries, entries: Entries) -> np.ndarray:
    """Return the numbers that are given for entries, in the order of these."""
    pairs = zip(
        (given.rows, given.cols),
        (given.row_ids, given.col_ids),
        (entries.row_ids, entries.col_ids),
        entries.shape,
        strict=True,
    )
    sides = [
        _places(range(int(places.max()) + 1) if own is None else own, known, count)[places]
        for places, own, known, count in pairs
    ]
    n = entries.shape[1]
    key = np.where((sides[0] >= 0) & (sides[1] >= 0), sides[0] * n + sides[1], -1)
    order, wanted = np.argsort(key, kind="stable"), entries.rows * n + entries.cols
    place = order[np.searchsorted(key, wanted, sorter=order).clip(max=len(key) - 1)]
    if len(missing := np.flatnonzero(key[place] != wanted)):
        row, col = (x[missing[0]] for x in pair_labels(entries))
        raise ValueError(f"--weights must hold every known entry, got none for ({row}, {col})")
    return given.values[place]


def _places(names: Iterable[Any], known: Ids | None, count: int) -> np.ndarray:
    """Return the places of names in a table of so many rows, -1 of those it does not have."""
    if known is None:
        return np.array([x if isinstance(x, int) and x < count else -1 for x in names])
    return np.array([known.place(x) if x in known else -1 for x in names])


def loaded_model(path: Path, device: Any) -> MatrixCompleter:
    """Return a saved estimator."""
    with option("model"):
        return MatrixCompleter.load(path, device=device)


def is_saved_model(paths: Sequence[Path]) -> bool:
    """Tell whether files are saved estimators."""
    try:
        for path in paths:
            if path.exists():
                MatrixCompleter.load(path)
    except (OSError, ValueError):
        return False
    return True
