"""Options of a flow on several processes: they must agree, and so must functions of users."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from dln_geometry.dynamics.losses import ranks_of
from dln_geometry.dynamics.sharded.points import check_point
from dln_geometry.dynamics.sharded.ranks import Ranks
from dln_geometry.support import shown


def shared_options(loss: Any, start: Any, options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Check the options of a flow, and return those that change: progress, monitor, observe."""
    ranks = ranks_of(loss)
    if ranks is None:
        raise TypeError(
            "loss must be distributed like the start, by sharded.distribute(loss, mesh), got "
            f"{type(loss).__name__}"
        )
    ranks.together(lambda: check_point(start, ranks))
    if options["dense"]:
        raise ValueError("dense must be False where several processes hold the state, got True")
    if options["keep_points"] and options["store"] is not None:
        raise ValueError(
            "keep_points must be False for a run with a store on several processes, got True"
        )
    told = {n: _comparable(x) for n, x in options.items() if n not in ("progress", "monitor")}
    told |= {n: _comparable(getattr(start, n)) for n in ("depth", "dtype", "shape")}
    ranks.alike("the same in all processes", **told)
    progress, monitor, observe = (options[n] for n in ("progress", "monitor", "observe"))
    if callable(monitor):
        monitor = _of_the_first(ranks, monitor)
    if isinstance(observe, Mapping):
        observe = {n: _agreed(ranks, f) if callable(f) else f for n, f in observe.items()}
    return progress if ranks.rank == 0 else False, monitor, observe


def _comparable(value: Any) -> str:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return shown({n: None if callable(x) else x for n, x in value.items()})
    return shown(value)


def _agreed(ranks: Ranks, f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that fails in all processes if it fails in one."""
    return lambda point: ranks.together(lambda: f(point))


def _of_the_first(ranks: Ranks, f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function whose numbers are those of the first process."""

    def values(point: Any) -> Any:
        x = ranks.together(lambda: torch.as_tensor(f(point), device=ranks.device).double())
        return ranks.summed(x if ranks.rank == 0 else torch.zeros_like(x))[0]

    return values
