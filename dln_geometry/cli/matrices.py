"""The commands on a whole matrix: ``dln balance`` and ``dln entropy``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from dln_geometry.cli.files import read_matrix
from dln_geometry.cli.report import check_output, effective_rank, number, print_table, read_integers
from dln_geometry.geometry.metric import entropy
from dln_geometry.geometry.points import EndToEnd, balanced_factors, end_to_end, moments
from dln_geometry.support import written_whole

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
) -> None:
    """Write balanced factors W_1, ..., W_N of a matrix, input side first."""
    check_output(out, (".npz",))
    x, point = _read_point(matrix, depth, rank)
    gauge, generator = "haar" if haar else None, torch.Generator().manual_seed(seed)
    layers = balanced_factors(point, widths=_widths(widths), gauge=gauge, generator=generator)
    arrays = {f"W_{p}": w.numpy() for p, w in enumerate(layers, start=1)}
    with written_whole(out) as handle:
        np.savez(handle, allow_pickle=False, **arrays)
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
) -> None:
    """Print the entropy of a matrix: the logarithm of the volume of its balanced factorisations."""
    _, point = _read_point(matrix, depth, rank)
    value = float(entropy(point, widths=_widths(widths)))
    effective = effective_rank(point.s)
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


def _read_point(path: Path, depth: float, rank: int | None) -> tuple[torch.Tensor, EndToEnd]:
    """Read a matrix; return it, and it as a point of its numerical rank or the rank given."""
    x = torch.from_numpy(read_matrix(path))
    found = max(1, int(torch.linalg.matrix_rank(x))) if rank is None else rank
    return x, EndToEnd.of(x, depth, rank=found)


def _widths(text: str | None) -> tuple[int, ...] | int | None:
    widths = None if text is None else read_integers(text, "--widths")
    return widths[0] if widths is not None and len(widths) == 1 else widths
