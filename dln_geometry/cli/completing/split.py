"""What both ways to complete a matrix share: names of results, held-out entries, colour scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dln_geometry.tables import load_ids

HEADER = "row,column,prediction"
CURVE_HEADER = "time,validation error"
"""First lines of the tables that are written, by which they are known again."""
SHOWN = (1.0, 99.0)
"""Percentiles that span a colour scale: single wild entries would leave the others grey."""


def sides_of(shape: tuple[int, int]) -> str:
    """Return a shape as text."""
    return f"{shape[0]} x {shape[1]}"


def name_of_results(data: Path, out: Path | None, suffixes: Sequence[str]) -> Path:
    """Return the name of the results without suffix."""
    stem = Path(data.name.removesuffix(".gz")).stem
    name = Path(f"{stem}-completed")
    if out is not None:
        name = out / name if out.is_dir() else out
    return name.with_suffix("") if name.suffix in suffixes else name


def result_files(out: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files of results; tables (``-curve.csv``) stand beside ``NAME-completed``."""
    name = out.name
    return [
        out.with_name((name.removesuffix("-completed") if s[0] == "-" else name) + s)
        for s in suffixes
    ]


def are_results(paths: Sequence[Path]) -> bool:
    """Tell whether files are results of ``dln complete``: names of sides, and our tables."""
    names = next(path for path in paths if path.suffix == ".json")
    try:
        load_ids(names)
        for path in paths:
            if path.suffix == ".csv" and path.exists():
                with open(path, encoding="utf-8") as handle:
                    if not handle.readline().startswith((HEADER, CURVE_HEADER)):
                        return False
    except (OSError, ValueError):
        return False
    return True


def check_limits(limits: Mapping[str, float | None]) -> None:
    """Refuse values of options that are no limits: negative, infinite or NaN."""
    for name, value in limits.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"--{name} must be >= 0 and finite, got {value}")


def held_out_places(
    count: int, share: float, seed: int, least: int, why: str = ""
) -> tuple[Tensor, Tensor]:
    """Return which entries are seen and which are held out; refuse to leave less than `least`."""
    out = round(share * count)
    if count - out < least:
        raise ValueError(
            f"too few entries are left to learn from: they must be at least {least}{why}, "
            f"got {count - out} of {count}{f' with --holdout {share:g}' if share else ''}"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[out:], order[:out]


def robust_bound(x: np.ndarray) -> float:
    """Return the bound of a colour scale around 0 that single wild entries do not move."""
    low, high = np.percentile(x, SHOWN)
    return float(max(-low, high)) or 1.0
