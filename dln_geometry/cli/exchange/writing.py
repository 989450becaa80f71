"""Results as files: matrices, layers, runs and figures, by the suffix of their names."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dln_geometry.cli.exchange.names import ARRAYS, MAKER, TABLES
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.support import written_whole

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays to ``.npz``, ``.pt`` or ``.safetensors``.

    Texts are lists in ``.pt``, and JSON in the metadata of ``.safetensors``.
    """
    suffix = path.suffix.lower()
    held = {name: np.array(x, order="C") for name, x in arrays.items()}
    texts = {name: x.tolist() for name, x in held.items() if x.dtype.kind in "UO"}
    numbers = {name: x for name, x in held.items() if name not in texts}
    content = io.BytesIO()
    if suffix == ".npz":
        named: dict[str, Any] = held
        np.savez(content, **named)
    elif suffix == ".pt":
        torch.save({name: torch.from_numpy(x) for name, x in numbers.items()} | texts, content)
    else:
        from safetensors.numpy import save

        about = {name: json.dumps(x) for name, x in texts.items()}
        content.write(save(numbers, metadata={"software": MAKER, **about}))
    if suffix in (".npz", ".pt"):
        # The comment of the archive, which readers pass over.
        with zipfile.ZipFile(content, "a") as archive:
            archive.comment = MAKER.encode()
    with written_whole(path) as handle:
        handle.write(content.getbuffer())


def write_matrix(path: Path, x: Any, name: str = "X") -> None:
    """Write a matrix in any format; text with all digits of its type."""
    x, suffix = np.asarray(x), path.suffix.lower()
    if suffix == ".npy":
        save_array(path, x)
    elif suffix in ARRAYS:
        write_arrays(path, {name: x})
    elif suffix == ".mtx":
        from scipy.io import mmwrite

        content = io.BytesIO()
        mmwrite(content, x, comment=MAKER, precision=17)
        with written_whole(path) as handle:
            handle.write(content.getbuffer())
    else:
        write_table(path, {str(k): x[:, k] for k in range(x.shape[1])}, header=False)


def write_table(path: Path, columns: Mapping[str, np.ndarray], *, header: bool = True) -> None:
    """Write columns of equal length to ``.csv``, ``.tsv`` or ``.parquet``."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pandas as pd

        content, frame = io.BytesIO(), pd.DataFrame(dict(columns))
        frame.attrs["software"] = MAKER
        frame.to_parquet(content)
        with written_whole(path) as handle:
            handle.write(content.getbuffer())
        return
    mark = "," if suffix == ".csv" else "\t"
    lines = [mark.join(columns)] if header else []
    lines += [mark.join(map(_cell, row)) for row in zip(*columns.values(), strict=True)]
    with written_whole(path) as handle:
        handle.write(("\n".join(lines) + "\n").encode())


def _cell(x: Any) -> str:
    """Return a number with the digits that give it back; an empty cell for NaN."""
    if isinstance(x, float | np.floating):
        return "" if np.isnan(x) else str(x)
    return str(x)


def write_run(path: Path, run: Trajectory | xarray.Dataset) -> None:
    """Write a run: whole (``.npz``), or its series as labelled arrays or columns."""
    suffix = path.suffix.lower()
    if isinstance(run, Trajectory) and suffix == ".npz":
        run.save(path)
        return
    data = run.to_xarray() if isinstance(run, Trajectory) else run
    data.attrs["software"] = MAKER
    if suffix == ".nc":
        # scipy's writer is always there; it makes NetCDF 3, which every reader takes.
        content = bytes(data.to_netcdf(engine="scipy"))
        with written_whole(path) as handle:
            handle.write(content)
    elif suffix == ".zarr":
        _replace_folder(path, data)
    elif suffix in TABLES:
        write_table(path, _columns_of(data))
    else:
        write_arrays(path, {str(name): x.values for name, x in data.variables.items()})


def _replace_folder(path: Path, data: xarray.Dataset) -> None:
    """Write a zarr store beside the old one, and let it take its place when it is whole."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    # Version 3 of zarr has a type for texts of any length, but none for those of a fixed one.
    texts = {name: x.astype(object) for name, x in data.variables.items() if x.dtype.kind == "U"}
    data = data.assign({name: x for name, x in texts.items() if name in data.data_vars})
    data = data.assign_coords({name: x for name, x in texts.items() if name in data.coords})
    try:
        data.to_zarr(made, mode="w", consolidated=False)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        made.replace(path)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _columns_of(data: xarray.Dataset) -> dict[str, np.ndarray]:
    """Return one row for each time and sample: a column for each number of a series."""
    rows = [d for d in data.sizes if d == "time" or str(d).startswith("batch")]
    sizes = [data.sizes[d] for d in rows]
    places = np.indices(sizes).reshape(len(rows), -1)
    columns = {str(d): places[k] for k, d in enumerate(rows)}
    for name, x in data.variables.items():
        own = [d for d in x.dims if d not in rows]
        at = tuple(columns[str(d)] for d in x.dims if d in rows)
        if name in data.coords and name != "time":
            continue
        values = x.transpose(*(d for d in x.dims if d in rows), *own).values
        flat = (values[at] if at else values[None]).reshape(len(places[0]), -1)
        names = [str(name)]
        if own:
            ends = np.indices([data.sizes[d] for d in own]).reshape(len(own), -1).T + 1
            names = ["_".join([str(name), *map(str, end)]) for end in ends]
        columns |= {label: flat[:, k] for k, label in enumerate(names)} if name != "time" else {}
    at_times = data["time"].values[columns["time"]]
    return {"time": at_times, **{k: v for k, v in columns.items() if k != "time"}}


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure whole or not at all; it says that it is ours."""
    kind = path.suffix[1:].lower()
    about: dict[str, Any] = {"metadata": {"Software" if kind == "png" else "Creator": MAKER}}
    with written_whole(path) as handle:
        figure.savefig(handle, format=kind, dpi=dpi, **about)


def save_array(path: Path, x: Any) -> None:
    """Write an array of numpy whole or not at all."""
    with written_whole(path) as handle:
        # A file itself numpy would write past Python, and not notice that the disk is full.
        sink: Any = SimpleNamespace(write=handle.write)
        np.save(sink, np.asarray(x), allow_pickle=False)
