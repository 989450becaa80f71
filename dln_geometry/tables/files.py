"""Files of numbers by their suffix: text tables, arrays of numpy, sparse matrices, parquet."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from dln_geometry.support import as_matrix_shape
from dln_geometry.tables.arrays import (
    array_entries,
    as_real_matrix,
    as_table,
    sparse_entries,
    triples_of,
)
from dln_geometry.tables.binary import Archive, read_array_file, read_market, reading
from dln_geometry.tables.entries import Entries, Shape, Table
from dln_geometry.tables.ids import Ids, Name
from dln_geometry.tables.memory import Budget, as_budget
from dln_geometry.tables.textual import TextFormat, text_entries, text_matrix, text_pairs
from dln_geometry.tables.triples import as_duplicates, without_duplicates

_TEXTS = (".csv", ".tsv", ".txt", ".tab", ".dat", ".data")
_SPARSE = ("data", "indices", "indptr", "row", "col", "offsets")


def read_entries(
    path: str | os.PathLike[str],
    *,
    layout: str = "auto",
    one_based: bool = False,
    shape: Shape | None = None,
    form: TextFormat | None = None,
    max_memory: float | Budget | None = None,
    duplicates: str = "raise",
) -> Entries:
    r"""Read the observed entries of a matrix.

    Text files (``.csv .tsv .txt .tab .dat .data``, packed as ``.gz`` or not) hold a table. Three
    full columns, whose first two hold whole numbers >= 0 or names, are read as row, column, value;
    a column of times or dates after them is left out. Other tables are a matrix with empty or NaN
    cells where it is unknown. Where that is doubtful, or no cell is empty, `layout` must decide
    (``"triples"`` leaves further columns out). ``.npy``, ``.parquet`` and the only array of an
    ``.npz`` are read like a table. ``.npz`` may also hold the arrays ``rows, cols, values`` and
    perhaps ``shape``, or a sparse matrix of scipy, whose stored entries are the observed ones, as
    are those of ``.mtx``.

    Rows and columns of triples are ids: those that occur become the rows and columns of the matrix,
    in order, and `Entries` names them unless they are just 0, 1, 2, .... With `one_based` or a
    `shape` they are places instead, counted from 1 or 0, and the shape is the one given or that of
    the largest places.

    Parameters
    ----------
    path : path_like
        The file.
    layout : str
        ``"triples"``, ``"matrix"`` or ``"auto"``.
    one_based : bool
        Whether places count from 1.
    shape : tuple of int, optional
        Shape (m, n) of triples.
    form : TextFormat, optional
        Header, index column, delimiter and decimal mark of a text file, where they cannot be told.
    max_memory : float, optional
        Limit in bytes; by default the memory of the machine.
    duplicates : str
        What to do with an entry that is given repeatedly: ``"raise"``, take the ``"mean"`` of its
        values or the ``"last"``.

    Raises
    ------
    Doubt
        If the file may mean two things; the error names the option that decides.
    ValueError
        If the file is damaged, too large, or holds something else; the error names file, line and
        column where there are any.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "ratings.csv"
    ...     _ = file.write_text("user,film,stars\nann,7,5\nbob,9,3\n")
    ...     entries = dln.tables.read_entries(file)
    >>> entries.values, list(entries.row_ids)
    (array([5., 3.]), ['ann', 'bob'])
    """
    if layout not in ("auto", "triples", "matrix"):
        raise ValueError(f"layout must be one of auto, triples, matrix, got {layout}")
    shape = None if shape is None else as_matrix_shape(shape)
    file, form, budget = Path(path), form or TextFormat(), as_budget(max_memory)
    rule, first = as_duplicates(duplicates), 1 if one_based else None
    found = _read_entries(file, layout, first, shape, form, budget, once=rule == "raise")
    return without_duplicates(found, rule)


def read_pairs(
    path: str | os.PathLike[str],
    rows: Ids | None = None,
    columns: Ids | None = None,
    *,
    first: int = 0,
    form: TextFormat | None = None,
    max_memory: float | Budget | None = None,
) -> tuple[list[Name], list[Name], tuple[str, ...]]:
    r"""Read the entries that a text table asks for: its first two columns, row and column.

    Names are matched to `rows` and `columns` (7 and "7" are one); unknown ones stay as they are.
    Where there are no names, places count from `first`. A first line that knows neither is read as
    a header. The notes are sentences about what was skipped. Errors are those of `read_entries`.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "pairs.csv"
    ...     _ = file.write_text("ann,film\nbob,other\n")
    ...     names = dln.tables.Ids(["ann", "bob"]), dln.tables.Ids(["film", "other"])
    ...     rows, columns, notes = dln.tables.read_pairs(file, *names)
    >>> rows, columns
    (['ann', 'bob'], ['film', 'other'])
    """
    file, form, budget = Path(path), form or TextFormat(), as_budget(max_memory)
    if (suffix := _suffix_of(file, form)) not in _TEXTS:
        raise ValueError(f"{path} must end in one of {', '.join(_TEXTS)}, got {suffix!r}")
    return text_pairs(file, form, budget, (rows, columns), first)


def _read_entries(
    file: Path,
    layout: str,
    first: int | None,
    shape: Shape | None,
    form: TextFormat,
    budget: Budget,
    *,
    once: bool,
) -> Entries:
    """Read entries by the suffix of the file; with `once`, repeated ones are refused."""
    suffix = _suffix_of(file, form)
    if suffix in _TEXTS:
        return text_entries(file, form, budget, layout, first, shape, once=once)
    if suffix == ".parquet":
        return _frame_entries(_read_parquet(file, budget), file, layout, first, shape, once=once)
    if suffix == ".mtx":
        table = read_market(file, budget)
        if not isinstance(table, np.ndarray):
            return sparse_entries(table, str(file), once=once)
    elif suffix == ".npz":
        archive = Archive(file, budget)
        if {"rows", "cols", "values"} <= set(archive.names):
            return _of_archive(archive, first, shape, once=once)
        if "format" in archive.names:
            return sparse_entries(_sparse_of(archive), str(file), once=once)
        table = archive.only("a single matrix or the arrays rows, cols, values")
    else:
        table = read_array_file(file, budget)
    return array_entries(table, str(file), layout, first, shape, once=once)


def read_matrix(
    path: str | os.PathLike[str],
    *,
    form: TextFormat | None = None,
    max_memory: float | Budget | None = None,
) -> Table:
    r"""Read a whole matrix of finite numbers: ``.npy``, ``.npz`` with a single array, or a table.

    Options and errors are those of `read_entries`.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "matrix.csv"
    ...     _ = file.write_text("1.5,2\n3,4\n")
    ...     dln.tables.read_matrix(file).values
    array([[1.5, 2. ],
           [3. , 4. ]])
    """
    file, form, budget = Path(path), form or TextFormat(), as_budget(max_memory)
    suffix = _suffix_of(file, form)
    if suffix in _TEXTS:
        return text_matrix(file, form, budget, whole=True)
    if suffix == ".parquet":
        table = as_table(_read_parquet(file, budget), str(file))
    elif suffix == ".mtx":
        x = read_market(file, budget)
        if not isinstance(x, np.ndarray):
            budget.need(16.0 * x.shape[0] * x.shape[1], f"{file.name} as a dense matrix")
            x = x.toarray()
        table = Table(as_real_matrix(x, str(file)))
    else:
        x = (
            Archive(file, budget).only("a single matrix")
            if suffix == ".npz"
            else read_array_file(file, budget)
        )
        table = Table(as_real_matrix(x, str(file)))
    if not np.isfinite(table.values).all():
        raise ValueError(f"{path} must hold finite numbers, got NaN or infinite entries")
    return table


def _suffix_of(path: Path, form: TextFormat) -> str:
    """Return the suffix of a file that is not empty, without the one of gzip."""
    suffixes = (*_TEXTS, ".npz", ".npy", ".mtx", ".parquet")
    suffix = path.suffix.lower()
    if suffix == ".gz" and (inner := path.with_suffix("").suffix.lower()) in (*_TEXTS, ".mtx"):
        suffix = inner
    if suffix not in suffixes:
        raise ValueError(f"{path} must end in one of {', '.join(suffixes)}, got {suffix!r}")
    if path.is_dir():
        raise ValueError(f"{path} must be a file, got a folder")
    if suffix not in _TEXTS and form != TextFormat():
        raise ValueError(
            "header, index, delimiter and decimal must be left out unless a text is read, got "
            f"them with {path}"
        )
    if path.stat().st_size == 0 and path.is_file():
        raise ValueError(f"{path} must hold data, got an empty file")
    return suffix


def _of_archive(archive: Archive, first: int | None, shape: Shape | None, *, once: bool) -> Entries:
    """Return the entries of the arrays rows, cols, values and perhaps shape."""
    names = ["rows", "cols", "values"]
    further = [name for name in archive.names if name not in (*names, "shape")]
    if shape is None and "shape" in archive.names:
        sides = archive.read(["shape"])["shape"]
        if sides.shape != (2,) or sides.dtype.kind not in "iu" or sides.min() < 1:
            got = sides.tolist() if sides.size < 10 else f"shape {sides.shape}"
            raise ValueError(f"{archive.path} must hold a shape of two integers > 0, got {got}")
        shape = int(sides[0]), int(sides[1])
    arrays = archive.read(names)
    columns = [arrays[name] for name in names]
    entries = triples_of(columns, first, shape, str(archive.path), once=once)
    notes = (f"arrays left out: {', '.join(further)}",) if further else ()
    return replace(entries, notes=notes)


def _sparse_of(archive: Archive) -> Any:
    """Return the sparse matrix that scipy saved."""
    from scipy import sparse

    archive.read(["format", *(name for name in _SPARSE if name in archive.names)])
    with reading(archive.path, "a sparse matrix of scipy", told=True):
        return sparse.load_npz(archive.path)


def _read_parquet(path: Path, budget: Budget) -> Any:
    """Read a frame; ValueError where no reader is installed."""
    try:
        import pandas as pd

        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(
            f"{path} must be read by pandas and pyarrow, which are not installed: "
            'pip install "dln-geometry[parquet]"'
        ) from None
    with reading(path, "a file of parquet", told=True):
        held = parquet.ParquetFile(path).metadata
        rows, columns = held.num_rows, held.num_columns
    budget.need(24.0 * rows * columns, path.name)
    with reading(path, "a file of parquet", told=True):
        return pd.read_parquet(path)


def _frame_entries(
    frame: Any, path: Path, layout: str, first: int | None, shape: Shape | None, *, once: bool
) -> Entries:
    """Return the entries of a frame that holds triples, by names or numbers, or a matrix."""
    name = str(path)
    if layout != "matrix" and frame.shape[1] >= 3:
        sides = [np.asarray(frame.iloc[:, j]) for j in range(3)]
        words = any(x.dtype.kind in "OUT" for x in sides[:2])
        timed = all(not np.issubdtype(t, np.floating) for t in map(_kind, frame.dtypes[3:]))
        if words and (layout == "triples" or timed):
            sides[:2] = [_names_of(frame.iloc[:, j], name) for j in range(2)]
            return triples_of(sides, first, shape, name, once=once)
        if layout == "triples":
            return triples_of(sides, first, shape, name, once=once)
    if layout == "matrix":
        return as_table(frame, name).entries()
    return array_entries(as_table(frame, name).values, name, layout, first, shape, once=once)


def _names_of(column: Any, name: str) -> np.ndarray:
    """Return a column of ids: words and dates as text, whole numbers as they are."""
    if column.isna().any():
        raise ValueError(f"{name} must have an id in every row, got none in {column.name!r}")
    ids = np.asarray(column)
    if ids.dtype.kind not in "OUT":
        return ids
    named = [x if isinstance(x, Integral) else str(x) for x in ids]
    return np.array(named, dtype=object)


def _kind(dtype: Any) -> Any:
    return dtype if isinstance(dtype, np.dtype) else np.dtype(object)
