"""Names of rows and columns: strings or integers, and the places they stand for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from dln_geometry.support import written_whole

Name = str | int


class Ids:
    """A map between names (strings or integers, each once) and the places 0, 1, ... they stand for.

    Examples
    --------
    >>> ids = dln.tables.Ids(["ann", "bob"])
    >>> ids[1], ids.places(["bob", "ann"]).tolist(), len(ids)
    ('bob', [1, 0], 2)
    """

    def __init__(self, names: Iterable[Any], what: str = "id") -> None:
        self.names: tuple[Name, ...] = tuple(_as_name(name, what) for name in names)
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
        """Return names in order (integers as numbers, before strings), and codes that follow."""
        named = [_as_name(name, what) for name in names]
        order = sorted(range(len(named)), key=lambda k: (isinstance(named[k], str), named[k]))
        rank = np.empty(len(named), dtype=np.int64)
        rank[order] = np.arange(len(named))
        return cls((named[k] for k in order), what), rank[codes]

    def place(self, name: Any) -> int:
        """Return the place of a name; ValueError if it is unknown."""
        return int(self.places([name])[0])

    def places(self, names: Iterable[Any]) -> np.ndarray:
        """Return the places of names; ValueError that says which are unknown."""
        wanted = [_as_name(name, self.what) for name in names]
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
        return name in self._places and not isinstance(name, bool | float)

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
    found = {"rows": rows and rows.names, "columns": columns and columns.names}
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
        rows, columns = (None if x is None else Ids(x, "id") for x in sides)
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


def _as_name(name: Any, what: str) -> Name:
    """Return a name as str or int; numpy's scalars count, truth values and fractions do not."""
    if isinstance(name, np.generic):
        name = name.item()
    if isinstance(name, float) and name.is_integer():
        return int(name)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise TypeError(f"{what}s must be strings or integers, got {name!r}")
    return name


def _distinct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the integers in a vector in order, and the place of each; without a sort if close."""
    least, most = int(x.min()), int(x.max())
    if most - least > 4 * len(x) or most >= 2**63:
        return np.unique(x, return_inverse=True)
    place = x.astype(np.int64) - least
    occurs = np.zeros(most - least + 1, dtype=bool)
    occurs[place] = True
    return np.flatnonzero(occurs) + least, (np.cumsum(occurs) - 1)[place]
