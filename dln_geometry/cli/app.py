"""The commands and their options."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

__all__ = ["app"]

app = typer.Typer(
    help="Geometry and dynamics of deep linear networks.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Widths = Annotated[
    str | None,
    typer.Option(help="Widths d_0,...,d_N, or one number for every hidden layer [default: min]."),
]
Rank = Annotated[int | None, typer.Option(help="Rank [default: the numerical rank].")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Figure to write.")] = Path("dln-photograph.png"),
    store: Annotated[
        Path | None, typer.Option(help="Folder of states, from which a killed job continues.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small picture, in seconds.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the hidden pixels and the start.")] = 0,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Deep linear networks: without a command, complete a photograph from 40 % of its pixels."""
    if version:
        from dln_geometry import __version__

        print(f"dln {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is not None:
        return
    from dln_geometry.cli import photograph

    with _resumable(store):
        photograph.run(out, store=store, quick=quick, seed=seed)


@app.command()
def complete(
    data: Annotated[
        Path,
        typer.Argument(
            help="Known entries: .csv .tsv .txt (row,column,value, or a matrix with empty or NaN "
            "cells), .npz (rows, cols, values[, shape], or a table, or a sparse matrix of "
            "scipy), .npy (a table), .mtx."
        ),
    ],
    depth: Annotated[float, typer.Option(help="Depth N >= 1, a real number or inf.")] = 3.0,
    rank: Annotated[int | None, typer.Option(help="Rank of the network [default: full].")] = None,
    scale: Annotated[
        float, typer.Option(help="Singular values of the start, relative to the matrix's norm.")
    ] = 1e-3,
    t_end: Annotated[float | None, typer.Option(help="End of time.")] = None,
    until_loss: Annotated[
        float | None,
        typer.Option(help="Stop at this share of the loss of the mean [default: 0.001]."),
    ] = None,
    until_gradient: Annotated[
        float | None,
        typer.Option(help="Stop at this norm of the Riemannian gradient [default: at rest]."),
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Stop after this long.")] = None,
    holdout: Annotated[float, typer.Option(help="Share of entries kept to test on.")] = 0.1,
    center: Annotated[bool, typer.Option(help="Take the mean of the entries away.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the held-out entries and the start.")] = 0,
    rtol: Annotated[float, typer.Option(help="Tolerance of the integrator.")] = 1e-6,
    layout: Annotated[
        str,
        typer.Option(
            help="What a table holds: triples, matrix, or auto: full lines of two "
            "whole numbers and a third are triples, a matrix must have holes."
        ),
    ] = "auto",
    one_based: Annotated[
        bool, typer.Option("--one-based", help="Rows and columns of triples count from 1.")
    ] = False,
    shape: Annotated[
        str | None, typer.Option(help="Shape m,n of triples [default: the largest places].")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Name of the results without suffix, or a folder for them."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="File of the state, from which a killed run continues.")
    ] = None,
) -> None:
    """Complete a matrix from its known entries by the gradient flow of a deep linear network."""
    from dln_geometry.cli import completion, files

    sides = None if shape is None else _integers(shape, "--shape")
    if sides is not None and (len(sides) != 2 or min(sides) < 1):
        raise ValueError(f"--shape must be two positive integers m,n, got {shape}")
    limits = {"loss": until_loss, "gradient": until_gradient, "seconds": seconds}
    plan = completion.Plan(
        depth=depth,
        rank=rank,
        scale=scale,
        until={name: value for name, value in limits.items() if value is not None},
        t_end=t_end,
        holdout=holdout,
        center=center,
        seed=seed,
        rtol=rtol,
    )
    entries = files.read_entries(data, layout=layout, one_based=one_based, shape=sides)
    name = Path(f"{data.stem}-completed")
    if out is not None:
        name = out / name if out.is_dir() else out
    if name.suffix in completion.WRITTEN:
        name = name.with_suffix("")
    if data.resolve() in [name.with_name(name.name + s).resolve() for s in completion.WRITTEN]:
        raise ValueError(f"--out must not overwrite the data, got {data}")
    with _resumable(store):
        completion.run(entries, plan, name, store=store, progress=sys.stderr.isatty())


@app.command()
def balance(
    matrix: Annotated[Path, typer.Argument(help="The end-to-end matrix: .npy, .npz or a table.")],
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
    from dln_geometry.cli import files, report
    from dln_geometry.geometry.points import EndToEnd, balanced_factors, end_to_end, moments
    from dln_geometry.support import written_whole

    report.writable(out, (".npz",))
    x = torch.from_numpy(files.read_matrix(matrix))
    layers = balanced_factors(
        EndToEnd.of(x, depth, rank=_rank(x) if rank is None else rank),
        widths=_widths(widths),
        gauge="haar" if haar else None,
        generator=torch.Generator().manual_seed(seed),
    )
    arrays = {f"W_{p}": w.numpy() for p, w in enumerate(layers, start=1)}
    with written_whole(out) as handle:
        np.savez(handle, allow_pickle=False, **arrays)
    gap = float(torch.linalg.norm(end_to_end(layers) - x) / torch.linalg.norm(x))
    drift = max((float(g.abs().max()) for g in moments(layers)), default=0.0)
    report.print_table(
        "Balanced factors",
        ("layer", "shape", "norm"),
        [
            (f"W_{p}", f"{w.shape[0]} x {w.shape[1]}", report.number(float(torch.linalg.norm(w))))
            for p, w in enumerate(layers, start=1)
        ],
        f"|W_N ... W_1 - X| / |X| = {gap:.1e}; largest entry of a moment {drift:.1e}",
    )
    print(f"written: {out}")


@app.command()
def entropy(
    matrix: Annotated[Path, typer.Argument(help="The end-to-end matrix: .npy, .npz or a table.")],
    depth: Annotated[float, typer.Option(help="Depth N >= 1, a real number or inf.")] = 2.0,
    widths: Widths = None,
    rank: Rank = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object of JSON.")] = False,
) -> None:
    """Print the entropy of a matrix: the logarithm of the volume of its balanced factorisations."""
    from dln_geometry.cli import files, report
    from dln_geometry.geometry.metric import entropy as entropy_of
    from dln_geometry.geometry.points import EndToEnd

    x = torch.from_numpy(files.read_matrix(matrix))
    point = EndToEnd.of(x, depth, rank=_rank(x) if rank is None else rank)
    value = float(entropy_of(point, widths=_widths(widths)))
    effective = report.effective_rank(point.s)
    if as_json:
        # JSON has no infinities: an entropy of -inf is null.
        found = {
            "depth": depth if np.isfinite(depth) else "inf",
            "entropy": value if np.isfinite(value) else None,
            "rank": point.rank,
            "effective_rank": effective,
            "singular_values": point.s.tolist(),
        }
        print(json.dumps(found))
        return
    s = [report.number(v) for v in point.s.tolist()]
    shown = ", ".join(s[:8]) + (f", ..., {s[-1]}" if len(s) > 8 else "")
    report.print_table(
        f"Entropy of {matrix.name}",
        ("", "value"),
        [
            ("matrix", f"{point.shape[0]} x {point.shape[1]}"),
            ("rank", f"{point.rank} ({'numerical' if rank is None else 'given'})"),
            ("depth", f"{depth:g}"),
            ("entropy", report.number(value, 10)),
            ("effective rank", report.number(effective, 6)),
            ("singular values", shown),
        ],
    )


def _rank(x: torch.Tensor) -> int:
    """Return the numerical rank: the singular values below it are rounding, not the matrix."""
    return max(1, int(torch.linalg.matrix_rank(x)))


def _widths(text: str | None) -> tuple[int, ...] | int | None:
    """Read widths: one number is the width of every hidden layer."""
    if text is None:
        return None
    widths = _integers(text, "--widths")
    return widths[0] if len(widths) == 1 else widths


def _integers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} must be integers with commas between, got {text}") from None


@contextmanager
def _resumable(store: Path | None) -> Iterator[None]:
    """Turn an interrupt into one line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if store is None:
            hint = "give --store to be able to continue"
        else:
            hint = f"the same command continues from {store}"
        sys.stderr.write(f"interrupted: {hint}\n")
        raise typer.Exit(130) from None
