"""The commands and their options, and `main`, which runs one."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from dln_geometry.cli.completion import complete_command
from dln_geometry.cli.files import Force, option
from dln_geometry.cli.matrices import balance_command, entropy_command
from dln_geometry.cli.photograph import complete_photograph
from dln_geometry.cli.signals import Terminated, as_interrupts, continuable
from dln_geometry.support import as_seed

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
        with continuable(store):
            complete_photograph(out, store=store, quick=quick, seed=seed, force=force)


app.command("complete")(complete_command)
app.command("balance")(balance_command)
app.command("entropy")(entropy_command)


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
