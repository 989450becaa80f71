"""Signals while the command line starts: its imports take seconds and must end without a traceback.

Nothing is done where the package is imported by another program.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import PurePath
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def leave(number: int, _: FrameType | None = None) -> Any:
    """End the process at once, with one line."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


def leave_quietly_when_interrupted() -> None:
    """Let interrupts end this process with one line, outside of the commands themselves."""
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, leave)


def _is_command_line() -> bool:
    """Tell whether this process is ``dln`` or ``python -m dln_geometry``."""
    program = sys.argv[0] if sys.argv else ""
    given = sys.orig_argv
    module = "-m" in given and given[given.index("-m") + 1 :][:1] == ["dln_geometry"]
    return PurePath(program).name in ("dln", "dln.exe") or (program == "-m" and module)


if _is_command_line():
    leave_quietly_when_interrupted()
