"""The store of a run: a folder from which a killed run continues, and no other run does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.observing import PREFIX
from dln_geometry.dynamics.store.columns import Column, write_json
from dln_geometry.dynamics.store.files import (
    FORMAT,
    MARK,
    attributes_of,
    check_place,
    read_sealed,
    write_sealed,
)
from dln_geometry.dynamics.store.identity import digests
from dln_geometry.ode import Keeper
from dln_geometry.support import (
    EVERY,
    Growing,
    Lock,
    Schedule,
    check_form,
    merged,
    shown,
)
from dln_geometry.version import __version__

T = TypeVar("T")


class Store(os.PathLike[str], Keeper):
    """A folder that holds the rows and the state of a run, and what decides its result.

    It is a group in the format of zarr: an array for each series of the trajectory, with the
    dimensions ``time, batch, ...``. ``checkpoint/state`` holds all else: a line with its format and
    the SHA-256 of what follows. A checkpoint first adds the new rows, then replaces that file, then
    the metadata that readers see: whenever the run is killed, the state finds its rows. `facts`
    are compared when the run is continued.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        facts: dict[str, Any],
        lock: Lock | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        # By its real name, for two names of one folder to have one lock.
        self.path, self.facts, self.lock = Path(os.path.realpath(path)), dict(facts), lock
        self.schedule = Schedule(EVERY) if schedule is None else schedule
        self._identity: dict[str, str] | None = None
        self._columns: dict[tuple[str, ...], Column] = {}
        self.times: Any = None
        """Times of the rows; by default those that the integrator tells, times `slow`."""
        self.slow, self.axis = 1.0, "time"
        self.batch: int | None = 0
        """Number of the axes of rows that are samples; None: one that readers do not see."""

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    @classmethod
    @contextmanager
    def held(
        cls, path: str | os.PathLike[str], facts: dict[str, Any], schedule: Schedule | None = None
    ) -> Iterator[Store]:
        """Keep other writers off a store; a run inside another run keeps the lock of that one."""
        if isinstance(path, Store):
            yield cls(path, facts, path.lock, path.schedule)
            return
        store = cls(path, facts, schedule=schedule)
        check_place(store.path)
        with Lock(store.path) as store.lock:
            yield store

    def know(self, **facts: Any) -> None:
        """Add facts that the run has worked out from its arguments."""
        self.facts |= facts

    @property
    def identity(self) -> dict[str, str]:
        """Short texts of the facts, made once: after the run has checked its arguments."""
        if self._identity is None:
            self._identity = digests(self.facts)
        return self._identity

    def keep(self, state: dict[str, Any], rows: Mapping[tuple[str, ...], Growing]) -> None:
        """Add rows to the arrays, then write a state: tensors, numbers, texts, dicts and lists."""
        if self.lock is not None:
            self.lock.renew()
        file = self._file
        if not file.exists():
            self._describe(saved=False)
        every = {**rows, **self._times_of(rows)}
        for place, growing in every.items():
            if place not in self._columns:
                self._columns[place] = self._column(place, growing)
            self._columns[place].write(growing)
        columns = [
            {
                "place": list(place),
                "name": column.name,
                "dtype": str(column.dtype).removeprefix("torch."),
                "row": list(column.row),
                "total": column.total,
                "sampled": column.sampled,
                "hidden": column.hidden,
                "dims": list(column.dims),
                "count": torch.from_numpy(column.count.copy()),
            }
            for place, column in self._columns.items()
        ]
        held = {"version": __version__, "identity": self.identity, "columns": columns}
        write_sealed(file, {**held, "state": state})
        self._describe(saved=True)

    def save(self, state: dict[str, Any]) -> None:
        """Write a state without rows."""
        self.keep(state, {})

    @property
    def _file(self) -> Path:
        return self.path / "checkpoint" / "state"

    def _times_of(self, rows: Mapping[tuple[str, ...], Growing]) -> dict[tuple[str, ...], Growing]:
        """Return the coordinate of readers, which is no part of the state."""
        seen = [x for place, x in rows.items() if self._is_shown(place)]
        if not seen:
            return {}
        if self.times is not None:
            count = len(self.times) if isinstance(seen[0].count, np.ndarray) else seen[0].count
            return {("time",): Growing(self.times, count)}
        told = next((x for place, x in rows.items() if place[-1] == "times"), None)
        return {} if told is None else {("time",): Growing(_Scaled(told, self.slow), told.count)}

    @staticmethod
    def _is_shown(place: tuple[str, ...]) -> bool:
        return len(place) > 1 and place[-2] in ("rows", "saved")

    @cached_property
    def _own(self) -> str:
        """What the chunks of this run are told by."""
        facts = repr(sorted(self.identity.items()))
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def _column(self, place: tuple[str, ...], rows: Growing) -> Column:
        """Return the array for rows of a state at this place."""
        first = rows.part(0, 1)
        row, each = tuple(first.shape[1:]), isinstance(rows.count, np.ndarray)
        total = len(rows.rows) if each else 0
        if not self._is_shown(place):
            name = place[0] if place == ("time",) else "_".join(place)
            dims = ("time" if place == ("time",) else f"{name}_row", *_axes(name, len(row)))
            name = name if place == ("time",) else f"checkpoint/{name}"
            return Column(self.path, name, first.dtype, row, dims, self._own, total, each)
        # One sample is shown without the axis of a batch of one.
        name, hidden = place[-1].removeprefix(PREFIX), self.batch is None
        axes = self.batch or 0
        batch = ("batch",) if axes == 1 else tuple(f"batch_{k}" for k in range(axes))
        own = _axes(name, len(row) - axes - hidden)
        last = {"singular_values": ("mode",), "states": ("particle",)}.get(name, own)
        dims = (self.axis, *batch, *(last if len(own) == 1 else own))
        kind = first.dtype, row, dims, self._own, total
        return Column(self.path, name, *kind, each or hidden, hidden)

    def _describe(self, *, saved: bool) -> None:
        """Write what readers see first: attributes, and the shapes of all arrays at one moment."""
        inner = {c.name: c.description() for c in self._columns.values()}
        inner["checkpoint"] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
        options = {k: v for k, v in self.facts.items() if k != "run"}
        attributes = {
            MARK: FORMAT,
            "version": __version__,
            "run": str(self.facts.get("run", "")),
            "options": json.dumps({k: _plain_option(v) for k, v in options.items()}),
            "identity": json.dumps(self.identity),
            "saved": int(saved),
        }
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        consolidated = {"kind": "inline", "must_understand": False, "metadata": inner}
        write_json(self.path / "zarr.json", {**group, "consolidated_metadata": consolidated})
        if not (self.path / "checkpoint" / "zarr.json").exists():
            write_json(self.path / "checkpoint" / "zarr.json", inner["checkpoint"])

    def load(self, form: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Return the state last saved, on the CPU, with its rows, or None if there is none.

        ValueError if it is damaged, belongs to another run, or has not this `form` (see
        `check_form`).
        """
        if not self._file.exists():
            about = attributes_of(self.path)
            if about is not None and about.get("saved"):
                raise ValueError(
                    f"store must be a folder written by a run, got {self.path}: its state is "
                    "missing"
                )
            return None
        held = self.read()
        identity, version, state = held["identity"], held["version"], held["state"]
        names = sorted(self.identity.keys() | identity.keys())
        changed = [name for name in names if self.identity.get(name) != identity.get(name)]
        if changed:
            hint = "give another name, or remove it"
            if changed == ["loss"]:
                hint += (
                    "; functions that round otherwise on another machine have a name by "
                    "losses.from_callable(f, name=...)"
                )
            raise ValueError(
                f"store must belong to the same run, got {self.path} of one with other "
                f"{', '.join(changed)} (version {version}): {hint}"
            )
        whole: dict[str, Any] = self.check(lambda: self._with_rows(state, held["columns"]))
        if form is not None:
            self.check(lambda: check_form(whole, form, "state"))
        return whole

    def _with_rows(self, state: dict[str, Any], columns: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a state with the rows that belong to it, read from the chunks."""
        rows: dict[tuple[str, ...], Tensor] = {}
        for told in columns:
            place, dtype = tuple(told["place"]), getattr(torch, told["dtype"])
            kind = tuple(told["row"]), tuple(told["dims"]), self._own, told["total"]
            flags = told["sampled"], told["hidden"]
            column = Column(self.path, told["name"], dtype, *kind, *flags)
            self._columns[place] = column
            found = column.read(told["count"].numpy())
            if place != ("time",):
                rows[place] = found
        return merged(state, rows)

    def check(self, use: Callable[[], T]) -> T:
        """Return ``use()`` of the state; name the folder in the ValueError of one that is wrong."""
        try:
            return use()
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"store must hold the state of this run, got {self.path}: {error}"
            ) from None

    def read(self) -> dict[str, Any]:
        """Return what the file of the state holds, once its checksum has been compared."""
        held = read_sealed(self._file, f"store must be a folder written by a run, got {self.path}")
        try:
            check_form({**held, "state": None}, _HELD, "file")
        except ValueError:
            raise ValueError(
                f"store must be a folder written by a run, got {self.path}: it is damaged"
            ) from None
        return held


_HELD = {"version": str, "identity": {str: str}, "columns": [{str: object}, ...], "state": None}


class _Scaled:
    """Numbers of a list times a factor, without a copy of the list."""

    def __init__(self, rows: Growing, factor: float) -> None:
        self.rows, self.factor = rows, factor

    def __getitem__(self, part: slice) -> Tensor:
        return self.factor * self.rows.part(part.start, part.stop)


def _axes(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}_{k}" for k in range(count))


def _plain_option(value: Any) -> Any:
    """Return an option for readers: plain values as they are, others in a few words."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else shown(value)
