"""What the commands print: tables, JSON, progress; the end of a run in numbers."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import entropy
from dln_geometry.geometry.points import Collapsed, EndToEnd, effective_rank
from dln_geometry.support import progress_bar


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


def worst_defect(trajectory: Trajectory) -> float | None:
    """Return the largest violation of the invariants on the way, if it was measured."""
    return None if trajectory.defect is None else float(trajectory.defect.max())


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


SHOWN_ENTRIES = 8
"""Entries of a list that a table shows, beside the last."""


def as_json(x: Any) -> Any:
    """Return what JSON can hold: NaN and infinities become null, tensors lists, paths text."""
    if isinstance(x, Tensor):
        x = x.detach().cpu().numpy()
    if isinstance(x, np.ndarray | np.generic):
        x = x.tolist()
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, Mapping):
        return {str(name): as_json(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [as_json(value) for value in x]
    return str(x) if isinstance(x, Path) else x


def depth_in_json(depth: float) -> float | str:
    """Return a depth for JSON, which has no infinity."""
    return float(depth) if math.isfinite(depth) else "inf"


def print_json(found: Mapping[str, Any]) -> None:
    """Print one object of JSON."""
    print(json.dumps(as_json(found), allow_nan=False))


def print_found(title: str, found: Mapping[str, Any], *, json: bool, caption: str = "") -> None:
    """Print results by name: as one object of JSON, or as a table and the names of files."""
    if json:
        print_json(found)
        return
    rows = [(name.replace("_", " "), _as_text(x)) for name, x in found.items() if name != "written"]
    print_table(title, ("", "value"), rows, caption or None)
    if found.get("written"):
        print(f"written: {', '.join(map(str, found['written']))}")


def _as_text(x: Any) -> str:
    """Return a result as text; of a long list the first and the last entries."""
    if isinstance(x, Tensor | np.ndarray):
        x = x.tolist()
    if isinstance(x, list | tuple):
        texts = [_as_text(value) for value in x]
        more = len(texts) > SHOWN_ENTRIES
        return ", ".join(texts[:SHOWN_ENTRIES]) + (f", ..., {texts[-1]}" if more else "")
    return number(x, 6) if isinstance(x, float) else "–" if x is None else str(x)


@contextmanager
def shown_progress(label: str) -> Iterator[Any]:
    """Show a bar on a terminal; yield what runs take as `progress`."""
    if not sys.stderr.isatty():
        yield False
        return
    with progress_bar(label, stderr=True) as show:

        def tell(fraction: float, info: Mapping[str, Any]) -> None:
            loss = info.get("loss", math.nan)
            show(fraction, "" if math.isnan(loss) else f"loss {loss:.3e}")

        yield tell
