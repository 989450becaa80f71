"""The record of a run: times, observables and points; indexed, saved, loaded and exported."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dln_geometry.dynamics.dense import Dense
from dln_geometry.dynamics.exporting import as_dataset
from dln_geometry.dynamics.monitored import Monitored
from dln_geometry.dynamics.observing import split_rows
from dln_geometry.dynamics.packing import pack_point, unpack_monitored, unpack_point
from dln_geometry.geometry.points import Collapsed, EndToEnd, Network, as_row, indexed
from dln_geometry.support import as_positive, check_form, read_archive, write_archive

if TYPE_CHECKING:
    import xarray

_FORMAT = 2
"""Version 0.1.0 wrote format 1, without a checksum."""

_SERIES = {"loss": 0, "singular_values": 1, "states": 1, "defect": 0}
"""The series over time, with the number of dimensions after time and batch."""


Kept = Collapsed | EndToEnd | Network | tuple[Tensor, ...] | Tensor | None


class FlowError(ValueError):
    """A flow could not go on; `trajectory` is the record up to there.

    Examples
    --------
    >>> loss = dln.losses.from_callable(lambda x: -x.pow(3).sum())  # x = 1/(1 - 3t)
    >>> try:
    ...     dln.gradient_flow(loss, dln.EndToEnd.of([[1.0]], 1), t_end=1.0)
    ... except dln.FlowError as error:
    ...     print(f"it ended at {float(error.trajectory.t[-1]):.3f}")
    it ended at 0.333
    """

    def __init__(self, message: str, trajectory: Trajectory) -> None:
        super().__init__(message)
        self.trajectory = trajectory

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.trajectory)


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """The record of a run; time is the first axis of every saved array.

    ``path[k]`` is the record at the k-th saved time, without the time axis; ``path[a:b]`` is a part
    of the run; ``len(path)`` is the number of saved times, and iteration goes through them. `at`
    interpolates in time, `select` picks samples of the batch. Equality is identity.

    Attributes
    ----------
    t : Tensor, shape (T,)
        Saved times.
    loss : Tensor, shape (T, ...), optional
        Value of the loss.
    singular_values : Tensor, shape (T, ..., r), optional
        Singular values of the end-to-end matrix, descending.
    states : Tensor, shape (T, ..., n), optional
        The particles, ascending, of a motion of eigenvalues or singular values.
    final : Collapsed, EndToEnd, Network or Tensor
        The last point, or the best one of a run with a monitor; in the record at one time, the
        point kept there, if any.
    defect : Tensor, shape (T, ...), optional
        Relative violation of the invariants (balance, or the conserved moments).
    status : str or list of str
        Why the run ended, one entry per sample of a batch; see `gradient_flow`.
    stats : dict
        Counters: ``evaluations``, ``steps``, ``rejected`` and others of the run.
    points : tuple of Collapsed, EndToEnd or Network, optional
        The point at every saved time, if `keep_points` was set.
    depth : float
        Depth of the flow, NaN where there is none.
    monitored : Monitored, optional
        What the monitor of the run saw, and the last point.
    observed : dict of Tensor, shape (T, ..., *k)
        The observables that the run was asked for, by name.
    dense : Dense, optional
        All steps of a flow that kept them: `at` then takes any time.

    Examples
    --------
    >>> path = dln.Trajectory(t=torch.tensor([0.0, 1.0, 3.0]), loss=torch.tensor([4.0, 2.0, 1.0]))
    >>> path
    Trajectory(3 times from 0 to 3, t_end)
    >>> path[1].loss, path.at(2.0).loss, len(path[1:])
    (tensor(2.), tensor(1.5000), 2)
    """

    t: Tensor
    loss: Tensor | None = None
    singular_values: Tensor | None = None
    states: Tensor | None = None
    final: Kept = None
    defect: Tensor | None = None
    status: str | list[str] = "t_end"
    stats: dict[str, Any] = field(default_factory=dict)
    points: tuple[Any, ...] | None = None
    depth: float = math.nan
    monitored: Monitored | None = None
    observed: dict[str, Tensor] = field(default_factory=dict)
    dense: Dense | None = None

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions of the batch of runs."""
        for name, own in _SERIES.items():
            values = getattr(self, name)
            if values is not None:
                return values.shape[self.t.ndim : values.ndim - own]
        return getattr(self.final, "batch_shape", torch.Size())

    def __len__(self) -> int:
        if not self.t.ndim:
            raise TypeError("the record at a single time has no length")
        return self.t.shape[0]

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, index: int | slice) -> Trajectory:
        rows, points = range(len(self))[index], self.points
        if isinstance(rows, int):
            return self._map(lambda x, _: x[rows], self.t[rows], points[rows] if points else None)
        points = None if points is None else tuple(points[k] for k in rows)
        ends = rows and rows[-1] == len(self) - 1
        final = self.final if ends else points[-1] if points else None
        return self._map(lambda x, _: x[list(rows)], self.t[list(rows)], final, points)

    def at(self, t: float) -> Trajectory:
        """Return the record at a time between the first and the last saved one.

        At a saved time, exactly its row. Between them a flow with ``dense=True`` has state and
        series by a polynomial of degree 7, and the point as `final`; of the eighth order in the
        step (some 1e-6 of X at the default `rtol`). Other runs are linear in time, without a point.
        """
        when = as_positive(t.item() if isinstance(t, Tensor) else t, "t", zero=True)
        times = self.t if self.t.is_floating_point() else self.t.double()
        time = times.new_tensor(when)
        if not len(self) or not times[0] <= time <= times[-1]:
            raise ValueError(f"t must lie within the saved times, got {when:g} for {self!r}")
        row = int(torch.searchsorted(times, time, right=True)) - 1
        if times[row] == time:
            at = self[row]
            missing = at.final is None and self.dense is not None
            return replace(at, final=self.dense.at(when)[2]) if missing and self.dense else at
        if self.dense is not None:
            return replace(self, t=self.t.new_tensor(when), dense=None, **self.dense.fields(when))
        share = (time - times[row]) / (times[row + 1] - times[row])
        return self._map(lambda x, _: torch.lerp(x[row], x[row + 1], share.to(x)), time)

    def select(self, index: Any) -> Trajectory:
        """Return the run of some samples; `index` as for a tensor of shape `batch_shape`."""
        if not self.batch_shape:
            raise IndexError("a single run has no batch to be indexed")
        # Raises the right error for an index that does not fit.
        shape = self.batch_shape
        where = torch.arange(math.prod(shape), device="cpu").view(shape)[index]

        def picked(x: Tensor, own: int) -> Tensor:
            if not self.t.ndim:
                return indexed(x, index, own)
            # Time goes last: torch moves the dimensions before some advanced indices.
            return indexed(x.movedim(0, -1), index, own + 1).movedim(-1, 0)

        def chosen(point: Any) -> Any:
            if isinstance(point, Tensor):
                return indexed(point, index, point.ndim - len(self.batch_shape))
            if type(point) is tuple:
                point = Network.from_layers(point)
            return None if point is None else point.select(index)

        points = None if self.points is None else tuple(chosen(p) for p in self.points)
        path = self._map(picked, self.t, chosen(self.final), points)
        if self.monitored is not None:
            path = replace(path, monitored=self.monitored.select(index))
        if self.dense is not None:
            path = replace(path, dense=self.dense.select(where))
        if isinstance(self.status, str):
            return path
        status = [self.status[k] for k in where.flatten().tolist()]
        return replace(path, status=status if where.ndim else status[0])

    def _map(
        self, f: Callable[[Tensor, int], Tensor], t: Tensor, final: Kept = None, points: Any = None
    ) -> Trajectory:
        """Apply f(values, dimensions after time and batch) to all series; replace the rest."""
        found = {name: getattr(self, name) for name in _SERIES}
        series = {name: f(x, _SERIES[name]) for name, x in found.items() if x is not None}
        before = self.t.ndim + len(self.batch_shape)
        observed = {name: f(x, x.ndim - before) for name, x in self.observed.items()}
        dense = self.dense if t.ndim else None
        return replace(
            self, t=t, final=final, points=points, observed=observed, dense=dense, **series
        )

    def __repr__(self) -> str:
        return f"Trajectory({', '.join(self._described())})"

    def _repr_html_(self) -> str:
        return as_row("Trajectory", self._described())

    def _described(self) -> list[str]:
        parts, final = [], self.final
        if isinstance(final, Collapsed | EndToEnd | Network):
            parts = [f"{type(final).__name__} {final.shape[0]} x {final.shape[1]}"]
        if not math.isnan(self.depth):
            parts.append(f"depth {self.depth:g}")
        times = self.t.tolist()
        if not self.t.ndim:
            parts.append(f"t = {times:g}")
        else:
            span = f" from {times[0]:g} to {times[-1]:g}" if times else ""
            parts.append(f"{len(times)} time{'s' if len(times) != 1 else ''}{span}")
        if self.batch_shape:
            parts.append(f"batch {tuple(self.batch_shape)}")
        status = [self.status] if isinstance(self.status, str) else self.status
        if len(set(status)) == 1:
            return [*parts, status[0]]
        return [*parts, *(f"{count} {name}" for name, count in Counter(status).items())]

    def to_xarray(self) -> xarray.Dataset:
        """Return the series as an `xarray.Dataset` with a ``time`` coordinate.

        Batch dimensions are named ``batch`` (or ``batch_0``, ...), the last axis of
        ``singular_values`` is ``mode``, that of ``states`` ``particle``; observables have their own
        names, and dimensions ``NAME_0``, ... of their own.
        """
        return as_dataset(self, tuple(_SERIES))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to one ``.npz`` file (no pickles), whole or not at all; return its path.

        The file holds a checksum. The store of a run is not replaced (ValueError).
        """
        arrays = {name: getattr(self, name) for name in ("t", *_SERIES)}
        meta = {"status": self.status, "stats": self.stats, "depth": repr(self.depth)}
        pack_point("final", self.final, arrays, meta)
        if self.points is not None:
            meta["points"] = len(self.points)
            for k, point in enumerate(self.points):
                pack_point(f"point{k}", point, arrays, meta)
        arrays |= {f"observed.{name}": x for name, x in self.observed.items()}
        if self.dense is not None:
            self.dense.pack(arrays, meta)
        if self.monitored is not None:
            arrays |= {f"monitored.{k}": x for k, x in self.monitored.arrays().items()}
            pack_point("last", self.monitored.last, arrays, meta)
        return write_archive(path, _FORMAT, arrays, meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read a trajectory written by `save`; the suffix ``.npz`` may be left out.

        ValueError if the file is damaged: its checksum does not fit, or what it holds is no
        trajectory. Files of version 0.1.0 hold no checksum; the CRC-32 of each array protects them.
        """
        return read_archive(path, "trajectory", _FORMAT, cls._unpacked)

    @classmethod
    def _unpacked(cls, arrays: dict[str, Tensor], meta: dict[str, Any]) -> Trajectory:
        points = None
        if "points" in meta:
            points = tuple(unpack_point(f"point{k}", arrays, meta) for k in range(meta["points"]))
        path = cls(
            t=arrays["t"],
            **{name: arrays.get(name) for name in _SERIES},
            final=unpack_point("final", arrays, meta),
            status=meta["status"],
            stats=meta["stats"],
            points=points,
            depth=float(meta["depth"]),
            monitored=unpack_monitored(arrays, meta),
            observed=split_rows(arrays)[1],
            dense=Dense.unpack(arrays, meta),
        )
        path._check()
        return path

    def _check(self) -> None:
        """Raise ValueError unless the fields are of their types and fit each other."""
        t, points, batch = self.t, self.points, tuple(self.batch_shape)
        if t.ndim > 1 or t.dtype.is_complex or t.dtype == torch.bool:
            raise ValueError(f"t must have shape (T,), got {t.dtype} {tuple(t.shape)}")
        shape = (*t.shape, *batch)
        for name, own in _SERIES.items():
            values = getattr(self, name)
            if values is None:
                continue
            if not values.is_floating_point() or values.ndim - own != len(shape):
                raise ValueError(f"{name} must hold real numbers, one row for each time and sample")
            if tuple(values.shape[: len(shape)]) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(values.shape)}")
        for name, x in self.observed.items():
            if not x.is_floating_point() or tuple(x.shape[: len(shape)]) != shape:
                raise ValueError(f"observed {name} must have shape {(*shape, '...')}")
        if t.ndim and points is not None and len(points) != len(t):
            raise ValueError(f"points must be as many as times, {len(t)}, got {len(points)}")
        check_form(self.status, (str, [str, ...]), "status")
        check_form(self.stats, {str: object}, "stats")
        if not isinstance(self.status, str) and len(self.status) != math.prod(batch):
            raise ValueError(f"status must name {math.prod(batch)} samples, got {self.status}")
