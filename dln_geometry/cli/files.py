"""Options that say how a file is read, and files that are written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from typer import Option

from dln_geometry.support import as_positive, written_whole
from dln_geometry.tables import Budget, Doubt, TextFormat, as_budget, as_delimiter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Header = Annotated[
    bool | None,
    Option("--header/--no-header", help="Whether the first line of a text table is a header."),
]
Index = Annotated[
    bool | None,
    Option("--index/--no-index", help="Whether the first column of a text table is an index."),
]
Delimiter = Annotated[
    str | None, Option(help="What separates cells: , ; tab space :: or another mark.")
]
Decimal = Annotated[str, Option(help="Mark before the decimals: . or a comma.")]
MaxMemory = Annotated[
    float | None, Option(help="Limit of memory in GiB [default: that of the machine].")
]
Force = Annotated[
    bool, Option("--force", help="Overwrite files that are no earlier results of this command.")
]

_SOFTWARE = "dln_geometry"
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
) -> None:
    """Refuse names that no result can be written to, before the work begins; make their folder.

    Results never replace the files `kept` (data, store). They replace earlier results of the same
    command, which `ours` recognises, and with `force` any other file.
    """
    found = [path for path in paths if path.exists()]
    replaces = bool(found) and (force or ours(paths))
    for path in paths:
        if suffixes and path.suffix.lower() not in suffixes:
            raise ValueError(f"--out must end in one of {', '.join(suffixes)}, got {path}")
        if path.is_dir():
            raise ValueError(f"--out must be a file, got the folder {path}")
        for other in kept:
            if other is not None and _is_same(path, other):
                raise ValueError(f"--out must not overwrite the data or the store, got {path}")
        if path in found and not replaces:
            raise ValueError(
                f"--out must name new files or earlier results of this command, got {path}: "
                "--force overwrites it"
            )
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise ValueError(f"--out must be in a folder to write to, got {path.parent}")


def check_store(store: Path | None, data: Path) -> None:
    """Refuse a store that is the data."""
    if store is not None and _is_same(store, data):
        raise ValueError(f"--store must not be the data, got {store}")
    if store is not None and store.is_dir():
        raise ValueError(f"--store must be a file, got the folder {store}")


def _is_same(path: Path, other: Path) -> bool:
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure whole or not at all; in a ``.png`` it says that it is ours."""
    kind = path.suffix[1:].lower()
    about: dict[str, Any] = {"metadata": {"Software": _SOFTWARE}} if kind == "png" else {}
    with written_whole(path) as handle:
        figure.savefig(handle, format=kind, dpi=dpi, **about)


def is_our_figure(paths: Sequence[Path]) -> bool:
    """Tell whether a file is a figure that `save_figure` wrote."""
    with open(paths[0], "rb") as handle:
        return f"Software\0{_SOFTWARE}".encode() in handle.read(4096)


def save_array(path: Path, x: Any) -> None:
    """Write an array of numpy whole or not at all."""
    with written_whole(path) as handle:
        # A file itself numpy would write past Python, and not notice that the disk is full.
        sink: Any = SimpleNamespace(write=handle.write)
        np.save(sink, np.asarray(x), allow_pickle=False)
