"""The store of a run on several processes: the first one writes the whole state."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.sharded.layout import SharedNorms
from dln_geometry.dynamics.sharded.points import is_sharded
from dln_geometry.dynamics.sharded.ranks import Ranks, sketch
from dln_geometry.dynamics.sharded.rows import rows_of
from dln_geometry.dynamics.store import Store, check_place, digests
from dln_geometry.support import Growing, Lock, Schedule

PLACES = (
    ("y",),
    ("method", "stepper", "f"),
    ("method", "stepper", "eigenvector"),
    ("monitor", "y"),
)
"""Where a state holds rows of numbers of which every process has its own."""


class SharedStore(Store):
    """A store of whole states, from which any number of processes goes on.

    The first process gathers the state, 2 to 4 times (m + n) r numbers, and writes it; resuming, it
    reads and sends every other its part. An error of the first is raised in all.
    """

    is_alone = False
    norms: SharedNorms

    def __init__(self, ranks: Ranks, path: Any, facts: Any, schedule: Schedule | None) -> None:
        super().__init__(path, facts, None, schedule)
        self.ranks, self.like = ranks, torch.zeros(0)

    @classmethod
    @contextmanager
    def opened(
        cls, ranks: Ranks, path: str | os.PathLike[str], facts: dict[str, Any], schedule: Any
    ) -> Iterator[SharedStore]:
        """Keep other writers off a store, from the first process."""
        store = cls(ranks, path, facts, schedule)

        def locked() -> None:
            check_place(store.path)
            store.lock = Lock(store.path).__enter__()

        ranks.first(locked)
        try:
            yield store
        finally:
            if store.lock is not None:
                store.lock.__exit__()

    def know(self, **facts: Any) -> None:
        # The start tells it, whoever holds its rows.
        self.like = facts.pop("state")
        super().know(**facts)

    @property
    def identity(self) -> dict[str, str]:
        """Short texts of the facts; the first time, all processes ask for them together."""
        if self._identity is None:
            told = {name: self._told(fact) for name, fact in self.facts.items()}
            self._identity = self.ranks.together(lambda: digests(told))
        return self._identity

    def _told(self, fact: Any) -> Any:
        """Return a point as texts that do not depend on who holds its rows."""
        if not is_sharded(fact):
            return fact.fingerprint() if hasattr(fact, "fingerprint") else fact
        if (origin := vars(fact).get("origin")) is not None:
            return origin
        told: dict[str, Any] = {"depth": fact.depth, "normalized": fact.normalized}
        for name, x in (("L", fact.L), ("R", fact.R)):
            first, _ = rows_of(x.shape[-2], self.ranks.count, self.ranks.rank)
            rows = sketch(self.ranks, [x.to_local().movedim(-2, 0)], first)
            told[name] = f"{x.dtype} {tuple(x.shape)} {rows}"
        return told

    def keep(self, state: dict[str, Any], rows: Mapping[tuple[str, ...], Growing]) -> None:
        whole = {**state, "method": {**state["method"]}}
        whole["method"]["stepper"] = dict(state["method"]["stepper"])
        whole["monitor"] = None if state["monitor"] is None else dict(state["monitor"])
        for box, name in _found(whole):
            box[name] = self.norms.to_first(box[name])
        self.ranks.first(lambda: Store.keep(self, whole, rows))

    def load(self, form: dict[str, Any] | None = None) -> dict[str, Any] | None:
        # All processes make the texts together, before one of them compares.
        assert self.identity
        held: list[Tensor] = []
        size = sum(
            (1 if count is None else count) * width
            for count, width in zip(self.norms.counts, self.norms.widths, strict=True)
        )

        def read() -> dict[str, Any] | None:
            state = Store.load(self)
            for box, name in _found(state or {}):
                x = box[name]
                want = (len(self.like), size), self.like.dtype
                if (tuple(x.shape), x.dtype) != want or not bool(torch.isfinite(x).all()):
                    raise ValueError(f"store must hold the state of this run, got {self.path}")
                held.append(x)
                box[name] = None
            return state

        state = self.ranks.first(read)
        for k, (box, name) in enumerate(_found(state or {})):
            box[name] = self.norms.from_first(held[k] if held else None, self.like)
        return state


def _found(state: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return the dicts of a state that hold rows of numbers, and their names there."""
    found = []
    for *way, name in PLACES:
        box: Any = state
        for step in way:
            box = (box or {}).get(step)
        if box and name in box:
            found.append((box, name))
    return found
