"""One run for every combination of some parameters, in one labelled array."""

from __future__ import annotations

import itertools
import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dln_geometry.dynamics.cells import Cell, Cells, cell_of, name_of
from dln_geometry.dynamics.store import Store
from dln_geometry.support import EVERY, Every, Progress, ProgressCallback, Schedule, shown

if TYPE_CHECKING:
    import xarray


class SweepError(RuntimeError):
    """A run of a sweep failed; `coordinates` says which, and ``__cause__`` why.

    Examples
    --------
    >>> try:
    ...     dln.sweep(lambda depth: {"x": 1.0 / (depth - 2)}, depth=[1, 2])
    ... except dln.SweepError as error:
    ...     print(error.coordinates)
    {'depth': 2}
    """

    def __init__(self, message: str, coordinates: dict[str, Any]) -> None:
        super().__init__(message)
        self.coordinates = coordinates

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.coordinates)


def sweep(
    run: Callable[..., Any],
    axes: Mapping[str, Any] | None = None,
    /,
    *,
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
    every: Every = EVERY,
    progress: bool | ProgressCallback = False,
    **named: Any,
) -> xarray.Dataset:
    """Call ``run(depth=..., seed=...)`` for every combination; return one labelled dataset.

    Parameters
    ----------
    run : callable
        Called with one value of every axis, by name. It returns a number or an array; a mapping of
        names to these; a `Trajectory`; or a Dataset or DataArray of xarray. Draw from a seed that
        is an axis: then the result does not depend on the order of the runs.
    axes, **named : sequence, or mapping of labels to values
        Values of the parameters, ``depth=[2, 3, math.inf]``, ``seed=range(4)``: numbers or texts,
        or anything else under labels, ``loss={"square": ..., "quartic": ...}``. `axes` takes
        names that are options here.
    executor : concurrent.futures.Executor, optional
        Where the runs are made: threads, processes (`run` must be one that can be pickled), or a
        cluster with this interface, as ``dask.distributed.Client(...).get_executor()``. The result
        is the same whatever the number of workers.
    store : path, optional
        Folder in the format of zarr that keeps the runs that are done: a killed sweep makes the
        others. ``xarray.open_zarr`` reads them meanwhile, as a table with the dimension ``cell``.
        The store knows the name of `run` and the labels of the axes, not what `run` does.
    every : float or mapping
        When they are written, as in `gradient_flow`; a step is a run.
    progress : bool or callable
        Show a progress bar; or call ``progress(fraction_done, info)``.

    Returns
    -------
    xarray.Dataset
        One variable for each name, with the axes as its first dimensions. Runs may end with arrays
        of different lengths: shorter ones are filled by NaN. The times of trajectories are a
        coordinate if all runs have the same, else a variable ``time`` over the dimension ``step``.

    Raises
    ------
    SweepError
        If a run fails: it names the values, and the runs that have not begun are cancelled.

    Examples
    --------
    >>> def run(depth, scale):
    ...     start = dln.Collapsed.random((2, 2), 2, depth, scale=scale, generator=0)
    ...     loss = dln.losses.Quadratic([[1.0, 0.0], [0.0, 0.0]])
    ...     end = dln.gradient_flow(loss, start, t_end=1.0).final
    ...     return {"rank": dln.effective_rank(end), "loss": loss.value(end)}
    >>> found = dln.sweep(run, depth=[2, 3], scale=[0.1, 1.0, 2.0])
    >>> dict(found.sizes), found["rank"].dims
    ({'depth': 2, 'scale': 3}, ('depth', 'scale'))
    """
    if not callable(run):
        raise TypeError(f"run must be a function, got {shown(run)}")
    if axes is not None and not isinstance(axes, Mapping):
        raise TypeError(f"axes must be a mapping of names to values, got {shown(axes)}")
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(f"executor must have the method submit(f, ...), got {shown(executor)}")
    values = {name: _axis(name, given) for name, given in {**(axes or {}), **named}.items()}
    if not values:
        raise ValueError("axes must hold at least one parameter, got none")
    schedule = Schedule(every)
    labels = [list(axis) for axis in values.values()]
    places = [dict(zip(values, row, strict=True)) for row in itertools.product(*labels)]
    calls = [{name: values[name][label] for name, label in place.items()} for place in places]
    axis_labels = dict(zip(values, labels, strict=True))
    if store is None:
        done = _done(run, calls, places, executor, progress, Cells(None, axis_labels))
    else:
        if not isinstance(store, str | os.PathLike):
            raise TypeError(f"store must be a path, got {type(store).__name__}")
        facts = {"run": "sweep", "of": name_of(run), "axes": list(axis_labels.items())}
        with Store.held(store, facts, schedule) as kept:
            done = _done(run, calls, places, executor, progress, Cells(kept, axis_labels))
    return _gathered([done[k] for k in range(len(places))], axis_labels)


def _done(
    run: Callable[..., Any],
    calls: list[dict[str, Any]],
    places: list[dict[str, Any]],
    executor: Executor | None,
    progress: bool | ProgressCallback,
    cells: Cells,
) -> dict[int, Cell]:
    """Make the runs that are not done yet; keep what is done whatever happens."""
    missing = [k for k in range(len(places)) if k not in cells.done]
    work = [{"run": run, "call": calls[k]} for k in missing]
    with Progress(progress, "sweep") as bar:
        try:
            for k, cell in each_done(_called, work, [places[k] for k in missing], executor):
                cells.add(missing[k], cell)
                if bar.callback is not None:
                    bar.callback(len(cells.done) / len(places), {"obs": [[math.nan]]})
        finally:
            cells.flush()
    return cells.done


def _axis(name: Any, given: Any) -> dict[Any, Any]:
    """Return the values of an axis by their labels."""
    if not isinstance(name, str) or not name.isidentifier():
        raise TypeError(f"axes must be named by identifiers, got {shown(name)}")
    if isinstance(given, Mapping):
        axis = dict(given)
    elif isinstance(given, Iterable) and not isinstance(given, str | bytes):
        listed = given.tolist() if isinstance(given, np.ndarray | Tensor) else list(given)
        axis = {value: value for value in listed if isinstance(value, str | numbers.Real)}
        if len(axis) != len(listed):
            raise ValueError(
                f"{name} must hold different numbers or texts (or a mapping of labels), got "
                f"{shown(given)}"
            )
    else:
        raise TypeError(f"{name} must be a sequence of values, got {shown(given)}")
    if not axis or not (
        all(isinstance(label, str) for label in axis)
        or all(isinstance(label, numbers.Real) and label == label for label in axis)
    ):
        raise ValueError(f"{name} must hold values, all numbers or all texts, got {shown(given)}")
    return axis


class _naming_the_run:
    """Raise what fails inside as a `SweepError` that names the parameters."""

    def __init__(self, place: dict[str, Any]) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        if isinstance(error, Exception):
            where = ", ".join(f"{name} = {shown(value)}" for name, value in self.place.items())
            text = f"run failed at {where}: {type(error).__name__}: {error}"
            raise SweepError(text, self.place) from error


def each_done(
    work: Callable[..., Any],
    calls: Sequence[dict[str, Any]],
    places: Sequence[dict[str, Any]],
    executor: Executor | None,
) -> Iterator[tuple[int, Any]]:
    """Yield the number of every call and its result, each once, when it is done."""
    if executor is None:
        for k, (call, place) in enumerate(zip(calls, places, strict=True)):
            with _naming_the_run(place):
                result = work(**call)
            yield k, result
        return
    waiting = {executor.submit(work, **call): k for k, call in enumerate(calls)}
    try:
        for future in as_completed(waiting):
            with _naming_the_run(places[waiting[future]]):
                result = future.result()
            yield waiting[future], result
    finally:
        for future in waiting:
            future.cancel()


def _called(run: Callable[..., Any], call: dict[str, Any]) -> Cell:
    """Make one run, here or in another process, which sends back plain arrays."""
    return cell_of(run(**call), getattr(run, "__name__", "value"))


def _gathered(cells: list[Cell], labels: dict[str, list[Any]]) -> xarray.Dataset:
    """Put the arrays of all runs into one dataset."""
    import xarray

    inner = {d for cell in cells for dims, _ in cell.values() for d in dims}
    if clash := (inner | {n for cell in cells for n in cell}) & labels.keys():
        raise ValueError(f"run must not return names of axes, got {', '.join(sorted(clash))}")
    # A coordinate that all runs share stays one; others become variables.
    shared = {d: cells[0][d] for d in inner if d in cells[0] and _is_shared(d, cells)}
    renamed = {d: "step" if d == "time" else f"{d}_index" for d in inner - shared.keys()}
    renamed = {d: new for d, new in renamed.items() if any(d in cell for cell in cells)}
    shape, data = tuple(len(x) for x in labels.values()), {}
    for name in dict.fromkeys(n for cell in cells for n in cell if n not in shared):
        found = [cell.get(name) for cell in cells]
        kinds = {x[0] for x in found if x is not None}
        if len(kinds) > 1:
            raise ValueError(f"run must give {name} the same dimensions, got {sorted(kinds)}")
        whole = _filled([None if x is None else x[1] for x in found])
        dims = tuple(renamed.get(d, d) for d in kinds.pop())
        data[name] = ((*labels, *dims), whole.reshape(*shape, *whole.shape[1:]))
    return xarray.Dataset(data, coords={**labels, **shared})


def _filled(arrays: list[np.ndarray | None]) -> np.ndarray:
    """Stack arrays; those that are shorter or missing are filled by NaN (texts by None)."""
    known = [a for a in arrays if a is not None]
    sizes = {a.shape for a in known}
    if len(known) == len(arrays) and len(sizes) == 1:
        return np.stack(known)
    dtype = np.result_type(*known)
    text = dtype.kind in "US"
    dtype = np.dtype(object) if text else np.result_type(dtype, np.float64)
    shape = np.max(list(sizes), axis=0).astype(int).tolist()
    whole = np.full((len(arrays), *shape), None if text else np.nan, dtype)
    for k, a in enumerate(arrays):
        if a is not None:
            whole[(k, *(slice(0, n) for n in a.shape))] = a
    return whole


def _is_shared(name: str, cells: list[Cell]) -> bool:
    first = cells[0][name]
    return all(
        name in cell and cell[name][0] == (name,) and np.array_equal(cell[name][1], first[1])
        for cell in cells
    )
