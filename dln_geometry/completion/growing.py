"""Tables that grow: entries that come later, and what one fit hands to the next."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dln_geometry.completion.fitting import Model
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.tables import Entries, Ids


@dataclass(frozen=True)
class Memory:
    """What a fit leaves to the next one.

    `held` marks the entries that `validated` was not trained on; both are None without validation.
    Only these, and entries that come later, may measure a model that continues from `validated`.
    """

    entries: Entries
    weights: np.ndarray | None
    held: np.ndarray | None
    validated: Model | None
    final: Model
    sides: bool

    def continued(
        self, entries: Entries, like: Tensor, rank: int, share: float, seed: int
    ) -> tuple[np.ndarray | None, tuple[Model | None, Model | None]]:
        """Return what to hold out, and where the validated and the final model begin.

        All None if a share is to be held out, and none is left that the models have not seen.
        """
        final = self.grown(self.final, entries, like, rank)
        if share == 0:
            return None, (None, final)
        held = self.still_held(entries, share, seed)
        if held is None or self.validated is None:
            return None, (None, None)
        validated = self.grown(self.validated, entries, like, rank)
        return (None, (None, None)) if validated is None else (held, (validated, final))

    def still_held(self, entries: Entries, share: float, seed: int) -> np.ndarray | None:
        """Return which entries to hold out: those of before, and a share of the new ones.

        None if nothing is left to measure with, or to train on.
        """
        if self.validated is None or self.held is None:
            return None
        i, j = sources(self.entries, entries)
        i, j, n = i[entries.rows], j[entries.cols], self.entries.shape[1]
        known = self.entries.rows * n + self.entries.cols
        order = np.argsort(known)
        key = np.where((i >= 0) & (j >= 0), i * n + j, -1)
        place = np.searchsorted(known, key, sorter=order).clip(max=len(known) - 1)
        old = known[order[place]] == key
        new = np.random.default_rng(seed).random(len(key)) < share
        held = np.where(old, self.held[order[place]], new)
        return held if held.any() and (~held).sum() > 1 else None

    def grown(self, model: Model, entries: Entries, like: Tensor, rank: int) -> Model | None:
        """Return a model of other rows and columns: zeros for new ones; None if none is left."""
        i, j = (torch.from_numpy(x).to(like.device) for x in sources(self.entries, entries))
        if model.point is None or not bool((i >= 0).any() and (j >= 0).any()):
            return None
        p = model.decomposed().to(dtype=like.dtype, device=like.device)
        u, v = (
            torch.where((at >= 0).unsqueeze(1), x[at.clamp_min(0)], 0.0)
            for at, x in ((i, p.u), (j, p.vh.mT))
        )
        # Rows that are gone leave frames that are not orthonormal.
        (qu, ru), (qv, rv) = torch.linalg.qr(u), torch.linalg.qr(v)
        x, s, yh = torch.linalg.svd((ru * p.s) @ rv.mT, full_matrices=False)
        r = min(rank, len(s))
        point = EndToEnd((qu @ x)[:, :r], s[:r], (yh @ qv.mT)[:r], p.depth, check=False)
        return Model(model.offsets, Collapsed.of(point))


def sources(old: Entries, new: Entries) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every row and every column of a table, its place in an older one, or -1."""
    sides = zip(
        (old.row_ids, old.col_ids), (new.row_ids, new.col_ids), old.shape, new.shape, strict=True
    )
    return tuple(_source(*side) for side in sides)  # pyright: ignore[reportReturnType]


def _source(old: Ids | None, new: Ids | None, before: int, now: int) -> np.ndarray:
    if old is None or new is None:
        places = np.arange(now) if old is new else np.full(now, -1)
        return np.where(places < before, places, -1)
    return np.array([old.place(name) if name in old else -1 for name in new], dtype=np.int64)


def joined_entries(
    old: Entries, new: Entries, weights: tuple[np.ndarray | None, np.ndarray | None]
) -> tuple[Entries, np.ndarray | None]:
    """Return the entries of two tables, and their weights; of two values the newer one counts.

    Rows without names are further rows if they come as a matrix; whole numbers that name rows or
    columns of a table without names are places.
    """
    pairs = new.layout == "pairs"
    rows, row_ids, m = _joined_side(
        old.row_ids, new.row_ids, new.rows, old.shape[0], new.shape[0], None if pairs else "row"
    )
    cols, col_ids, n = _joined_side(
        old.col_ids, new.col_ids, new.cols, old.shape[1], new.shape[1], None if pairs else "column"
    )
    key = np.concatenate((old.rows * n + old.cols, rows * n + cols))
    key, last = np.unique(key[::-1], return_index=True)
    last = len(old.rows) + len(rows) - 1 - last
    values = np.concatenate((old.values, new.values))[last]
    found = None
    if weights[0] is not None or weights[1] is not None:
        parts = (
            np.ones(len(e.values)) if w is None else w
            for w, e in zip(weights, (old, new), strict=True)
        )
        found = np.concatenate(tuple(parts))[last]
    entries = replace(
        old,
        rows=key // n,
        cols=key % n,
        values=values,
        shape=(m, n),
        row_ids=row_ids,
        col_ids=col_ids,
    )
    return entries, found


def _joined_side(
    old: Ids | None, new: Ids | None, places: np.ndarray, before: int, now: int, side: str | None
) -> tuple[np.ndarray, Ids | None, int]:
    """Return the places of new entries, and the names and the number of all rows or columns."""
    if old is None and new is None:
        return (places + before, None, before + now) if side == "row" else (places, None, before)
    if old is not None and new is not None:
        names = Ids((*old, *(name for name in new if name not in old)), old.what)
        return names.places(new)[places], names, len(names)
    if old is not None and side == "column":
        return places, old, before  # as many as before: see `check_features`
    if new is not None and side is None:
        at = np.array([x if isinstance(x, int) and x >= 0 else -1 for x in new], dtype=np.int64)
        if at.min() >= 0:
            return at[places], None, max(before, int(at.max()) + 1)
    if new is not None and side == "column":
        return places, None, before
    what = "rows" if side == "row" else "rows and columns"
    raise ValueError(f"X must name its {what} as the fitted table does")
