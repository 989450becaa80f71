"""Names of results: what may be written where, and what is an earlier result."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from dln_geometry.cli.files import option

ARRAYS = (".npz", ".pt", ".safetensors")
TABLES = (".csv", ".tsv", ".parquet")
MATRICES = (".npy", *ARRAYS, *TABLES, ".mtx")
RUNS = (".npz", ".nc", ".zarr", ".pt", ".safetensors", *TABLES)
FIGURES = (".png", ".pdf", ".svg")
MAKER = "dln_geometry"
"""What results hold where their format has room for it, so that the next ones may replace them."""
_RUN = re.compile(
    rb"time[,\t](batch(_0)?[,\t])?(loss|singular_values_1|states_1|charge_1)[,\t\r\n]"
)
"""The first line of a run as text: tables of times that others made begin otherwise."""
_LOOKED_AT = 1 << 16
"""Bytes at both ends of a file in which its maker is looked for."""


def check_results(
    out: Path | None,
    suffixes: tuple[str, ...],
    figure: Path | None,
    kept: tuple[Path | None, ...],
    *,
    force: bool,
) -> None:
    """Refuse names of results that cannot be written, before the work begins."""
    if out is not None:
        check_outputs([out], [*kept, figure], is_ours, force=force, suffixes=suffixes)
    if figure is not None:
        check_outputs([figure], kept, is_ours, force=force, suffixes=FIGURES, name="figure")
    for path in (out, figure):
        _check_library(path)


def _check_library(path: Path | None) -> None:
    """Refuse a format whose library is not installed, before the work begins."""
    wanted = {".parquet": "pyarrow", ".safetensors": "safetensors", ".zarr": "zarr"}
    library = wanted.get("" if path is None else path.suffix.lower())
    if library is not None:
        from importlib.util import find_spec

        if find_spec(library) is None:
            extra = {"pyarrow": "dln-geometry[parquet]", "safetensors": "dln-geometry[safetensors]"}
            raise ValueError(
                f"--out: {path} must be written by {library}, which is not installed: "
                f'pip install "{extra.get(library, library)}"'
            )


def check_outputs(
    paths: Sequence[Path],
    kept: Sequence[Path | None],
    ours: Callable[[Sequence[Path]], bool],
    *,
    force: bool,
    suffixes: Sequence[str] = (),
    name: str = "out",
) -> None:
    """Refuse names that no result can be written to, before the work begins; make their folder.

    Results never replace the files `kept` (data, store). They replace earlier results of the same
    command, which `ours` recognises, and with `force` any other file.
    """
    found = [path for path in paths if path.exists()]
    replaces = bool(found) and (force or ours(paths))
    for path in paths:
        if suffixes and path.suffix.lower() not in suffixes:
            raise ValueError(f"--{name} must end in one of {', '.join(suffixes)}, got {path}")
        if path.is_dir() and not _is_zarr(path):
            raise ValueError(f"--{name} must be a file, got the folder {path}")
        for other in kept:
            if other is not None and _is_same(path, other):
                raise ValueError(f"--{name} must not overwrite the data or the store, got {path}")
        if path in found and not replaces:
            raise ValueError(
                f"--{name} must name new files or earlier results of this command, got {path}: "
                "--force overwrites it"
            )
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise ValueError(f"--{name} must be in a folder to write to, got {path.parent}")


def check_store(store: Path | None, data: Path) -> None:
    """Refuse a store that is the data."""
    if store is not None and _is_same(store, data):
        raise ValueError(f"--store must not be the data, got {store}")
    if store is not None:
        from dln_geometry.dynamics.store import check_place

        with option("store"):
            check_place(store)


def _is_same(path: Path, other: Path) -> bool:
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()


def is_ours(paths: Sequence[Path]) -> bool:
    """Tell whether files are results of this program: figures, runs, layers, tables over time."""
    return all(_is_result(path) for path in paths if path.exists())


def _is_result(path: Path) -> bool:
    if path.is_dir():
        return _is_zarr(path) and any(MAKER in (path / n).read_text() for n in _about(path))
    try:
        with open(path, "rb") as handle:
            head = handle.read(_LOOKED_AT)
            handle.seek(max(0, path.stat().st_size - _LOOKED_AT))
            tail = handle.read()
        names = zipfile.ZipFile(path).namelist() if path.suffix.lower() == ".npz" else []
    except (OSError, zipfile.BadZipFile):
        return False
    # Before 0.2.0 archives of layers had no mark; runs have none.
    layers = [f"W_{p}.npy" for p in range(1, len(names) + 1)]
    if names and (names == layers or {"meta.npy", "t.npy"} <= set(names)):
        return True
    if path.suffix.lower() in (".csv", ".tsv"):
        return _RUN.match(head) is not None
    return MAKER.encode() in head + tail


def _about(path: Path) -> list[str]:
    """Return the files that hold the attributes of a zarr store, of version 3 or 2."""
    return [name for name in ("zarr.json", ".zattrs") if (path / name).is_file()]


def _is_zarr(path: Path) -> bool:
    return path.suffix.lower() == ".zarr" and bool(_about(path) or (path / ".zgroup").is_file())
