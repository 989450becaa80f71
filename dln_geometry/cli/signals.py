"""Signals that end a process, as interrupts that the runs save their state at."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from dln_geometry._startup import SIGNALS, leave_quietly_when_interrupted


class Terminated(KeyboardInterrupt):
    """The process was asked to end, by SIGTERM or the end of its terminal."""


@contextmanager
def as_interrupts(*, last: bool) -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGINT and `Terminated` at SIGTERM and SIGHUP.

    What the process ignores (nohup) stays ignored. With `last` nothing follows but the end of the
    process, which another signal ends at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, held in before.items():
            if held is not signal.SIG_IGN:
                signal.signal(number, _raise)
        yield
    finally:
        for number, held in before.items():
            signal.signal(number, held)
        if last:
            leave_quietly_when_interrupted()


@contextmanager
def continuable(
    store: Path | None, hint: str = "give --store to be able to continue"
) -> Iterator[None]:
    """Turn an interrupt into one line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if store is not None:
            hint = f"the same command continues from {store}"
        raise type(interrupt)(f"interrupted: {hint}") from None


def _raise(number: int, _: FrameType | None) -> Any:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated
