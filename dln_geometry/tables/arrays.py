"""Arrays in memory as tables or entries: numpy, masked arrays, frames, sparse matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dln_geometry.support import read_array, sparse_places
from dln_geometry.tables.entries import Doubt, Entries, Shape, Table
from dln_geometry.tables.ids import Ids
from dln_geometry.tables.triples import (
    are_whole,
    first_duplicate,
    from_names,
    from_places,
    looks_like_triples,
)


def as_table(x: Any, name: str = "x") -> Table:
    """Return an array as a matrix with holes, which are NaN, masked or missing.

    A frame of pandas keeps the names of its columns, and its index unless that counts from 0.
    TypeError for sparse matrices: see `as_entries`.

    Examples
    --------
    >>> dln.tables.as_table([[1.0, None], [0.5, 2.0]]).values
    array([[1. , nan],
           [0.5, 2. ]])
    """
    tensor, _ = read_array(x, name, holes=True)
    values = as_real_matrix(_array_of(tensor), name)
    if np.isinf(values).any():
        raise ValueError(f"{name} must hold finite numbers or NaN, got infinite entries")
    return Table(values, *_ids_of_frame(x, (values.shape[0], values.shape[1])))


def _array_of(x: Any) -> np.ndarray:
    """Return the numbers of a tensor; numpy has no type for those of bfloat16."""
    x = x.detach().cpu()
    return (x.float() if x.is_floating_point() and x.itemsize < 4 else x).numpy()


def as_entries(x: Any, name: str = "x", *, once: bool = True) -> Entries:
    """Return the known entries of a matrix; those that are stored, if it is sparse.

    `Entries`, as files are read to, are returned as they are. With `once`, a sparse matrix that
    stores an entry repeatedly is refused.

    Examples
    --------
    >>> import numpy as np
    >>> dln.tables.as_entries(np.ma.masked_equal([[1.0, -1.0], [3.0, 4.0]], -1.0)).values
    array([1., 3., 4.])
    """
    if isinstance(x, Entries):
        return x
    return (
        sparse_entries(x, name, once=once)
        if sparse_places(x, name)
        else as_table(x, name).entries()
    )


def sparse_entries(x: Any, name: str, *, once: bool = True) -> Entries:
    """Return the stored entries of a sparse matrix of scipy or torch, zeros included."""
    found = sparse_places(x, name)
    assert found is not None
    places, stored, (m, n) = found
    rows, cols = places.cpu().numpy()
    if rows.size == 0:
        raise ValueError(f"{name} must hold an entry, got none")
    values = _array_of(read_array(stored, name)[0])
    twice = first_duplicate(rows, cols, n)
    if once and twice is not None:
        place = int(rows[twice[0]]), int(cols[twice[0]])
        raise ValueError(f"{name} must hold every entry once, got {place} repeatedly")
    return from_places(rows, cols, values, 0, (m, n), "sparse matrix")


def array_entries(
    x: np.ndarray,
    name: str,
    layout: str,
    first: int | None,
    shape: Shape | None,
    *,
    once: bool = True,
) -> Entries:
    """Return the entries of an array of numbers that holds triples or a matrix with holes."""
    table = as_real_matrix(x, name)
    if np.isinf(table).any():
        raise ValueError(f"{name} must hold finite numbers or NaN, got infinite entries")
    count, columns = table.shape
    if layout == "auto":
        layout = "triples" if looks_like_triples(table, name) else "matrix"
        if layout == "matrix" and not np.isnan(table).any():
            raise Doubt(
                f"{name} must have empty or NaN cells to complete, got {count} x {columns} "
                "numbers without a hole",
                "layout",
            )
    if layout == "matrix":
        if np.isnan(table).all():
            raise ValueError(f"{name} must hold a known entry, got NaN alone")
        return Table(table).entries()
    if columns < 3:
        raise ValueError(f"{name} must have columns row, column, value, got {columns} columns")
    return triples_of(list(table.T[:3]), first, shape, name, once=once)


def triples_of(
    columns: Sequence[np.ndarray],
    first: int | None,
    shape: Shape | None,
    name: str,
    *,
    once: bool = True,
) -> Entries:
    """Return entries by places from `first` or within a shape, else by the ids that occur.

    With `once`, entries that are given repeatedly are refused.
    """
    rows, cols, values = columns
    entries = (
        from_places(rows, cols, values, first or 0, shape)
        if (first is not None or shape is not None)
        else _by_ids(rows, cols, values)
    )
    twice = first_duplicate(entries.rows, entries.cols, entries.shape[1])
    if once and twice is not None:
        pair = f"({rows[twice[0]]:g}, {cols[twice[0]]:g})" if rows.dtype.kind in "iuf" else "a pair"
        raise ValueError(f"{name} must hold every entry once, got {pair} repeatedly")
    return entries


def as_real_matrix(x: np.ndarray, name: str, ndim: int = 2) -> np.ndarray:
    """Return an array of real numbers in double precision."""
    if x.ndim != ndim or x.size == 0:
        raise ValueError(f"{name} must hold a matrix of shape (m, n), got shape {x.shape}")
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers, got {x.dtype}")
    return x.astype(np.float64)


def _by_ids(rows: np.ndarray, cols: np.ndarray, values: np.ndarray) -> Entries:
    sides = []
    for name, x in (("rows", rows), ("columns", cols)):
        if x.dtype.kind == "f":
            if not are_whole(x).all():
                raise ValueError(f"{name} must be whole numbers, got others")
            x = x.astype(np.int64)
        elif x.dtype.kind not in "iuUSO":
            raise ValueError(f"{name} must be whole numbers or names, got {x.dtype}")
        if x.dtype.kind == "O":
            # Numbers and words, which have no order in common.
            places: dict[Any, int] = {}
            codes = np.array([places.setdefault(label, len(places)) for label in x])
            sides.append((list(places), codes))
            continue
        names, codes = np.unique(x, return_inverse=True)
        sides.append((names.tolist(), codes))
    lengths = [x.shape for x in (rows, cols, values)]
    if len(set(lengths)) != 1 or rows.ndim != 1 or rows.size == 0:
        got = ", ".join(map(str, lengths))
        raise ValueError(f"rows, cols and values must have one shape (k,), got {got}")
    return from_names(sides[0], sides[1], values.astype(np.float64))


def _ids_of_frame(x: Any, shape: Shape) -> tuple[Ids | None, Ids | None]:
    """Return the names of a frame; none of arrays, nor labels that count from 0 or stand twice."""
    found = []
    for what, labels, count in (
        ("row", getattr(x, "index", None), shape[0]),
        ("column", getattr(x, "columns", None), shape[1]),
    ):
        try:
            names = list(labels) if labels is not None else []
            ids = Ids(names, what) if len(names) == count else None
        except (TypeError, ValueError):
            ids = None
        found.append(None if ids is None or ids.names == tuple(range(count)) else ids)
    return found[0], found[1]
