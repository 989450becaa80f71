"""What a run returns: times, observables, the last point; saved, loaded and exported."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import read_archive, write_archive

if TYPE_CHECKING:
    import xarray

__all__ = ["Trajectory"]

_FORMAT = 1
_SERIES = ("t", "loss", "singular_values", "states", "defect")

Final = Collapsed | EndToEnd | tuple[Tensor, ...] | Tensor | None


@dataclass(frozen=True)
class Trajectory:
    """The record of a run; time is the first axis of every saved array.

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
    final : Collapsed, EndToEnd, tuple of Tensor or Tensor
        The last point: two matrices if the run was collapsed, the factors if it went by layers,
        the matrix with depth 1 for the plain flow.
    defect : Tensor, shape (T, ...), optional
        Relative violation of the invariants (balance, or the conserved moments).
    status : str or list of str
        Why the run ended, one entry per sample of a batch: ``"t_end"`` or a stopping rule.
    stats : dict
        Counters: ``evaluations``, ``steps``, ``rejected`` and what else the run reports.
    points : tuple of Collapsed, EndToEnd or tuple of Tensor, optional
        The point at every saved time, where the run was asked to keep them.
    depth : float
        Depth of the flow, NaN where there is none.
    """

    t: Tensor
    loss: Tensor | None = None
    singular_values: Tensor | None = None
    states: Tensor | None = None
    final: Final = None
    defect: Tensor | None = None
    status: str | list[str] = "t_end"
    stats: dict[str, Any] = field(default_factory=dict)
    points: tuple[Any, ...] | None = None
    depth: float = math.nan

    def __len__(self) -> int:
        return self.t.shape[0]

    def to_xarray(self) -> xarray.Dataset:
        """Return the series as an `xarray.Dataset` with a ``time`` coordinate.

        Batch dimensions are named ``batch`` (or ``batch_0``, ...), the last axis of
        ``singular_values`` is ``mode``, that of ``states`` ``particle``.
        """
        import xarray

        data: dict[str, Any] = {}
        for name in _SERIES[1:]:
            values = getattr(self, name)
            if values is None:
                continue
            array = values.detach().cpu().numpy()
            last = {"singular_values": ("mode",), "states": ("particle",)}.get(name, ())
            count = array.ndim - 1 - len(last)
            batch = ("batch",) if count == 1 else tuple(f"batch_{k}" for k in range(count))
            data[name] = (("time", *batch, *last), array)
        attributes = {
            "depth": self.depth,
            "status": self.status if isinstance(self.status, str) else json.dumps(self.status),
            **{k: v for k, v in self.stats.items() if isinstance(v, int | float | str)},
        }
        return xarray.Dataset(
            data, coords={"time": self.t.detach().cpu().numpy()}, attrs=attributes
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to one ``.npz`` file (plain arrays, no pickles), atomically.

        Returns
        -------
        Path
            The file written, with the suffix ``.npz``.
        """
        arrays = {name: getattr(self, name) for name in _SERIES}
        meta = {"status": self.status, "stats": self.stats, "depth": repr(float(self.depth))}
        _pack_point("final", self.final, arrays, meta)
        if self.points is not None:
            meta["points"] = len(self.points)
            for k, point in enumerate(self.points):
                _pack_point(f"point{k}", point, arrays, meta)
        return write_archive(path, _FORMAT, arrays, meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read a trajectory written by `save`; the suffix ``.npz`` may be left out.

        Raises
        ------
        OSError
            If there is no such file, or it may not be read.
        ValueError
            If the file is no trajectory, or of a newer format.
        """
        return read_archive(path, "trajectory", _FORMAT, cls._unpacked)

    @classmethod
    def _unpacked(cls, arrays: dict[str, Tensor], meta: dict[str, Any]) -> Trajectory:
        points = None
        if "points" in meta:
            points = tuple(_unpack_point(f"point{k}", arrays, meta) for k in range(meta["points"]))
        return cls(
            t=arrays["t"],
            **{name: arrays.get(name) for name in _SERIES[1:]},
            final=_unpack_point("final", arrays, meta),
            status=meta["status"],
            stats=meta["stats"],
            points=points,
            depth=float(meta["depth"]),
        )


def _pack_point(name: str, point: Any, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    """Add the arrays of a point and its kind to what is written."""
    if point is None:
        return
    if isinstance(point, Collapsed):
        parts: dict[str, Tensor] = {"L": point.L, "R": point.R}
        meta[name] = {"kind": "collapsed", "depth": repr(float(point.depth))}
    elif isinstance(point, EndToEnd):
        parts = {"u": point.u, "s": point.s, "vh": point.vh}
        meta[name] = {
            "kind": "end_to_end",
            "depth": repr(float(point.depth)),
            "normalized": point.normalized,
        }
    elif isinstance(point, Tensor):
        parts, meta[name] = {"x": point}, {"kind": "tensor"}
    else:
        parts = {f"w{p}": w for p, w in enumerate(point)}
        meta[name] = {"kind": "factors", "layers": len(parts)}
    for key, value in parts.items():
        arrays[f"{name}.{key}"] = value


def _unpack_point(name: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Any:
    """Rebuild a point from what was written."""
    about = meta.get(name)
    if about is None:
        return None
    if about["kind"] == "collapsed":
        return Collapsed(tensors[f"{name}.L"], tensors[f"{name}.R"], float(about["depth"]))
    if about["kind"] == "end_to_end":
        u, s, vh = (tensors[f"{name}.{key}"] for key in ("u", "s", "vh"))
        return EndToEnd(u, s, vh, float(about["depth"]), about["normalized"])
    if about["kind"] == "tensor":
        return tensors[f"{name}.x"]
    return tuple(tensors[f"{name}.w{p}"] for p in range(about["layers"]))
