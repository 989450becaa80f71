"""The commands on a whole matrix: ``dln balance`` and ``dln entropy``."""

from __future__ import annotations

import json
import math
import sys
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from dln_geometry.cli.files import (
    Decimal,
    Delimiter,
    Force,
    Header,
    Index,
    MaxMemory,
    check_outputs,
    deciding,
    memory_budget,
    option,
    text_format,
)
from dln_geometry.cli.report import number, print_table, read_integers
from dln_geometry.geometry.metric import entropy
from dln_geometry.geometry.points import (
    EndToEnd,
    balanced_factors,
    effective_rank,
    end_to_end,
    moments,
)
from dln_geometry.support import (
    as_depth,
    as_layer_count,
    as_rank,
    as_seed,
    as_widths,
    written_whole,
)
from dln_geometry.tables import Budget, Table, TextFormat, read_matrix

Matrix = Annotated[Path, typer.Argument(help="The end-to-end matrix: .npy, .npz or a table.")]
Widths = Annotated[
    str | None,
    typer.Option(help="Widths d_0,...,d_N, or one number for every hidden layer [default: min]."),
]
Rank = Annotated[int | None, typer.Option(help="Rank [default: the numerical rank].")]


def balance_command(
    matrix: Matrix,
    depth: Annotated[int, typer.Option(help="Number of layers.")] = 2,
    out: Annotated[Path, typer.Option(help="Archive of the layers W_1, ..., W_N.")] = Path("W.npz"),
    widths: Widths = None,
    rank: Rank = None,
    haar: Annotated[
        bool, typer.Option("--haar", help="Draw the hidden gauges instead of the canonical ones.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the gauges.")] = 0,
    header: Header = None,
    index: Index = None,
    delimiter: Delimiter = None,
    decimal: Decimal = ".",
    max_memory: MaxMemory = None,
    force: Force = False,
) -> None:
    """Write balanced factors W_1, ..., W_N of a matrix, input side first."""
    with option("depth"):
        as_layer_count(depth)
    with option("seed"):
        generator = torch.Generator().manual_seed(as_seed(seed, "seed"))
    check_outputs([out], [matrix], _are_layers, force=force, suffixes=(".npz",))
    form, budget = text_format(header, index, delimiter, decimal), memory_budget(max_memory)
    table = _read_table(matrix, form, budget)
    sides = _widths(widths)
    with deciding():
        budget.need(64.0 * depth, f"{depth} layers")
        with option("widths"):
            made = as_widths(sides, table.shape, depth, 1)
        budget.need(24.0 * sum(a * b for a, b in pairwise(made)), f"{depth} layers")
    x, point = _point(table, depth, rank)
    _say(table)
    gauge = "haar" if haar else None
    with option("widths"):
        layers = balanced_factors(point, widths=sides, gauge=gauge, generator=generator)
    arrays: dict[str, Any] = {f"W_{p}": w.numpy() for p, w in enumerate(layers, start=1)}
    with written_whole(out) as handle:
        np.savez(handle, **arrays)
    gap = float(torch.linalg.norm(end_to_end(layers) - x) / torch.linalg.norm(x))
    drift = max((float(g.abs().max()) for g in moments(layers)), default=0.0)
    print_table(
        "Balanced factors",
        ("layer", "shape", "norm"),
        [
            (name, f"{w.shape[0]} x {w.shape[1]}", number(float(np.linalg.norm(w))))
            for name, w in arrays.items()
        ],
        f"|W_N ... W_1 - X| / |X| = {gap:.1e}; largest entry of a moment {drift:.1e}",
    )
    print(f"written: {out}")


def entropy_command(
    matrix: Matrix,
    depth: Annotated[float, typer.Option(help="Depth N >= 1, a real number or inf.")] = 2.0,
    widths: Widths = None,
    rank: Rank = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object of JSON.")] = False,
    header: Header = None,
    index: Index = None,
    delimiter: Delimiter = None,
    decimal: Decimal = ".",
    max_memory: MaxMemory = None,
) -> None:
    """Print the entropy of a matrix: the logarithm of the volume of its balanced factorisations."""
    with option("depth"):
        as_depth(depth)
    sides = _widths(widths)
    form = text_format(header, index, delimiter, decimal)
    table = _read_table(matrix, form, memory_budget(max_memory))
    _, point = _point(table, depth, rank)
    _say(table)
    with option("widths"):
        value = float(entropy(point, widths=sides))
    effective = float(effective_rank(point.s))
    if as_json:
        found = {
            # JSON has no infinities.
            "depth": depth if math.isfinite(depth) else "inf",
            "entropy": value if math.isfinite(value) else None,
            "rank": point.rank,
            "effective_rank": effective,
            "singular_values": point.s.tolist(),
        }
        print(json.dumps(found))
        return
    s = [number(v) for v in point.s.tolist()]
    shown = ", ".join(s[:8]) + (f", ..., {s[-1]}" if len(s) > 8 else "")
    print_table(
        f"Entropy of {matrix.name}",
        ("", "value"),
        [
            ("matrix", f"{point.shape[0]} x {point.shape[1]}"),
            ("rank", f"{point.rank} ({'numerical' if rank is None else 'given'})"),
            ("depth", f"{depth:g}"),
            ("entropy", number(value, 10)),
            ("effective rank", number(effective, 6)),
            ("singular values", shown),
        ],
    )


def _read_table(path: Path, form: TextFormat, budget: Budget) -> Table:
    """Read a matrix, if it and its singular values fit into memory."""
    with deciding():
        table = read_matrix(path, form=form, max_memory=budget)
        budget.need(6.0 * table.values.nbytes, f"the singular values of {path.name}")
    return table


def _point(table: Table, depth: float, rank: int | None) -> tuple[torch.Tensor, EndToEnd]:
    """Return a matrix, and it as a point of its numerical rank or the rank given."""
    x = torch.from_numpy(np.array(table.values))
    if rank is not None:
        with option("rank"):
            as_rank(rank, min(table.shape), "the smaller side of the matrix")
    found = max(1, int(torch.linalg.matrix_rank(x))) if rank is None else rank
    return x, EndToEnd.of(x, depth, rank=found)


def _are_layers(paths: Sequence[Path]) -> bool:
    """Tell whether a file holds nothing but layers W_1, ..., W_N."""
    try:
        with zipfile.ZipFile(paths[0]) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return names == [f"W_{p}.npy" for p in range(1, len(names) + 1)]


def _say(table: Table) -> None:
    """Print what was skipped or assumed, apart from the results."""
    for note in table.notes:
        sys.stderr.write(f"note: {note}\n")


def _widths(text: str | None) -> tuple[int, ...] | int | None:
    widths = None if text is None else read_integers(text, "--widths")
    if widths is not None and min(widths) < 1:
        raise ValueError(f"--widths must be positive, got {text}")
    return widths[0] if widths is not None and len(widths) == 1 else widths
