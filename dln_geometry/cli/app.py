"""`main`, which runs a command, and what ``dln`` does without one."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from dln_geometry.cli.commands import photograph_command
from dln_geometry.cli.options import (
    AsJson,
    Device,
    Dtype,
    Force,
    PhotographFile,
    PhotographStore,
    Quick,
    Seed,
)
from dln_geometry.cli.program import WORKERS, app, deferred
from dln_geometry.cli.signals import Terminated, as_interrupts
from dln_geometry.version import __version__

# typer ships click inside or depends on it, according to its version: the base class is either's.
_UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]
# Mistakes of the user, and what the machine refuses; any other error is a fault of this program.
_MISTAKES = (TypeError, ValueError)
_PATHS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_FAILURES = (MemoryError, RuntimeError, ArithmeticError, AssertionError)
_COMPLETE = "_DLN_COMPLETE"
"""By this variable a shell asks for completions."""


@app.callback(invoke_without_command=True)
def without_command(
    context: typer.Context,
    out: PhotographFile = Path("dln-photograph.png"),
    store: PhotographStore = None,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
    force: Force = False,
    version: Annotated[bool, Option("--version", help="Print the version.")] = False,
) -> None:
    r"""Deep linear networks: without a command, complete a photograph from 40 % of its pixels.

    The options below are those of the photograph; the options of a command stand after it.

    \b
    Example:
      dln --quick
      dln COMMAND --help
    """
    given = {"out": out, "store": store, "quick": quick, "seed": seed, "force": force}
    given |= {"device": device, "dtype": dtype, "as_json": as_json}
    if version:
        print(f"dln {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        deferred(photograph_command, WORKERS["photograph"][0])(**given)
        return
    for name in given:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.removeprefix('as_')}"
            raise ValueError(
                f"{option} must stand after the command, got it before {context.invoked_subcommand}"
            )


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
    if arguments is None and _COMPLETE in os.environ:
        command.main(prog_name="dln", complete_var=_COMPLETE)
    try:
        with as_interrupts(last=arguments is None):
            # Without the frame of click, which would swallow interrupts.
            with command.make_context("dln", given) as context:
                command.invoke(context)
            sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code
    except _UsageError as error:
        return _refuse(_worded(error, given))
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


def _worded(error: Any, given: Sequence[str]) -> str:
    """Return what typer says; of a value of the wrong kind, what was required and what came."""
    said, param = error.format_message(), getattr(error, "param", None)
    kind = re.search(r"valid (integer|number|float)", said)
    for name in getattr(param, "opts", ()) if kind else ():
        for k, word in enumerate(given):
            value = given[k + 1 : k + 2] if word == name else [word.removeprefix(f"{name}=")]
            if value and (word == name or word != value[0]):
                required = "a whole number" if kind and kind[1] == "integer" else "a number"
                about = (getattr(param, "help", None) or "").partition(" [default")[0].rstrip(".")
                return f"{name} must be {required}, got {value[0]}{about and f' ({about})'}"
    return said


def _refuse(message: str, code: int = 2) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return code
