"""Points as named arrays and plain facts, for the files of runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dln_geometry.dynamics.monitored import Monitored
from dln_geometry.geometry.points import Collapsed, EndToEnd, Network

_KINDS: dict[str, Any] = {
    "collapsed": (Collapsed, ("L", "R")),
    "end_to_end": (EndToEnd, ("u", "s", "vh")),
}


def unpack_monitored(arrays: dict[str, Tensor], meta: dict[str, Any]) -> Monitored | None:
    """Return what a monitor saw, if the run had one."""
    kept = {k.removeprefix("monitored."): x for k, x in arrays.items() if k.startswith("monitored")}
    return Monitored(**kept, last=unpack_point("last", arrays, meta)) if kept else None


def pack_point(name: str, point: Any, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    """Add the arrays of a point and its kind to what is written."""
    if point is None:
        return
    if hasattr(getattr(point, "L", None), "device_mesh"):
        raise TypeError(
            "a trajectory must be whole to be saved, got rows that several processes hold: "
            "sharded.gather(path) puts them together"
        )
    if isinstance(point, Tensor):
        parts, meta[name] = {"x": point}, {"kind": "tensor"}
    elif isinstance(point, tuple):
        parts = {f"w{p}": w for p, w in enumerate(point)}
        meta[name] = {"kind": "factors", "layers": len(parts)}
    else:
        kind = "collapsed" if isinstance(point, Collapsed) else "end_to_end"
        parts = {key: getattr(point, key) for key in _KINDS[kind][1]}
        meta[name] = {"kind": kind, "depth": repr(point.depth), "normalized": point.normalized}
    arrays.update({f"{name}.{key}": value for key, value in parts.items()})


def unpack_point(name: str, arrays: dict[str, Tensor], meta: dict[str, Any]) -> Any:
    """Rebuild a point from what was written."""
    about = meta.get(name)
    if about is None:
        return None
    if about["kind"] == "tensor":
        return arrays[f"{name}.x"]
    if about["kind"] == "factors":
        return Network.from_layers([arrays[f"{name}.w{p}"] for p in range(about["layers"])])
    make, keys = _KINDS[about["kind"]]
    # Version 0.1.0 did not write whether a `Collapsed` is normalized.
    normalized = about.get("normalized")
    # Not checked: flows drift within their tolerance.
    parts = (arrays[f"{name}.{key}"] for key in keys)
    return make(*parts, float(about["depth"]), normalized, check=False)
