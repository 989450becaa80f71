"""Parts that the commands share: the end of a run in numbers, tables, options of integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import entropy
from dln_geometry.geometry.points import Collapsed, EndToEnd, effective_rank


@dataclass(frozen=True)
class Outcome:
    """The last matrix of a completion, and its numbers; `drift` and `seconds` as they are shown."""

    matrix: Tensor
    loss: float
    effective_rank: float
    entropy: float
    drift: str
    seconds: str


def outcome_of(trajectory: Trajectory) -> Outcome:
    """Return the end of a gradient flow from a balanced start."""
    point = trajectory.final
    assert isinstance(point, Collapsed | EndToEnd)
    assert trajectory.loss is not None
    assert trajectory.singular_values is not None
    assert trajectory.defect is not None
    return Outcome(
        matrix=point.matrix,
        loss=float(trajectory.loss[-1]),
        effective_rank=float(effective_rank(trajectory.singular_values[-1])),
        entropy=float(entropy(point)),
        # One layer has no moments.
        drift=f"{float(trajectory.defect.max()):.1e}" if trajectory.depth > 1 else "–",
        seconds=f"{trajectory.stats['seconds']:.1f}",
    )


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
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    if caption is not None:  # in a narrow table its lines would break
        console.print(caption, markup=False)


def read_integers(text: str, option: str) -> tuple[int, ...]:
    """Read the value of an option: integers with commas between."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} must be integers with commas between, got {text}") from None
