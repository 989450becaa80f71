"""Geodesics between two matrices: ``dln geodesic``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dln_geometry.cli.exchange import RUNS, check_results, read_input
from dln_geometry.cli.files import option
from dln_geometry.cli.machine import as_machine
from dln_geometry.cli.matrices import point_of
from dln_geometry.cli.report import depth_in_json
from dln_geometry.cli.runs.finishing import count_option, finish, panels
from dln_geometry.geometry.geodesics import distance, geodesic, logarithm
from dln_geometry.support import as_depth

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_geodesic(
    matrix: Path,
    other: Path,
    depth: float,
    rank: int | None,
    points: int,
    rtol: float | None,
    out: Path | None,
    figure: Path | None,
    device: str,
    dtype: str,
    as_json: bool,
    force: bool,
    **reading: Any,
) -> None:
    """Check the options, find the geodesic, and write and print it."""
    import xarray

    began, machine = time.perf_counter(), as_machine(device, dtype)
    with option("depth"):
        as_depth(depth)
    with option("rtol"):
        if rtol is not None and not 0 < rtol < 1:
            raise ValueError(f"rtol must lie in (0, 1), got {rtol}")
    count_option(points, "points", 2)
    check_results(out, RUNS, figure, (matrix, other), force=force)
    tables = [read_input(path, **reading) for path in (matrix, other)]
    if tables[0].shape != tables[1].shape:
        a, b = (" x ".join(map(str, table.shape)) for table in tables)
        raise ValueError(f"both matrices must have one shape, got {a} and {b}")
    for path, table in zip((matrix, other), tables, strict=True):
        if not np.any(table.values):
            raise ValueError(f"{path} must hold a matrix different from 0")
    p = point_of(tables[0], depth, rank, machine)
    q = point_of(tables[1], depth, rank, machine)
    if p.rank != q.rank:
        raise ValueError(
            f"both matrices must have one rank, got {p.rank} and {q.rank}: --rank cuts both to one"
        )
    z = logarithm(p, q, rtol=rtol)
    length = float(distance(p, q, rtol=rtol))
    t = torch.linspace(0.0, 1.0, points, dtype=machine.dtype, device=machine.device)
    way = geodesic(p, z, t, rtol=rtol)
    data = xarray.Dataset(
        {
            "singular_values": (("time", "mode"), way.s.cpu().numpy()),
            "matrix": (("time", "row", "column"), way.matrix.cpu().numpy()),
        },
        coords={"time": t.cpu().numpy()},
        attrs={"depth": float(depth), "distance": length},
    )
    found = {
        "shape": list(p.shape) if as_json else " x ".join(map(str, p.shape)),
        "rank": p.rank,
        "depth": depth_in_json(depth),
        "distance": length,
        "frobenius_distance": float(torch.linalg.norm(p.matrix - q.matrix)),
        "smallest_singular_value": float(way.s[..., -1].min()),
        "start_singular_values": p.s,
        "middle_singular_values": way.s[points // 2],
        "end_singular_values": q.s,
        "end_error": float(torch.linalg.norm(way.matrix[-1] - q.matrix)),
    }

    def drawn() -> Figure:
        made, (ax,) = panels(1)
        ax.plot(t.cpu(), way.s.cpu(), color="C0")
        straight = torch.lerp(p.matrix, q.matrix, t[:, None, None])
        lines = ax.plot(t.cpu(), torch.linalg.svdvals(straight).cpu(), "0.6", linestyle=":")
        ax.legend([ax.lines[0], lines[0]], ["geodesic", "straight line"], frameon=False)
        ax.set(xlabel="time", ylabel="singular values", title=f"depth {depth:g}")
        return made

    finish(
        f"Geodesic from {matrix.name} to {other.name}",
        found,
        data,
        out=out,
        figure=figure,
        drawn=drawn,
        as_json=as_json,
        began=began,
    )
