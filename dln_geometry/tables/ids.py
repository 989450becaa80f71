"""Names of rows and columns: strings, numbers and others, and the places they stand for."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from dln_geometry.support import written_whole

Name = Any  # a value that can be hashed: see `as_name`


class Ids:
    """A map between names, each once, and the places 0, 1, ... they stand for.

    Names are strings, numbers, tuples of names, or other values that can be hashed; dates become
    their ISO text, and whole floats integers.

    Examples
    --------
    >>> ids = dln.tables.Ids(["ann", "bob"])
    >>> ids[1], ids.places(["bob", "ann"]).tolist(), len(ids)
    ('bob', [1, 0], 2)
    """

    def __init__(self, names: Iterable[Any], what: str = "id") -> None:
        self.names: tuple[Name, ...] = tuple(as_name(name, what) for name in names)
        self.what = what
        self._places = {name: place for place, name in enumerate(self.names)}
        if len(self._places) != len(self.names):
            seen: set[Name] = set()
            twice = next(name for name in self.names if name in seen or seen.add(name))
            raise ValueError(f"{what}s must be given once each, got {twice!r} repeatedly")

    @classmethod
    def of(cls, labels: Sequence[Any] | np.ndarray, what: str = "id") -> tuple[Ids, np.ndarray]:
        """Return the sorted names among labels, and the place of each label."""
        if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and len(labels):
            found, codes = _distinct(labels)
            return cls.sorted(found.tolist(), codes, what)
        first: dict[Any, int] = {}
        codes = np.fromiter((first.setdefault(x, len(first)) for x in labels), dtype=np.int64)
        return cls.sorted(list(first), codes, what)

    @classmethod
    def sorted(
        cls, names: Sequence[Any], codes: np.ndarray, what: str = "id"
    ) -> tuple[Ids, np.ndarray]:
        """Return names in order (numbers, strings, tuples, others), and codes that follow."""
        named = [as_name(name, what) for name in names]
        order = sorted(range(len(named)), key=lambda k: _rank(named[k]))
        rank = np.empty(len(named), dtype=np.int64)
        rank[order] = np.arange(len(named))
        return cls((named[k] for k in order), what), rank[codes]

    def written(self) -> list[Any]:
        """Return the names for JSON; TypeError for those that it does not have."""
        for name in self.names:
            if not _fits_json(name):
                raise TypeError(
                    f"{self.what}s must be strings, numbers or tuples of them to be saved, got "
                    f"{name!r}"
                )
        return list(self.names)

    @classmethod
    def read(cls, written: Iterable[Any], what: str = "id") -> Ids:
        """Return the names that JSON has, where tuples are lists."""
        return cls(map(_with_tuples, written), what)

    def place(self, name: Any) -> int:
        """Return the place of a name; ValueError if it is unknown."""
        return int(self.places([name])[0])

    def places(self, names: Iterable[Any]) -> np.ndarray:
        """Return the places of names; ValueError that says which are unknown."""
        wanted = [as_name(name, self.what) for name in names]
        unknown = [name for name in wanted if name not in self._places]
        if unknown:
            shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise ValueError(f"{self.what}s must be among the {len(self)} known, got {shown}")
        return np.array([self._places[name] for name in wanted], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Name]:
        return iter(self.names)

    def __getitem__(self, place: int) -> Name:
        return self.names[place]

    def __contains__(self, name: object) -> bool:
        return name in self._places and not isinstance(name, bool)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ids) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.names[:3])) + (", ..." if len(self) > 3 else "")
        return f"Ids({shown}; {len(self)} {self.what}s)"


def save_ids(path: str | os.PathLike[str], rows: Ids | None, columns: Ids | None) -> None:
    """Write the names of rows and columns as JSON: lists by place, or null where places count.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "names.json"
    ...     dln.tables.save_ids(file, dln.tables.Ids(["ann", "bob"]), None)
    ...     file.exists()
    True
    """
    found = {"rows": rows and rows.written(), "columns": columns and columns.written()}
    with written_whole(Path(path)) as handle:
        handle.write(json.dumps(found, ensure_ascii=False, indent=0).encode() + b"\n")


def load_ids(path: str | os.PathLike[str]) -> tuple[Ids | None, Ids | None]:
    """Return the names of rows and columns that `save_ids` wrote.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "names.json"
    ...     dln.tables.save_ids(file, dln.tables.Ids(["ann", "bob"]), None)
    ...     dln.tables.load_ids(file)
    (Ids('ann', 'bob'; 2 ids), None)
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        sides = [found[side] for side in ("rows", "columns")]
        rows, columns = (None if x is None else Ids.read(x) for x in sides)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold names of rows and columns: {error}") from None
    return rows, columns


def in_iso(name: Any) -> Any:
    """Return dates as text, one for each moment: without zeros at the end, or the time 0:00.

    What is no date, or not a time, is returned as it is.

    Examples
    --------
    >>> from datetime import datetime
    >>> dln.tables.in_iso(datetime(2024, 2, 29)), dln.tables.in_iso(7)
    ('2024-02-29', 7)
    """
    if isinstance(name, np.datetime64):
        hours = np.datetime_data(name.dtype)[0] in "hm"
        text = str(name.astype("M8[s]") if hours else name)
    elif isinstance(name, date):
        text = name.isoformat()
    else:
        return name
    if text == "NaT":
        return name
    return re.sub(r"(\.\d*?)0+$", r"\1", text).removesuffix(".").removesuffix("T00:00:00")


def as_name(name: Any, what: str = "id") -> Any:
    """Return a name as it is kept: dates as ISO text, whole floats as integers, numpy's scalars.

    TypeError for what names nothing: None, NaN, truth values, and what cannot be hashed.

    Examples
    --------
    >>> dln.tables.as_name(7.0), dln.tables.as_name(("ann", 2.5))
    (7, ('ann', 2.5))
    """
    if type(name) in (str, int):
        return name  # most are
    kept = in_iso(name)
    if isinstance(kept, np.timedelta64):
        exact = kept.astype("m8[us]")
        kept = exact.item() if exact == kept else None if np.isnat(kept) else str(kept)
    elif getattr(kept, "ndim", None) == 0:
        kept = kept.item()
    if isinstance(kept, tuple):
        return tuple(as_name(part, what) for part in kept)
    if isinstance(kept, float):
        kept = int(kept) if kept.is_integer() else kept if math.isfinite(kept) else None
    if isinstance(kept, str | int) and not isinstance(kept, bool):
        return kept
    if not _is_name(kept):
        raise TypeError(
            f"{what}s must be strings, numbers or other names, not None, NaN or a truth value, "
            f"got {name!r}"
        )
    return kept


def _is_name(x: Any) -> bool:
    """Tell whether a value can be hashed and equals itself."""
    if x is None or isinstance(x, bool) or hasattr(x, "ndim"):
        return False
    try:
        return hash(x) is not None and bool(x == x)
    except (TypeError, ValueError):
        return False


def _rank(name: Any) -> tuple[Any, ...]:
    """Return what names are ordered by: numbers, strings, tuples by their parts, others as text."""
    if isinstance(name, int | float):
        return 0, name
    if isinstance(name, str):
        return 1, name
    if isinstance(name, tuple):
        return 2, tuple(map(_rank, name))
    return 3, type(name).__name__, repr(name)


def _fits_json(name: Any) -> bool:
    """Tell whether JSON can hold a name."""
    return (
        all(map(_fits_json, name)) if isinstance(name, tuple) else type(name) in (str, int, float)
    )


def _with_tuples(name: Any) -> Any:
    return tuple(map(_with_tuples, name)) if isinstance(name, list) else name


def _distinct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the integers in a vector in order, and the place of each; without a sort if close."""
    least, most = int(x.min()), int(x.max())
    if most - least > 4 * len(x) or most >= 2**63:
        return np.unique(x, return_inverse=True)
    place = x.astype(np.int64) - least
    occurs = np.zeros(most - least + 1, dtype=bool)
    occurs[place] = True
    return np.flatnonzero(occurs) + least, (np.cumsum(occurs) - 1)[place]
