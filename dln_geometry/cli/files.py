"""The data of a user: observed entries of a matrix, or a whole matrix."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dln_geometry.cli.tables import read_table

TABLES = (".csv", ".tsv", ".txt")
# What numpy and scipy raise on files of another kind, cut short or changed. OSError is not among
# them: a file that is missing keeps its own message.
_DAMAGED = (
    ValueError, EOFError, ArithmeticError, RuntimeError, LookupError, AttributeError, TypeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
Shape = tuple[int, int]


@dataclass(frozen=True)
class Entries:
    """Observed entries of a matrix: places from 0, values, the shape (m, n), how it was read."""

    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    shape: Shape
    layout: str


def read_entries(
    path: Path, *, layout: str = "auto", one_based: bool = False, shape: Shape | None = None
) -> Entries:
    """Read the observed entries of a matrix.

    ``.csv``, ``.tsv``, ``.txt`` hold a table, see `read_table`. Exactly three full columns, whose
    first two hold whole numbers >= 0, are read as row, column, value; other tables as a matrix
    with empty or NaN cells where it is unknown. Where that is doubtful, or no cell is empty,
    `layout` must decide (``"triples"`` ignores further columns). ``.npy`` and the only array of an
    ``.npz`` are read like a table. ``.npz`` may also hold the arrays ``rows, cols, values`` and
    perhaps ``shape``, or a sparse matrix of scipy, whose stored entries are the observed ones.

    With `one_based` the places of triples count from 1, in tables and in ``.npz``; `shape` is
    their shape (m, n), by default that of the largest places.
    """
    if layout not in ("auto", "triples", "matrix"):
        raise ValueError(f"layout must be one of auto, triples, matrix, got {layout}")
    suffix = _suffix_of(path, (*TABLES, ".npz", ".npy", ".mtx"))
    if suffix == ".mtx":
        from scipy.io import mmread

        with _reading(path, "a Matrix Market file", told=True):
            table: Any = mmread(path)
        if not isinstance(table, np.ndarray):
            return _from_sparse(table, path)
    elif suffix == ".npz":
        arrays = _archive(path)
        if {"rows", "cols", "values"} <= arrays.keys():
            if shape is None and "shape" in arrays:
                sides = arrays["shape"]
                if sides.shape != (2,) or sides.dtype.kind not in "iu":
                    got = sides.tolist()
                    raise ValueError(f"{path} must hold a shape of two integers, got {got}")
                shape = int(sides[0]), int(sides[1])
            return _from_triples(arrays["rows"], arrays["cols"], arrays["values"], one_based, shape)
        if "format" in arrays:
            from scipy import sparse

            with _reading(path, "a sparse matrix of scipy", told=True):
                stored = sparse.load_npz(path)
            return _from_sparse(stored, path)
        table = _only(arrays, path, "a single matrix or the arrays rows, cols, values")
    else:
        table = _numpy_file(path) if suffix == ".npy" else read_table(path)
    return _from_table(table, path, layout, one_based, shape)


def read_matrix(path: Path) -> np.ndarray:
    """Read a whole matrix of finite numbers: ``.npy``, ``.npz`` with a single array, or a table."""
    suffix = _suffix_of(path, (*TABLES, ".npz", ".npy"))
    if suffix == ".npz":
        x = _only(_archive(path), path, "a single matrix")
    else:
        x = _numpy_file(path) if suffix == ".npy" else read_table(path)
    x = _as_floats(x, path)
    if not np.isfinite(x).all():
        raise ValueError(f"{path} must hold finite numbers, got NaN or infinite entries")
    return x


def _suffix_of(path: Path, suffixes: tuple[str, ...]) -> str:
    """Return the suffix of a file that is not empty."""
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise ValueError(f"{path} must end in one of {', '.join(suffixes)}, got {suffix!r}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} must hold data, got an empty file")
    return suffix


def _as_floats(x: np.ndarray, path: Path, ndim: int = 2) -> np.ndarray:
    if x.ndim != ndim or x.size == 0:
        raise ValueError(f"{path} must hold a matrix of shape (m, n), got shape {x.shape}")
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{path} must hold real numbers, got {x.dtype}")
    return x.astype(np.float64)


@contextmanager
def _reading(path: Path, what: str, *, told: bool = False) -> Iterator[None]:
    """Refuse a damaged file; `told` adds the reason that the reader gives."""
    try:
        yield
    except _DAMAGED as error:
        # The reason of numpy would advise to read the file unsafely.
        reason = f": {error}" if told else ", got a damaged file or one that holds no numbers"
        raise ValueError(f"{path} must be {what}{reason}") from None


def _numpy_file(path: Path) -> np.ndarray:
    with _reading(path, "an array of numpy"), open(path, "rb") as handle:
        return np.asarray(np.load(handle, allow_pickle=False))


def _archive(path: Path) -> dict[str, np.ndarray]:
    with (
        _reading(path, "an archive of numpy"),
        # Opened here, since np.load leaves a damaged archive open.
        open(path, "rb") as handle,
        np.load(handle, allow_pickle=False) as archive,
    ):
        return {name: archive[name] for name in archive.files}


def _only(arrays: dict[str, np.ndarray], path: Path, expected: str) -> np.ndarray:
    if len(arrays) != 1:
        raise ValueError(f"{path} must hold {expected}, got {', '.join(sorted(arrays)) or 'none'}")
    return next(iter(arrays.values()))


def _from_triples(
    rows: np.ndarray, cols: np.ndarray, values: np.ndarray, one_based: bool, shape: Shape | None
) -> Entries:
    """Return entries from three columns, the places counted from 0."""
    lengths = [x.shape for x in (rows, cols, values)]
    if len(set(lengths)) != 1 or rows.ndim != 1 or rows.size == 0:
        got = ", ".join(map(str, lengths))
        raise ValueError(f"rows, cols and values must have one shape (k,), got {got}")
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise ValueError("values must be finite numbers, got others")
    places, first = [], int(one_based)
    for name, x in (("rows", rows), ("columns", cols)):
        if x.dtype.kind not in "iuf" or not _are_whole(x).all():
            raise ValueError(f"{name} must be whole numbers, got others")
        if x.min() < first:
            raise ValueError(f"{name} must be at least {first}, got {int(x.min())}")
        places.append(x.astype(np.int64) - first)
    if shape is None:
        shape = int(places[0].max()) + 1, int(places[1].max()) + 1
    for name, x, count in zip(("rows", "columns"), places, shape, strict=True):
        if x.max() >= count:
            raise ValueError(
                f"{name} must be at most {count - 1 + first} for the shape {shape}, "
                f"got {int(x.max()) + first}"
            )
    layout = f"triples (row, column, value) counted from {first}"
    return Entries(places[0], places[1], values.astype(np.float64), shape, layout)


def _are_whole(x: np.ndarray) -> np.ndarray:
    return np.isfinite(x) & (x == np.floor(x))


def _from_table(
    table: np.ndarray, path: Path, layout: str, one_based: bool, shape: Shape | None
) -> Entries:
    """Return the entries of an array that holds triples or a matrix."""
    table = _as_floats(table, path)
    if np.isinf(table).any():
        raise ValueError(f"{path} must hold finite numbers or NaN, got infinite entries")
    if layout == "auto":
        layout = _layout_of(table, path)
    m, n = table.shape
    if layout == "matrix":
        rows, cols = np.nonzero(~np.isnan(table))
        if rows.size == 0:
            raise ValueError(f"{path} must hold a known entry, got NaN alone")
        return Entries(rows, cols, table[rows, cols], (m, n), "matrix")
    if n < 3:
        raise ValueError(f"{path} must have columns row, column, value, got {n} columns")
    rows, cols, values = table.T[:3]
    return _from_triples(rows, cols, values, one_based, shape)


def _layout_of(table: np.ndarray, path: Path) -> str:
    """Return ``"triples"`` or ``"matrix"``; refuse what looks like both, or has no holes."""
    count, columns = table.shape
    choose = "give --layout triples or --layout matrix"
    if columns in (3, 4):
        whole = _are_whole(table[:, :2]) & (table[:, :2] >= 0)
        like = int(whole.all(axis=1).sum())
        filled = not np.isnan(table[:, :3]).any()
        if columns == 3 and like == count and filled and np.isfinite(table).all():
            return "triples"
        if (columns == 3 and 2 * like > count) or (columns == 4 and like == count and filled):
            raise ValueError(
                f"{path} must tell what it holds, got {columns} columns of which the first two "
                f"look like row and column in {like} of {count} lines: {choose}"
            )
    if not np.isnan(table).any():
        raise ValueError(
            f"{path} must have empty or NaN cells to complete, got {count} x {columns} numbers "
            f"without a hole: {choose}"
        )
    return "matrix"


def _from_sparse(x: Any, path: Path) -> Entries:
    """Return the stored entries of a sparse matrix, zeros included."""
    x = x.tocoo()
    if x.nnz == 0:
        raise ValueError(f"{path} must hold an entry, got none")
    values = _as_floats(x.data, path, 1)
    entries = _from_triples(x.row, x.col, values, False, (int(x.shape[0]), int(x.shape[1])))
    return replace(entries, layout="sparse matrix")
