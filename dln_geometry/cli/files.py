"""The data of a user: observed entries of a matrix, or a whole matrix."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dln_geometry.cli.tables import read_table

TABLES = (".csv", ".tsv", ".txt")
SUFFIXES = (*TABLES, ".npz", ".npy", ".mtx")
LAYOUTS = ("auto", "triples", "matrix")
_DAMAGED = (ValueError, EOFError, ArithmeticError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Entries:
    """Observed entries of a matrix: places from 0, values, the shape (m, n), how it was read."""

    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    shape: tuple[int, int]
    layout: str


def read_entries(
    path: Path,
    *,
    layout: str = "auto",
    one_based: bool = False,
    shape: tuple[int, int] | None = None,
) -> Entries:
    """Read the observed entries of a matrix.

    ``.csv``, ``.tsv``, ``.txt`` hold a table, see `read_table`. Exactly three full columns, whose
    first two hold whole numbers >= 0, are read as row, column, value; other tables as a matrix
    with empty or NaN cells where it is unknown. Where that is doubtful, or no cell is empty,
    `layout` must decide (``"triples"`` ignores further columns). ``.npy`` and the only array of an
    ``.npz`` are read like a table. ``.npz`` may also hold the arrays ``rows, cols, values`` and
    perhaps ``shape``, or a sparse matrix of scipy, whose stored entries are the observed ones.
    ``.mtx`` is Matrix Market.

    `one_based` says that the places of triples count from 1, in tables and in ``.npz``; `shape` is
    their shape (m, n), by default that of the largest places.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout}")
    suffix = _known(path, SUFFIXES)
    if suffix == ".mtx":
        stored = _matrix_market(path)
        if not isinstance(stored, np.ndarray):
            return _from_sparse(stored, path)
        return _from_table(stored, path, layout, one_based, shape)
    if suffix == ".npz":
        arrays = _stored_arrays(path)
        if {"rows", "cols", "values"} <= arrays.keys():
            shape = _stored_shape(arrays, path) if shape is None else shape
            rows, cols, values = (arrays[name] for name in ("rows", "cols", "values"))
            return _triples(rows, cols, values, one_based, shape)
        if "format" in arrays:
            return _from_sparse(_stored_sparse(path), path)
        table = _only(arrays, path, "a single matrix or the arrays rows, cols, values")
    else:
        table = _stored_array(path) if suffix == ".npy" else read_table(path)
    return _from_table(table, path, layout, one_based, shape)


def read_matrix(path: Path) -> np.ndarray:
    """Read a whole matrix of finite numbers: ``.npy``, ``.npz`` with a single array, or a table."""
    suffix = _known(path, (*TABLES, ".npz", ".npy"))
    if suffix == ".npz":
        x = _only(_stored_arrays(path), path, "a single matrix")
    else:
        x = _stored_array(path) if suffix == ".npy" else read_table(path)
    x = _two_dimensional(x, path)
    if not np.isfinite(x).all():
        raise ValueError(f"{path} must hold finite numbers, got NaN or infinite entries")
    return x


def _known(path: Path, suffixes: tuple[str, ...]) -> str:
    """Return the suffix of a file that is there and not empty."""
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise ValueError(f"{path} must end in one of {', '.join(suffixes)}, got {suffix!r}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} must hold data, got an empty file")
    return suffix


def _numeric(x: np.ndarray, path: Path) -> np.ndarray:
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{path} must hold real numbers, got {x.dtype}")
    return x.astype(np.float64)


def _two_dimensional(x: np.ndarray, path: Path) -> np.ndarray:
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"{path} must hold a matrix of shape (m, n), got shape {x.shape}")
    return _numeric(x, path)


def _stored_array(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as handle:
            return np.asarray(np.load(handle, allow_pickle=False))
    except _DAMAGED:
        # The message of numpy would advise to read the file unsafely.
        raise ValueError(
            f"{path} must be an array of numpy, got a damaged file or one that holds no numbers"
        ) from None


def _stored_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, since np.load leaves a damaged archive open.
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (*_DAMAGED, AttributeError, TypeError):
        raise ValueError(
            f"{path} must be an archive of numpy, got a damaged file or one that holds no numbers"
        ) from None


def _stored_sparse(path: Path) -> Any:
    from scipy import sparse

    try:
        return sparse.load_npz(path)
    except (*_DAMAGED, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} must be a sparse matrix of scipy: {error}") from None


def _only(arrays: dict[str, np.ndarray], path: Path, expected: str) -> np.ndarray:
    if len(arrays) != 1:
        raise ValueError(f"{path} must hold {expected}, got {', '.join(sorted(arrays)) or 'none'}")
    return next(iter(arrays.values()))


def _stored_shape(arrays: dict[str, np.ndarray], path: Path) -> tuple[int, int] | None:
    if "shape" not in arrays:
        return None
    stored = arrays["shape"]
    if stored.shape != (2,) or stored.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold a shape of two integers, got {stored.tolist()}")
    return int(stored[0]), int(stored[1])


def _triples(
    rows: np.ndarray,
    cols: np.ndarray,
    values: np.ndarray,
    one_based: bool,
    shape: tuple[int, int] | None,
) -> Entries:
    """Return entries from three columns, the places counted from 0."""
    lengths = [x.shape for x in (rows, cols, values)]
    if len(set(lengths)) != 1 or rows.ndim != 1 or rows.size == 0:
        raise ValueError(
            "rows, cols and values must have one shape (k,), got "
            f"{', '.join(str(s) for s in lengths)}"
        )
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise ValueError("values must be finite numbers, got others")
    places = []
    first = int(one_based)
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
    table: np.ndarray, path: Path, layout: str, one_based: bool, shape: tuple[int, int] | None
) -> Entries:
    """Return the entries of an array that holds triples or a matrix."""
    table = _two_dimensional(table, path)
    if np.isinf(table).any():
        raise ValueError(f"{path} must hold finite numbers or NaN, got infinite entries")
    if layout == "auto":
        layout = _layout_of(table, path)
    if layout == "matrix":
        return _from_holes(table, path)
    if table.shape[1] < 3:
        raise ValueError(
            f"{path} must have columns row, column, value, got {table.shape[1]} columns"
        )
    rows, cols, values = table.T[:3]
    return _triples(rows, cols, values, one_based, shape)


def _layout_of(table: np.ndarray, path: Path) -> str:
    """Return ``"triples"`` or ``"matrix"`` where a table can be only one of them.

    Full lines of two whole numbers >= 0 and a third are triples, anything else with NaN holes is
    a matrix. A table that looks like both, or like a matrix without holes, is refused.
    """
    count, columns = table.shape
    choose = "give --layout triples or --layout matrix"
    if columns in (3, 4):
        places = table[:, :2]
        whole = _are_whole(places) & (places >= 0)
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


def _from_holes(x: np.ndarray, path: Path) -> Entries:
    """Return the entries of a matrix that are not NaN."""
    rows, cols = np.nonzero(~np.isnan(x))
    if rows.size == 0:
        raise ValueError(f"{path} must hold a known entry, got NaN alone")
    return Entries(rows, cols, x[rows, cols], (x.shape[0], x.shape[1]), "matrix")


def _from_sparse(x: Any, path: Path) -> Entries:
    """Return the stored entries of a sparse matrix, zeros included."""
    x = x.tocoo()
    if x.nnz == 0:
        raise ValueError(f"{path} must hold an entry, got none")
    values = _numeric(x.data, path)
    entries = _triples(x.row, x.col, values, False, (int(x.shape[0]), int(x.shape[1])))
    return replace(entries, layout="sparse matrix")


def _matrix_market(path: Path) -> Any:
    from scipy.io import mmread

    try:
        return mmread(path)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} must be a Matrix Market file: {error}") from None
