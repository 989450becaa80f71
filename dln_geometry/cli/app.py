"""The commands and their options, and `main`, which runs one."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from dln_geometry.cli.completion import (
    SUFFIXES,
    Plan,
    are_results,
    check_plan,
    complete_matrix,
    results_of,
)
from dln_geometry.cli.files import (
    Decimal,
    Delimiter,
    Force,
    Header,
    Index,
    MaxMemory,
    check_outputs,
    check_store,
    deciding,
    memory_budget,
    option,
    text_format,
)
from dln_geometry.cli.matrices import balance_command, entropy_command
from dln_geometry.cli.photograph import complete_photograph
from dln_geometry.cli.report import read_integers
from dln_geometry.cli.signals import Terminated, as_interrupts
from dln_geometry.support import as_depth, as_seed
from dln_geometry.tables import read_entries

# typer ships click inside or depends on it, according to its version: the base class is either's.
_UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]
# Mistakes of the user, and what the machine refuses; any other error is a fault of this program.
_MISTAKES = (TypeError, ValueError)
_PATHS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_FAILURES = (MemoryError, RuntimeError, ArithmeticError)

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
    force: Force = False,
    version: Annotated[bool, Option("--version", help="Print the version.")] = False,
) -> None:
    """Deep linear networks: without a command, complete a photograph from 40 % of its pixels."""
    if version:
        from dln_geometry import __version__

        print(f"dln {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        with option("seed"):
            as_seed(as_seed(seed, "seed") + 1, "seed")
        with _resumable(store):
            complete_photograph(out, store=store, quick=quick, seed=seed, force=force)


@app.command("complete")
def complete_command(
    data: Annotated[
        Path,
        typer.Argument(
            help="Known entries: .csv .tsv .txt .tab .dat .data (row,column,value, or a matrix "
            "with empty or NaN cells; also .gz), .npz (rows, cols, values[, shape], or a table, "
            "or a sparse matrix of scipy), .npy (a table), .mtx, .parquet."
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
            "whole numbers or names and a number are triples, a matrix must have holes."
        ),
    ] = "auto",
    one_based: Annotated[
        bool, Option("--one-based", help="Rows and columns of triples are places from 1.")
    ] = False,
    shape: Annotated[
        str | None,
        Option(help="Shape m,n of triples, whose ids are places then [default: the ids]."),
    ] = None,
    header: Header = None,
    index: Index = None,
    delimiter: Delimiter = None,
    decimal: Decimal = ".",
    max_memory: MaxMemory = None,
    out: Annotated[
        Path | None, Option(help="Name of the results without suffix, or a folder for them.")
    ] = None,
    force: Force = False,
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
    with option("depth"):
        depth = as_depth(depth)
    with option("seed"):
        # The start takes the seed after that of the held-out entries.
        as_seed(as_seed(seed, "seed") + 1, "seed")
    plan = Plan(
        depth=depth,
        rank=rank,
        scale=scale,
        until=until,
        t_end=t_end,
        holdout=holdout,
        center=center,
        seed=seed,
        rtol=rtol,
    )
    check_plan(plan)
    form, budget = text_format(header, index, delimiter, decimal), memory_budget(max_memory)
    name = _name_of_results(data, out)
    check_store(store, data)
    check_outputs(results_of(name), [data, store], are_results, force=force)
    with deciding():
        entries = read_entries(
            data, layout=layout, one_based=one_based, shape=sides, form=form, max_memory=budget
        )
    with _resumable(store):
        progress = sys.stderr.isatty()
        complete_matrix(entries, plan, name, budget=budget, store=store, progress=progress)


def _name_of_results(data: Path, out: Path | None) -> Path:
    """Return the name of the results without suffix."""
    stem = Path(data.name.removesuffix(".gz")).stem
    name = Path(f"{stem}-completed")
    if out is not None:
        name = out / name if out.is_dir() else out
    return name.with_suffix("") if name.suffix in SUFFIXES else name


app.command("balance")(balance_command)
app.command("entropy")(entropy_command)


@contextmanager
def _resumable(store: Path | None) -> Iterator[None]:
    """Turn an interrupt into one line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        hint = "give --store to be able to continue"
        if store is not None:
            hint = f"the same command continues from {store}"
        raise type(interrupt)(f"interrupted: {hint}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, by default that of the process; return its exit code.

    A mistake of the user prints one line to stderr and returns 2; what the machine refuses (memory,
    a full disk) prints one line and returns 1; an interrupt returns 130, a termination 143.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if arguments is None and isinstance(sys.stdout, io.TextIOWrapper):
        # A result must not fail for a sign that the terminal lacks.
        sys.stdout.reconfigure(errors="replace")
    command = typer.main.get_command(app)
    try:
        with as_interrupts(last=arguments is None):
            # Without the frame of click, which would swallow interrupts.
            with command.make_context("dln", given) as context:
                command.invoke(context)
            sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code
    except _UsageError as error:
        return _refuse(error.format_message())
    except BrokenPipeError:
        # The reader has left, as `head` does: nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        name = f": {error.filename}" if error.filename else ""
        return _refuse(f"{error.strerror or error}{name}", 2 if isinstance(error, _PATHS) else 1)
    except _MISTAKES as error:
        return _refuse(str(error))
    except _FAILURES as error:
        what = "out of memory" if isinstance(error, MemoryError) else ""
        return _refuse(" ".join(filter(None, (what, str(error)))) or type(error).__name__, 1)
    except (KeyboardInterrupt, typer.Abort) as interrupt:
        sys.stderr.write(f"{str(interrupt) or 'interrupted'}\n")
        return 143 if isinstance(interrupt, Terminated) else 130
    return 0


def _refuse(message: str, code: int = 2) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return code
