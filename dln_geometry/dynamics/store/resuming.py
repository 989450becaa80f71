"""`resumable`, by which a run has the options `store` and `every`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from dln_geometry.dynamics.losses import ranks_of
from dln_geometry.dynamics.store.store import Store
from dln_geometry.support import EVERY, Schedule

UNSEEN = frozenset({"store", "every", "progress"})
"""Options that no run depends on."""

P = ParamSpec("P")
Returned = TypeVar("Returned")


def resumable(*free: str) -> Callable[[Callable[P, Returned]], Callable[P, Returned]]:
    """Decorate a run that takes a path as its option `store`, and `every` beside it.

    The run is given a `Store` in its place, locked while the run lasts. The store knows the run's
    name and all of its arguments, defaults included, but those that are `free` to change when the
    run is continued: a new option is known without being listed anywhere.
    """

    def decorate(run: Callable[P, Returned]) -> Callable[P, Returned]:
        signature = inspect.signature(run)

        @wraps(run)
        def resumed(*args: P.args, **options: P.kwargs) -> Returned:
            path: Any = options.get("store")
            schedule = Schedule(options.get("every", EVERY))
            if path is None:
                return run(*args, **options)
            if not isinstance(path, str | os.PathLike):
                raise TypeError(f"store must be a path, got {type(path).__name__}")
            try:
                given = signature.bind(*args, **options)
            except TypeError:
                # Python's own message of such a call names the run.
                return run(*args, **options)
            given.apply_defaults()
            facts = {k: v for k, v in given.arguments.items() if k not in {*free, *UNSEEN}}
            for name, value in facts.items():
                if isinstance(value, torch.Generator):
                    # Before the run draws from it.
                    facts[name] = [value.device.type, value.get_state()]
            # A loss on several processes opens the stores of its runs: one process writes.
            held = next((x.held for x in facts.values() if ranks_of(x) is not None), Store.held)
            with held(path, {"run": run.__name__, **facts}, schedule) as store:
                options["store"] = store
                return run(*args, **options)

        return resumed

    return decorate


def opened(store: str | os.PathLike[str] | None) -> Store | None:
    """Return the store of a run that is `resumable`."""
    assert store is None or isinstance(store, Store), "a run with a store must be resumable"
    return store


def foreign_state(store: Any, error: Exception) -> ValueError:
    """Return the error that names a store whose state is not one of the run."""
    return ValueError(f"store must hold a state of this run, got {store}: {error}")
