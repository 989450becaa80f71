"""Observables of a user along a run: functions of the point, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dln_geometry.support import Observables, as_observable_value

PREFIX = "observed."
"""What the names of observables begin with among the rows of a run."""


def observed_rows(
    observables: Observables, point: Any, batch: tuple[int, ...], device: torch.device
) -> dict[str, Tensor]:
    """Return the values (*batch, ...) at a point, under prefixed names."""
    rows = {}
    for name, f in observables.items():
        rows[PREFIX + name] = as_observable_value(f(point), name, batch).to(device)
    return rows


def observed_path(path: Any, observables: Observables, points: Any) -> Any:
    """Return a trajectory with observables of its saved points, (..., n) each."""
    if not observables:
        return path
    every = [observed_rows(observables, x, tuple(x.shape[:-1]), x.device) for x in points]
    rows = {name: torch.stack([row[name] for row in every]) for name in every[0]}
    return replace(path, observed=split_rows(rows)[1])


def split_rows(rows: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the run's own series and the observables, by their names."""
    own = {k: x for k, x in rows.items() if not k.startswith(PREFIX)}
    return own, {k.removeprefix(PREFIX): x for k, x in rows.items() if k.startswith(PREFIX)}
