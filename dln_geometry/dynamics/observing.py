"""Observables of a user along a run: functions of the point, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dln_geometry.support import shown

Observables = dict[str, Callable[[Any], Any]]

PREFIX = "observed."
"""What the names of observables begin with among the rows of a run."""

_TAKEN = {"t", "time", "loss", "singular_values", "states", "defect", "mode", "particle", "batch"}


def as_observables(observe: Mapping[str, Callable[[Any], Any]] | None) -> Observables:
    """Return the functions by name; refuse names that a run uses itself."""
    if observe is None:
        return {}
    if not isinstance(observe, Mapping):
        raise TypeError(f"observe must be a mapping of names to functions, got {shown(observe)}")
    for name, f in observe.items():
        if not isinstance(name, str) or not callable(f) or isinstance(f, type):
            raise TypeError(
                f"observe must map names to functions of a point, got {shown(name)}: {shown(f)}"
            )
        if not name.isidentifier() or name in _TAKEN or name.startswith("batch_"):
            raise ValueError(f"observe must use names that a run does not, got {shown(name)}")
    return dict(observe)


def observed_rows(
    observables: Observables, point: Any, batch: tuple[int, ...], device: torch.device
) -> dict[str, Tensor]:
    """Return the values (*batch, ...) at a point, under prefixed names."""
    rows = {}
    for name, f in observables.items():
        value = f(point)
        value = value.detach() if isinstance(value, Tensor) else torch.tensor(value, device="cpu")
        if value.is_complex() or tuple(value.shape[: len(batch)]) != batch:
            raise ValueError(
                f"observe[{name!r}] must return real numbers of shape {(*batch, '...')}, got "
                f"{value.dtype} {tuple(value.shape)}"
            )
        value = value if value.is_floating_point() else value.double()
        rows[PREFIX + name] = value.to(device)
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
