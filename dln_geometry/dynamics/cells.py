"""Results of the runs of a sweep as named arrays, and the store that keeps those that are done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.store import Store, read_sealed, write_sealed
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.support import Growing, shown

Cell = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""The results of one run: names, with the dimensions and the numbers of each."""


def cell_of(result: Any, name: str) -> Cell:
    """Return what a run gave as arrays with named dimensions."""
    if isinstance(result, Trajectory):
        result = result.to_xarray()
    if hasattr(result, "data_vars"):
        named = {
            **result.data_vars,
            **{d: result.coords[d] for d in result.dims if d in result.coords},
        }
        return {str(n): (tuple(map(str, x.dims)), np.asarray(x.values)) for n, x in named.items()}
    if hasattr(result, "dims") and hasattr(result, "coords"):
        return cell_of(result.to_dataset(name=result.name or name), name)
    if not isinstance(result, Mapping):
        result = {name: result}
    cell: Cell = {}
    for key, value in result.items():
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if not isinstance(key, str) or array.dtype.kind not in "biufcUS":
            raise TypeError(
                "run must return numbers, arrays, a mapping of names to them, a Trajectory or "
                f"xarray, got {shown(key)}: {shown(value)}"
            )
        cell[key] = tuple(f"{key}_{k}" for k in range(array.ndim)), array
    return cell


def name_of(run: Any) -> str:
    """Return the name by which a store knows a function."""
    if isinstance(run, partial):
        return name_of(run.func)
    found = getattr(run, "__qualname__", None) or type(run).__qualname__
    return f"{getattr(run, '__module__', '')}:{found}"


class Cells:
    """The runs of a sweep that are done, by their numbers, in a store or in memory alone.

    Every checkpoint writes one more file, with the runs that were done since. Readers see a table
    with the dimension ``cell``: the runs in the order in which they were done, with their places
    along the axes (labels that are numbers, or their positions), and the numbers that all have in
    one shape.
    """

    def __init__(self, store: Store | None, axes: Mapping[str, list[Any]]) -> None:
        self.store, self.axes, self.done = store, axes, dict[int, Cell]()
        self._files, self._new = 0, dict[int, Cell]()
        if store is None:
            return
        store.axis = "cell"
        held = store.load({"files": int, "rows": {str: object}})
        for k in range(held["files"] if held else 0):
            required = f"store must be a folder written by a sweep, got {store}"
            try:
                found = read_sealed(self._file(k), required)
            except FileNotFoundError:
                raise ValueError(f"{required}: {self._file(k)} is missing") from None
            if found.get("identity") != store.identity:
                raise ValueError(f"{required}: {self._file(k)} is that of another one")
            self.done |= {int(n): _unpacked(cell) for n, cell in found["cells"].items()}
            self._files += 1

    def add(self, number: int, cell: Cell) -> None:
        """Add a run that is done."""
        self.done[number] = self._new[number] = cell
        if self.store is not None and self.store.schedule.due(len(self.done)):
            self.flush()

    def flush(self) -> None:
        """Write what is new."""
        if self.store is None or not self._new:
            return
        cells = {str(n): _packed(cell) for n, cell in self._new.items()}
        held = {"identity": self.store.identity, "cells": cells}
        write_sealed(self._file(self._files), held)
        self._files += 1
        self.store.keep({"files": self._files, "rows": {}}, self._table())
        self._new = {}
        self.store.schedule.restart(len(self.done))

    def _file(self, k: int) -> Path:
        assert self.store is not None
        return self.store.path / "checkpoint" / "cells" / str(k)

    def _table(self) -> dict[tuple[str, ...], Growing]:
        """Return the columns that readers see."""
        count, sizes = len(self.done), [len(labels) for labels in self.axes.values()]
        places = np.stack(np.unravel_index(np.array([*self.done]), sizes), -1)
        table = {}
        for (name, labels), place in zip(self.axes.items(), places.T, strict=True):
            texts = isinstance(labels[0], str)
            values = place if texts else np.array(labels, dtype=np.float64)[place]
            table["rows", name] = Growing(torch.from_numpy(values.astype(np.float64)), count)
        first, *others = self.done.values()
        for name, (dims, array) in first.items():
            alike = all(name in c and c[name][1].shape == array.shape for c in others)
            if alike and array.dtype.kind in "biuf" and dims != (name,):
                table["rows", name] = Growing(_Stacked(self.done, name), count)
        return table


class _Stacked:
    """The results of one name of all runs, stacked where they are asked for."""

    def __init__(self, done: dict[int, Cell], name: str) -> None:
        self.done, self.name = done, name

    def __getitem__(self, part: slice) -> Tensor:
        cells = [*self.done.values()][part]
        return torch.from_numpy(np.stack([c[self.name][1].astype(np.float64) for c in cells]))


def _packed(cell: Cell) -> dict[str, Any]:
    """Return arrays as tensors, and texts as JSON."""
    packed = {}
    for name, (dims, array) in cell.items():
        text = array.dtype.kind in "US"
        content: Any = json.dumps(array.astype(str).tolist()) if text else _as_tensor(array)
        packed[name] = {"dims": list(dims), "dtype": array.dtype.str, "content": content}
    return packed


def _unpacked(packed: dict[str, Any]) -> Cell:
    cell: Cell = {}
    for name, told in packed.items():
        content, dtype = told["content"], np.dtype(told["dtype"])
        array = np.array(json.loads(content) if isinstance(content, str) else content.numpy())
        cell[name] = tuple(told["dims"]), array.astype(dtype)
    return cell


def _as_tensor(array: np.ndarray) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.array(native, order="C"))
