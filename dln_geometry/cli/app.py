"""The commands and their options, and `main`, which runs one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from dln_geometry.cli.completion import SUFFIXES, Plan, complete_matrix
from dln_geometry.cli.files import read_entries
from dln_geometry.cli.matrices import balance_command, entropy_command
from dln_geometry.cli.photograph import complete_photograph
from dln_geometry.cli.report import read_integers
from dln_geometry.support import as_depth

# typer ships click inside or depends on it, according to its version: the base class is either's.
_UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    help="Geometry and dynamics of deep linear networks.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def photograph_command(
    context: typer.Context,
    out: Annotated[Path, Option(help="Figure to write.")] = Path("dln-photograph.png"),
    store: Annotated[
        Path | None, Option(help="Folder of states, from which a killed job continues.")
    ] = None,
    quick: Annotated[bool, Option("--quick", help="A small picture, in seconds.")] = False,
    seed: Annotated[int, Option(help="Seed of the hidden pixels and the start.")] = 0,
    version: Annotated[bool, Option("--version", help="Print the version.")] = False,
) -> None:
    """Deep linear networks: without a command, complete a photograph from 40 % of its pixels."""
    if version:
        from dln_geometry import __version__

        print(f"dln {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        with _resumable(store):
            complete_photograph(out, store=store, quick=quick, seed=seed)


@app.command("complete")
def complete_command(
    data: Annotated[
        Path,
        typer.Argument(
            help="Known entries: .csv .tsv .txt (row,column,value, or a matrix with empty or NaN "
            "cells), .npz (rows, cols, values[, shape], or a table, or a sparse matrix of "
            "scipy), .npy (a table), .mtx."
        ),
    ],
    depth: Annotated[float, Option(help="Depth N >= 1, a real number or inf.")] = 3.0,
    rank: Annotated[int | None, Option(help="Rank of the network [default: full].")] = None,
    scale: Annotated[
        float, Option(help="Singular values of the start, relative to the matrix's norm.")
    ] = 1e-3,
    t_end: Annotated[float | None, Option(help="End of time.")] = None,
    until_loss: Annotated[
        float | None, Option(help="Stop at this share of the loss of the mean [default: 0.001].")
    ] = None,
    until_gradient: Annotated[
        float | None,
        Option(help="Stop at this norm of the Riemannian gradient [default: at rest]."),
    ] = None,
    seconds: Annotated[float | None, Option(help="Stop after this long.")] = None,
    holdout: Annotated[float, Option(help="Share of entries kept to test on.")] = 0.1,
    center: Annotated[bool, Option(help="Take the mean of the entries away.")] = True,
    seed: Annotated[int, Option(help="Seed of the held-out entries and the start.")] = 0,
    rtol: Annotated[float, Option(help="Tolerance of the integrator.")] = 1e-6,
    layout: Annotated[
        str,
        Option(
            help="What a table holds: triples, matrix, or auto: full lines of two "
            "whole numbers and a third are triples, a matrix must have holes."
        ),
    ] = "auto",
    one_based: Annotated[
        bool, Option("--one-based", help="Rows and columns of triples count from 1.")
    ] = False,
    shape: Annotated[
        str | None, Option(help="Shape m,n of triples [default: the largest places].")
    ] = None,
    out: Annotated[
        Path | None, Option(help="Name of the results without suffix, or a folder for them.")
    ] = None,
    store: Annotated[
        Path | None, Option(help="File of the state, from which a killed run continues.")
    ] = None,
) -> None:
    """Complete a matrix from its known entries by the gradient flow of a deep linear network."""
    sides = None if shape is None else read_integers(shape, "--shape")
    if sides is not None and (len(sides) != 2 or min(sides) < 1):
        raise ValueError(f"--shape must be two positive integers m,n, got {shape}")
    limits = {"loss": until_loss, "gradient": until_gradient, "seconds": seconds}
    until = {name: value for name, value in limits.items() if value is not None}
    plan = Plan(
        depth=as_depth(depth),
        rank=rank,
        scale=scale,
        until=until,
        t_end=t_end,
        holdout=holdout,
        center=center,
        seed=seed,
        rtol=rtol,
    )
    entries = read_entries(data, layout=layout, one_based=one_based, shape=sides)
    name = Path(f"{data.stem}-completed")
    if out is not None:
        name = out / name if out.is_dir() else out
    if name.suffix in SUFFIXES:
        name = name.with_suffix("")
    if data.resolve() in [name.with_name(name.name + s).resolve() for s in SUFFIXES]:
        raise ValueError(f"--out must not overwrite the data, got {data}")
    with _resumable(store):
        complete_matrix(entries, plan, name, store=store, progress=sys.stderr.isatty())


app.command("balance")(balance_command)
app.command("entropy")(entropy_command)


@contextmanager
def _resumable(store: Path | None) -> Iterator[None]:
    """Turn an interrupt into one line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        hint = "give --store to be able to continue"
        if store is not None:
            hint = f"the same command continues from {store}"
        sys.stderr.write(f"interrupted: {hint}\n")
        raise typer.Exit(130) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, by default that of the process; return its exit code.

    A mistake of the user prints one line to stderr and returns 2; an interrupt returns 130.
    """
    given = None if arguments is None else list(arguments)
    try:
        code = app(given, prog_name="dln", standalone_mode=False)
    except _UsageError as error:
        return _refuse(error.format_message())
    except OSError as error:
        name = f": {error.filename}" if error.filename else ""
        return _refuse(f"{error.strerror or error}{name}")
    except (TypeError, ValueError) as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("interrupted\n")
        return 130
    return code if isinstance(code, int) else 0


def _refuse(message: str) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return 2
