"""What a run returns: times, observables, the last point; saved, loaded and exported."""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import written_whole

if TYPE_CHECKING:
    import xarray

__all__ = ["Trajectory"]

_FORMAT = 1
_SERIES = ("t", "loss", "singular_values", "states", "defect")

# What damaged archives and descriptions may raise.
_DAMAGED = (
    OSError,
    EOFError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)

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
        target = _with_suffix(Path(path))
        arrays = {
            name: getattr(self, name).detach().cpu().numpy()
            for name in _SERIES
            if getattr(self, name) is not None
        }
        meta: dict[str, Any] = {
            "format": _FORMAT,
            "status": self.status,
            "stats": self.stats,
            "depth": repr(self.depth),
        }
        _pack_point("final", self.final, arrays, meta)
        if self.points is not None:
            meta["points"] = len(self.points)
            for k, point in enumerate(self.points):
                _pack_point(f"point{k}", point, arrays, meta)
        arrays["meta"] = np.array(json.dumps(meta))
        with written_whole(target) as handle:
            np.savez_compressed(handle, allow_pickle=False, **arrays)
        return target

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
        source = Path(path)
        if not source.is_file() and _with_suffix(source).is_file():
            source = _with_suffix(source)
        try:
            arrays, meta = _read(source)
            version = int(meta["format"])
        except (FileNotFoundError, PermissionError):
            raise
        except _DAMAGED:
            # numpy's own words would advise to read the file unsafely.
            raise ValueError(
                f"path must be a saved trajectory, got {source}: it is no archive of one, "
                "or a damaged one"
            ) from None
        if version > _FORMAT:
            raise ValueError(f"path must be a trajectory of format <= {_FORMAT}, got {version}")
        try:
            tensors = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
            points = None
            if "points" in meta:
                points = tuple(
                    _unpack_point(f"point{k}", tensors, meta) for k in range(meta["points"])
                )
            return cls(
                t=tensors["t"],
                **{name: tensors.get(name) for name in _SERIES[1:]},
                final=_unpack_point("final", tensors, meta),
                status=meta["status"],
                stats=meta["stats"],
                points=points,
                depth=float(meta["depth"]),
            )
        except _DAMAGED as error:
            raise ValueError(
                f"path must be a saved trajectory, got {source}: {type(error).__name__}: {error}"
            ) from None


def _with_suffix(path: Path) -> Path:
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of an archive and its description."""
    # Opened here: numpy leaves a damaged archive open.
    with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays, json.loads(str(arrays.pop("meta")))


def _pack_point(name: str, point: Any, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    """Add the arrays of a point and its kind to what is written."""
    if point is None:
        return
    if isinstance(point, Collapsed):
        parts: dict[str, Tensor] = {"L": point.L, "R": point.R}
        meta[name] = {"kind": "collapsed", "depth": repr(point.depth)}
    elif isinstance(point, EndToEnd):
        parts = {"u": point.u, "s": point.s, "vh": point.vh}
        meta[name] = {
            "kind": "end_to_end",
            "depth": repr(point.depth),
            "normalized": point.normalized,
        }
    elif isinstance(point, Tensor):
        parts, meta[name] = {"x": point}, {"kind": "tensor"}
    else:
        parts = {f"w{p}": w for p, w in enumerate(point)}
        meta[name] = {"kind": "factors", "layers": len(parts)}
    for key, value in parts.items():
        arrays[f"{name}.{key}"] = value.detach().cpu().numpy()


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
