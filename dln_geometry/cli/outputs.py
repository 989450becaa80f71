"""Results as files: matrices, layers and runs, by the suffix of their names."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dln_geometry.cli.files import check_outputs, is_ours, save_array
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.support import written_whole

if TYPE_CHECKING:
    import xarray

ARRAYS = (".npz", ".pt", ".safetensors")
TABLES = (".csv", ".tsv", ".parquet")
MATRICES = (".npy", *ARRAYS, *TABLES, ".mtx")
RUNS = (".npz", ".nc", ".zarr", ".pt", ".safetensors", *TABLES)
FIGURES = (".png", ".pdf", ".svg")
_SOFTWARE = "dln_geometry"


def check_results(
    out: Path | None,
    suffixes: tuple[str, ...],
    figure: Path | None,
    kept: tuple[Path | None, ...],
    *,
    force: bool,
) -> None:
    """Refuse names of results that cannot be written, before the work begins."""
    if out is not None:
        check_outputs([out], [*kept, figure], is_ours, force=force, suffixes=suffixes)
    if figure is not None:
        check_outputs([figure], kept, is_ours, force=force, suffixes=FIGURES, name="figure")
    for path in (out, figure):
        _check_library(path)


def _check_library(path: Path | None) -> None:
    """Refuse a format whose library is not installed, before the work begins."""
    wanted = {".parquet": "pyarrow", ".safetensors": "safetensors", ".zarr": "zarr"}
    library = wanted.get("" if path is None else path.suffix.lower())
    if library is not None:
        from importlib.util import find_spec

        if find_spec(library) is None:
            extra = {"pyarrow": "dln-geometry[parquet]", "safetensors": "dln-geometry[safetensors]"}
            raise ValueError(
                f"--out: {path} must be written by {library}, which is not installed: "
                f'pip install "{extra.get(library, library)}"'
            )


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays to ``.npz``, ``.pt`` or ``.safetensors``."""
    suffix = path.suffix.lower()
    held = {name: np.array(x, order="C") for name, x in arrays.items()}
    content = io.BytesIO()
    if suffix == ".npz":
        named: dict[str, Any] = held
        np.savez(content, **named)
    elif suffix == ".pt":
        torch.save({name: torch.from_numpy(x) for name, x in held.items()}, content)
    else:
        from safetensors.numpy import save

        content.write(save(held, metadata={"software": _SOFTWARE}))
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
        mmwrite(content, x, precision=17)
        with written_whole(path) as handle:
            handle.write(content.getbuffer())
    else:
        write_table(path, {str(k): x[:, k] for k in range(x.shape[1])}, header=False)


def write_table(path: Path, columns: Mapping[str, np.ndarray], *, header: bool = True) -> None:
    """Write columns of equal length to ``.csv``, ``.tsv`` or ``.parquet``."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pandas as pd

        content = io.BytesIO()
        pd.DataFrame(dict(columns)).to_parquet(content)
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
    data.attrs["software"] = _SOFTWARE
    if suffix == ".nc":
        # scipy's writer is always there; it makes NetCDF 3, which every reader takes.
        content = bytes(data.to_netcdf(engine="scipy"))
        with written_whole(path) as handle:
            handle.write(content)
    elif suffix == ".zarr":
        data.to_zarr(path, mode="w", consolidated=False)
    elif suffix in TABLES:
        write_table(path, _columns_of(data))
    else:
        write_arrays(path, {str(name): x.values for name, x in data.variables.items()})


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
