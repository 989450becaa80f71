"""What the commands print and draw alike: numbers, tables, a run that tells how far it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from dln_geometry.dynamics.losses import Completion

__all__ = [
    "ReportedLoss",
    "decibel",
    "effective_rank",
    "number",
    "print_table",
    "progress_bar",
    "writable",
]


class ReportedLoss:
    """The loss of a completion that tells its value at every evaluation.

    Parameters
    ----------
    loss : Completion
        The loss.
    tell : callable
        Called with each value.
    """

    def __init__(self, loss: Completion, tell: Callable[[float], None]) -> None:
        self._loss, self._tell = loss, tell

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the matrix."""
        return self._loss.shape

    def to(self, **options: Any) -> ReportedLoss:
        """Return the loss on data of another dtype or device."""
        return ReportedLoss(self._loss.to(**options), self._tell)

    def value(self, x: Any) -> Tensor:
        """Return the loss at a point or matrix."""
        return self._loss.value(x)

    def gradient(self, x: Any) -> Tensor:
        """Return its gradient."""
        return self._loss.gradient(x)

    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss and its gradient applied to the two matrices of a point."""
        result = self._loss.contract(left, right)
        self._tell(float(result[0]))
        return result

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient at a matrix."""
        result = self._loss.evaluate(x)
        self._tell(float(result[0]))
        return result


def effective_rank(s: Tensor) -> float:
    """Return ``exp(H)``, H the Shannon entropy of ``s / sum s``; 0 for the matrix 0."""
    total = float(s.sum())
    if total <= 0:
        return 0.0
    share = s.double() / total
    return float(torch.exp(-torch.xlogy(share, share).sum()))


def decibel(ratio: float) -> float:
    """Return ``10 log10`` of a ratio of squares."""
    return 10.0 * math.log10(ratio) if ratio > 0 else -math.inf


def number(x: float, digits: int = 4) -> str:
    """Return a number as text, or a dash for NaN."""
    return "–" if math.isnan(x) else f"{x:.{digits}g}"


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None
) -> None:
    """Print a table of right-aligned columns, and a caption, to the standard output."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    if caption is not None:
        # Below the table, not in it: a narrow table would break its lines.
        console.print(caption, markup=False)


def progress_bar() -> Progress:
    """Return a bar on the standard error stream; its tasks have a field ``note``."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[note]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def writable(path: Path, suffixes: Sequence[str]) -> None:
    """Check before the work begins that a result can be written, and make its folder.

    Raises
    ------
    OSError
        If the folder cannot be made.
    ValueError
        If the suffix is not one of `suffixes`, or `path` is a folder.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"--out must end in one of {', '.join(suffixes)}, got {path}")
    if path.is_dir():
        raise ValueError(f"--out must be a file, got the folder {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
