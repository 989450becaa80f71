"""The command line: ``dln`` or ``python -m dln_geometry``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from dln_geometry.cli.app import app

__all__ = ["main"]

# typer ships click inside or depends on it, according to its version: the base class is either's.
_UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    A mistake of the user is one line on the standard error stream and the code 2; an interrupt
    is the code 130.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.
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
    """Say in one line what was wrong."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return 2
