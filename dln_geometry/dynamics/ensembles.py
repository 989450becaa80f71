"""One run for many starts: in batches on one device, or spread over workers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.store import check_place, write_json
from dln_geometry.dynamics.sweeping import each_done
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Collapsed, EndToEnd, Network
from dln_geometry.support import (
    EVERY,
    Every,
    Progress,
    ProgressCallback,
    Schedule,
    as_count,
    as_seed,
    shown,
)

MEMBERS = 64
"""Members of an ensemble that are run at once, unless the caller says otherwise."""


def ensemble(
    run: Callable[..., Any],
    inputs: Any,
    *,
    executor: Executor | None = None,
    seed: int | None = None,
    members: int = MEMBERS,
    store: str | os.PathLike[str] | None = None,
    every: Every = EVERY,
    progress: bool | ProgressCallback = False,
) -> Any:
    """Call ``run(batch, generator=...)`` for many starts, some at a time; join the results.

    The starts are cut into batches of `members`. Each batch has its own stream of random numbers,
    which follows from `seed` and the number of the batch: the result is the same for every
    executor and every number of workers.

    Parameters
    ----------
    run : callable
        Takes a batch of starts and returns a `Trajectory`, a tensor, a point with a leading
        dimension for the batch, or a tuple or mapping of these. If it has the options
        ``generator``, ``store`` or ``every``, they are given to it: ``functools.partial`` of
        `gradient_flow`, `langevin` and their like can be taken as it is.
    inputs : batched point or tensor, or sequence of points, tensors or numbers
        The starts: along the first dimension of the batch, or one by one, of one shape.
    executor : concurrent.futures.Executor, optional
        Where the batches are run: threads, processes (`run` must be one that can be pickled), or a
        cluster with this interface, as ``dask.distributed.Client(...).get_executor()``. By default
        one after another, here.
    seed : int, optional
        Required if `run` has the option ``generator``.
    members : int
        Starts in a batch. The random numbers depend on it.
    store : path, optional
        Folder with a store for every batch, named ``0``, ``1``, ...: groups of one zarr. A killed
        ensemble continues each from where it was. Workers must reach the folder.
    every : float or mapping
        When each batch is written, as in `gradient_flow`.
    progress : bool or callable
        Show a progress bar; or call ``progress(fraction_done, info)`` after each batch.

    Returns
    -------
    Trajectory, Tensor, point, tuple or dict
        As returned by `run`, for all starts in their order. Batches of trajectories must have the
        same saved times (``save_at``). Counts in `Trajectory.stats` are sums. What a monitor saw
        and dense output are left out.

    Raises
    ------
    SweepError
        If a batch fails: it names the batch, and those that have not begun are cancelled.

    Examples
    --------
    >>> from functools import partial
    >>> loss = dln.losses.Quadratic([[1.0, 0.0], [0.0, 0.0]])
    >>> starts = dln.Collapsed.random((2, 2), 2, 3, batch=(5,), scale=0.1, generator=0)
    >>> flow = partial(dln.gradient_flow, loss, t_end=20.0, save_at=[0.0, 20.0])
    >>> found = dln.ensemble(flow, starts, members=2)
    >>> found.batch_shape, dln.effective_rank(found.final).round()
    (torch.Size([5]), tensor([1., 1., 1., 1., 1.]))
    """
    if not callable(run):
        raise TypeError(f"run must be a function, got {shown(run)}")
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(f"executor must have the method submit(f, ...), got {shown(executor)}")
    Schedule(every)
    size, batches = as_count(members, "members"), _as_batch(inputs)
    takes = _options_of(run)
    if seed is not None:
        as_seed(seed, "seed")
    elif "generator" in takes:
        raise ValueError("seed must be given for a run with random numbers, got None")
    sizes = batches.shape if isinstance(batches, Tensor) else batches.batch_shape
    cuts = [slice(k, k + size) for k in range(0, sizes[0], size)]
    pick: Any = batches.__getitem__ if isinstance(batches, Tensor) else batches.select
    count, parts = len(cuts), [pick(cut) for cut in cuts]
    calls: list[dict[str, Any]] = [{"run": run, "batch": part} for part in parts]
    for k, call in enumerate(calls):
        if "generator" in takes:
            call["generator"] = stream(seed or 0, k)
    if store is not None:
        if "store" not in takes:
            raise ValueError("store must go with a run that has the option store")
        folder = _store_folder(store)
        for k, call in enumerate(calls):
            call["store"] = str(folder / str(k))
            if "every" in takes:
                call["every"] = every
    found: dict[int, Any] = {}
    places = [{"batch": k} for k in range(count)]
    with Progress(progress, "ensemble") as bar:
        for k, result in each_done(_run_batch, calls, places, executor):
            found[k] = result
            if bar.callback is not None:
                bar.callback(len(found) / count, {"obs": [[float("nan")]]})
    return joined([found[k] for k in range(count)])


def stream(seed: int, number: int) -> int:
    """Return the seed of a stream of random numbers, independent of those of other numbers.

    Examples
    --------
    >>> from dln_geometry.dynamics.ensembles import stream
    >>> stream(0, 0) != stream(0, 1)
    True
    """
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(number,))
    return int(sequence.generate_state(1, np.uint64)[0])


def _run_batch(run: Callable[..., Any], batch: Any, **options: Any) -> Any:
    if "generator" in options:
        options["generator"] = torch.Generator().manual_seed(options["generator"])
    return run(batch, **options)


def _options_of(run: Callable[..., Any]) -> set[str]:
    """Return which of the options that an ensemble gives a run has."""
    try:
        given = inspect.signature(run).parameters.values()
    except (TypeError, ValueError):
        return set()
    given = list(given)
    named = {p.name for p in given if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    known = {"generator", "store", "every"} - getattr(run, "keywords", {}).keys()
    handed = any(p.kind == p.VAR_KEYWORD for p in given)
    home = getattr(getattr(run, "func", run), "__module__", "") or ""
    if handed and home.startswith("dln_geometry."):
        # `brownian_motion` and `free_energy_flow` hand their options on.
        named |= {"store", "every"}
    return known & named


def _store_folder(store: Any) -> Path:
    """Return the folder of the stores of an ensemble, a group of zarr."""
    if not isinstance(store, str | os.PathLike):
        raise TypeError(f"store must be a path, got {type(store).__name__}")
    folder = Path(os.path.realpath(store))
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"dln_geometry_format": 3}}
    check_place(folder)
    if not (folder / "zarr.json").exists():
        write_json(folder / "zarr.json", group)
    return folder


def _as_batch(inputs: Any) -> Any:
    """Return starts as one batch, which can be cut along its first dimension."""
    if isinstance(inputs, Tensor | np.ndarray | Collapsed | EndToEnd | Network):
        whole = torch.as_tensor(inputs) if isinstance(inputs, np.ndarray) else inputs
        batch = whole.shape if isinstance(whole, Tensor) else whole.batch_shape
        if not len(batch) or not batch[0]:
            raise ValueError(f"inputs must hold at least one start, got {shown(inputs)}")
        return whole
    if not isinstance(inputs, Sequence) or isinstance(inputs, str) or not len(inputs):
        raise TypeError(f"inputs must be a batch or a sequence of starts, got {shown(inputs)}")
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in inputs):
        return torch.tensor(inputs, device="cpu")
    try:
        return _put_together(inputs, torch.stack)
    except (TypeError, RuntimeError, AttributeError):
        raise TypeError(
            f"inputs must be points, tensors or numbers of one kind and shape, got {shown(inputs)}"
        ) from None


def joined(parts: list[Any]) -> Any:
    """Put the results of batches together along their first dimension."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: joined([part[name] for part in parts]) for name in first}
    if isinstance(first, Trajectory):
        return _joined_paths(parts)
    if first is None or isinstance(first, Tensor | Collapsed | EndToEnd | Network):
        return None if first is None else _put_together(parts, torch.cat)
    if isinstance(first, tuple):
        return tuple(joined(list(column)) for column in zip(*parts, strict=True))
    if isinstance(first, list):
        return [x for part in parts for x in part]
    raise TypeError(
        f"run must return a Trajectory, tensors or points of the batch, got {shown(first)}"
    )


def _put_together(parts: Sequence[Any], how: Callable[..., Tensor]) -> Any:
    """Stack or join tensors or points."""
    first = parts[0]
    if isinstance(first, Tensor):
        return how(list(parts))
    if isinstance(first, Network):
        return Network.from_layers([how(list(layers)) for layers in zip(*parts, strict=True)])
    if isinstance(first, Collapsed | EndToEnd):
        names = ("L", "R") if isinstance(first, Collapsed) else ("u", "s", "vh")
        tensors = {name: how([getattr(p, name) for p in parts]) for name in names}
        return first.replace(**tensors, check=False)
    raise TypeError(f"got {shown(first)}")


def _joined_paths(paths: list[Trajectory]) -> Trajectory:
    first = paths[0]
    if any(p.t.shape != first.t.shape or bool((p.t != first.t).any()) for p in paths):
        raise ValueError("run must save the same times in every batch: give it save_at")

    def beside(values: list[Any]) -> Any:
        return None if values[0] is None else torch.cat(values, dim=first.t.ndim)

    series = ("loss", "singular_values", "states", "defect")
    status = [s for p in paths for s in ([p.status] if isinstance(p.status, str) else p.status)]
    points = None
    if first.points is not None:
        every = zip(*(p.points or () for p in paths), strict=True)
        points = tuple(joined(list(row)) for row in every)
    return replace(
        first,
        **{name: beside([getattr(p, name) for p in paths]) for name in series},
        observed={n: beside([p.observed[n] for p in paths]) for n in first.observed},
        final=joined([p.final for p in paths]),
        status=status[0] if len(set(status)) == 1 and isinstance(first.status, str) else status,
        stats=_summed([p.stats for p in paths]),
        points=points,
        monitored=None,
        dense=None,
    )


def _summed(stats: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Add counts; keep what is equal everywhere, and let others be lists."""
    found: dict[str, Any] = {}
    for name in stats[0]:
        values = [s.get(name) for s in stats]
        counts = all(isinstance(v, int) and not isinstance(v, bool) for v in values)
        if name in ("evaluations", "rejected", "corrections", "switches", "seconds") and counts:
            found[name] = sum(v for v in values if v is not None)
        else:
            found[name] = values[0] if all(v == values[0] for v in values) else values
    return found
