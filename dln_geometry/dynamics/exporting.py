"""The record of a run as a dataset of xarray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray


def as_dataset(path: Any, series: Sequence[str]) -> xarray.Dataset:
    """Return a trajectory with these series and its observables, see `Trajectory.to_xarray`."""
    import xarray

    data: dict[str, Any] = {}
    count, time = len(path.batch_shape), ("time",) * path.t.ndim
    batch = ("batch",) if count == 1 else tuple(f"batch_{k}" for k in range(count))
    for name in series:
        values = getattr(path, name)
        if values is not None:
            last = {"singular_values": ("mode",), "states": ("particle",)}.get(name, ())
            data[name] = ((*time, *batch, *last), values.detach().cpu().numpy())
    for name, values in path.observed.items():
        own = values.ndim - path.t.ndim - count
        dims = (*time, *batch, *(f"{name}_{k}" for k in range(own)))
        data[name] = (dims, values.detach().cpu().numpy())
    attributes = {
        "depth": float(path.depth),
        "status": path.status if isinstance(path.status, str) else json.dumps(path.status),
        **{k: v for k, v in path.stats.items() if isinstance(v, int | float | str)},
    }
    times = path.t.detach().cpu().numpy()
    return xarray.Dataset(data, coords={"time": times}, attrs=attributes)
