"""What options say about files, names of results that are refused, and figures."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from dln_geometry.support import as_positive, written_whole
from dln_geometry.tables import Budget, Doubt, TextFormat, as_budget, as_delimiter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SOFTWARE = "dln_geometry"
_LOOKED_AT = 1 << 16
"""Bytes at both ends of a file in which its maker is looked for."""
_DECIDE = {
    "layout": "--layout triples or --layout matrix",
    "header": "--header or --no-header",
    "index": "--index or --no-index",
    "decimal": "--decimal ,",
}


def text_format(
    header: bool | None, index: bool | None, delimiter: str | None, decimal: str
) -> TextFormat:
    """Return what the options say about a text table."""
    with option("delimiter"):
        as_delimiter(delimiter)
    if decimal not in (".", ","):
        raise ValueError(f"--decimal must be . or a comma, got {decimal!r}")
    return TextFormat(header, index, delimiter, decimal)


def memory_budget(gib: float | None) -> Budget:
    """Return the budget of ``--max-memory``, in GiB."""
    with option("max-memory"):
        return as_budget(None if gib is None else as_positive(gib, "max-memory") * 2**30)


@contextmanager
def option(name: str) -> Iterator[None]:
    """Let errors about the value of an option begin with its name."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        text = str(error)
        inner = name.replace("-", "_")
        for begin in (f"{name} ", f"{inner} "):
            if text.startswith(begin):
                raise ValueError(f"--{name} {text[len(begin) :]}") from None
        if text.startswith("store "):
            raise ValueError(f"--{text}") from None
        raise ValueError(f"--{name}: {text}") from None


@contextmanager
def deciding() -> Iterator[None]:
    """Let doubts about a file name the option of the command line that decides."""
    try:
        yield
    except Doubt as doubt:
        raise ValueError(f"{doubt.message}: give {_DECIDE[doubt.option]}") from None
    except ValueError as error:
        hint = " (--max-memory)" if "of memory, the limit is" in str(error) else ""
        hint = " (--duplicates)" if "every entry once" in str(error) else hint
        raise ValueError(f"{error}{hint}") from None


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
        if path.is_dir():
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


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure whole or not at all; it says that it is ours."""
    kind = path.suffix[1:].lower()
    about: dict[str, Any] = {"metadata": {"Software" if kind == "png" else "Creator": _SOFTWARE}}
    with written_whole(path) as handle:
        figure.savefig(handle, format=kind, dpi=dpi, **about)


def is_ours(paths: Sequence[Path]) -> bool:
    """Tell whether files are results of this program: figures, runs, layers, tables over time."""
    return all(_is_result(path) for path in paths if path.exists())


def _is_result(path: Path) -> bool:
    try:
        with open(path, "rb") as handle:
            head = handle.read(_LOOKED_AT)
            handle.seek(max(0, path.stat().st_size - _LOOKED_AT))
            tail = handle.read()
        names = zipfile.ZipFile(path).namelist() if path.suffix.lower() == ".npz" else []
    except (OSError, zipfile.BadZipFile):
        return False
    if names:
        layers = [f"W_{p}.npy" for p in range(1, len(names) + 1)]
        return names == layers or {"meta.npy", "t.npy"} <= set(names)
    if path.suffix.lower() in (".csv", ".tsv"):
        return head.startswith((b"time,", b"time\t"))
    return _SOFTWARE.encode() in head + tail


def save_array(path: Path, x: Any) -> None:
    """Write an array of numpy whole or not at all."""
    with written_whole(path) as handle:
        # A file itself numpy would write past Python, and not notice that the disk is full.
        sink: Any = SimpleNamespace(write=handle.write)
        np.save(sink, np.asarray(x), allow_pickle=False)
