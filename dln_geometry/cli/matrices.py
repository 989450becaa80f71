"""What the commands on one matrix do: ``dln balance`` and ``dln entropy``."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dln_geometry import plot
from dln_geometry.cli.exchange import (
    ARRAYS,
    MATRICES,
    check_results,
    read_input,
    save_figure,
    write_arrays,
    write_matrix,
)
from dln_geometry.cli.files import deciding, memory_budget, option
from dln_geometry.cli.machine import Machine, as_machine
from dln_geometry.cli.report import (
    depth_in_json,
    number,
    print_found,
    print_json,
    print_table,
    read_integers,
)
from dln_geometry.geometry.metric import entropy
from dln_geometry.geometry.points import (
    EndToEnd,
    balanced_factors,
    effective_rank,
    end_to_end,
    moments,
)
from dln_geometry.support import as_depth, as_layer_count, as_rank, as_widths
from dln_geometry.tables import Table


def write_balanced(
    matrix: Path,
    depth: int,
    out: Path,
    widths: str | None,
    rank: int | None,
    haar: bool,
    seed: int,
    device: str,
    dtype: str,
    as_json: bool,
    max_memory: float | None,
    force: bool,
    **reading: Any,
) -> None:
    """Write balanced layers of a matrix, and tell how well they multiply out."""
    with option("depth"):
        as_layer_count(depth)
    machine = as_machine(device, dtype, seed)
    check_results(out, ARRAYS, None, (matrix,), force=force)
    table = read_input(matrix, max_memory=max_memory, **reading)
    sides, budget = read_widths(widths), memory_budget(max_memory)
    with deciding():
        budget.need(64.0 * depth, f"{depth} layers")
        with option("widths"):
            made = as_widths(sides, table.shape, depth, 1)
        budget.need(24.0 * sum(a * b for a, b in pairwise(made)), f"{depth} layers")
    point = point_of(table, depth, rank, machine)
    gauge = "haar" if haar else None
    with option("widths"):
        layers = balanced_factors(point, widths=sides, gauge=gauge, generator=machine.generator())
    names = {f"W_{p}": w for p, w in enumerate(layers, start=1)}
    write_arrays(out, {name: w.cpu().numpy() for name, w in names.items()})
    x = machine.tensor(table.values)
    # 0/0 counts as 0.
    size = float(torch.linalg.norm(x)) or 1.0
    gap = float(torch.linalg.norm(end_to_end(layers) - x)) / size
    drift = max((float(g.abs().max()) for g in moments(layers)), default=0.0)
    told = [
        {"name": name, "shape": list(w.shape), "norm": float(torch.linalg.norm(w))}
        for name, w in names.items()
    ]
    if as_json:
        found = {"depth": depth, "rank": point.rank, "layers": told, "product_error": gap}
        print_json(found | {"largest_moment": drift, "written": [out]})
        return
    print_table(
        "Balanced factors",
        ("layer", "shape", "norm"),
        [(w["name"], " x ".join(map(str, w["shape"])), number(w["norm"])) for w in told],
        f"|W_N ... W_1 - X| / |X| = {gap:.1e}; largest entry of a moment {drift:.1e}",
    )
    print(f"written: {out}")


def print_entropy(
    matrix: Path,
    depth: float,
    widths: str | None,
    rank: int | None,
    out: Path | None,
    figure: Path | None,
    device: str,
    dtype: str,
    as_json: bool,
    force: bool,
    **reading: Any,
) -> None:
    """Print the entropy of a matrix; write its singular values, and draw them."""
    with option("depth"):
        as_depth(depth)
    sides, machine = read_widths(widths), as_machine(device, dtype)
    check_results(out, MATRICES, figure, (matrix,), force=force)
    table = read_input(matrix, **reading)
    point = point_of(table, depth, rank, machine)
    with option("widths"):
        value = float(entropy(point, widths=sides))
    if out is not None:
        write_matrix(out, point.s.cpu().numpy()[:, None], "singular_values")
    if figure is not None:
        made, ax = plot.figure()
        plot.spectrum(point, ax)
        save_figure(made, figure, 200)
    found: dict[str, Any] = {"matrix": " x ".join(map(str, point.shape))}
    found |= {"rank": point.rank if as_json else f"{point.rank} ({_origin(rank, point)})"}
    found |= {"depth": depth_in_json(depth), "entropy": value if as_json else number(value, 10)}
    found |= {"effective_rank": float(effective_rank(point.s)), "singular_values": point.s}
    found["written"] = [path for path in (out, figure) if path is not None]
    print_found(f"Entropy of {matrix.name}", found, json=as_json)


def _origin(rank: int | None, point: EndToEnd) -> str:
    if rank is not None:
        return "given"
    return "numerical" if bool(point.s.any()) else "least; numerically 0"


def point_of(table: Table, depth: float, rank: int | None, machine: Machine) -> EndToEnd:
    """Return a matrix as a point of the rank given, or of its numerical rank."""
    x = machine.tensor(np.array(table.values))
    if rank is not None:
        with option("rank"):
            as_rank(rank, min(table.shape), "the smaller side of the matrix")
    found = max(1, int(torch.linalg.matrix_rank(x))) if rank is None else rank
    return EndToEnd.of(x, depth, rank=found)


def read_widths(text: str | None) -> tuple[int, ...] | int | None:
    """Return the value of ``--widths``."""
    widths = None if text is None else read_integers(text, "--widths")
    if widths is not None and min(widths) < 1:
        raise ValueError(f"--widths must be positive, got {text}")
    return widths[0] if widths is not None and len(widths) == 1 else widths
