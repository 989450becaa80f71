"""What options say about files, and errors that name the option."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dln_geometry.support import as_positive
from dln_geometry.tables import Budget, Doubt, TextFormat, as_budget, as_delimiter

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
