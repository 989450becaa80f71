"""Signals that end a process, as interrupts that the runs save their state at."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from dln_geometry._startup import SIGNALS, leave, leave_quietly_when_interrupted


class Terminated(KeyboardInterrupt):
    """The process was asked to end, by SIGTERM or the end of its terminal."""


@contextmanager
def as_interrupts(*, last: bool) -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGINT and `Terminated` at SIGTERM and SIGHUP.

    What the process ignores (nohup) stays ignored. With `last` nothing follows but the end of the
    process, which another signal ends at once.
    """
    try:
        with _handled_by(_last_of_all if last else _raise):
            yield
    finally:
        if last and threading.current_thread() is threading.main_thread():
            leave_quietly_when_interrupted()


@contextmanager
def imports_at_once() -> Iterator[None]:
    """Let signals end the process at once: imports are long, and fail oddly when interrupted.

    Only where the process ends with the command; elsewhere the interrupt is raised as always.
    """
    if all(signal.getsignal(number) is not _last_of_all for number in SIGNALS):
        yield
        return
    with _handled_by(leave):
        yield


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


@contextmanager
def _handled_by(handler: Any) -> Iterator[None]:
    """Handle the signals that the process does not ignore; a thread other than the main cannot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, held in before.items():
            if held is not signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, held in before.items():
            signal.signal(number, held)


def _raise(number: int, _: FrameType | None) -> Any:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _last_of_all(number: int, frame: FrameType | None) -> Any:
    """Raise as `_raise` does, in a process that ends with the command."""
    _raise(number, frame)
