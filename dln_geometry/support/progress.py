"""How far a run has come: progress bars, their callback, and when a run saves its state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from dln_geometry.support.arguments import as_positive, shown

Every = float | Mapping[str, float]
"""When a run saves its state: after so many seconds, or ``{"steps": n}``, or the first of both."""

EVERY = 4.0
"""A kill loses at most five seconds: a step and the writing come on top."""

ProgressCallback = Callable[[float, dict[str, Any]], None]


@contextmanager
def progress_bar(
    label: str, total: float = 1.0, *, note: str = "", stderr: bool = False
) -> Iterator[Callable[[float, str], None]]:
    """Show a progress bar; yield ``tell(done, note)``, which moves it to `done` of `total`."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[note]}"),
        TimeElapsedColumn(),
        console=Console(stderr=stderr),
    ) as bar:
        task = bar.add_task(label, total=total, note=note)
        yield lambda done, note: bar.update(task, completed=done, note=note)


class Progress:
    """A context whose `callback(fraction_done, info)` shows how far a run has come.

    It adds ``info["loss"]``, the largest loss of the batch, and moves the bar or calls the user's
    own function; it is None where nothing is to be shown.
    """

    def __init__(self, show: bool | ProgressCallback | None, label: str = "flow") -> None:
        if show is not None and not isinstance(show, bool) and not callable(show):
            got = type(show).__name__
            raise TypeError(f"progress must be True, False or a function to call, got {got}")
        self._show, self._label, self._stack = show, label, ExitStack()
        self.callback: ProgressCallback | None = self._report if show else None

    def __enter__(self) -> Progress:
        if self._show is True:
            bar = progress_bar(self._label, note="loss -")
            self._tell = self._stack.enter_context(bar)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def _report(self, fraction: float, info: dict[str, Any]) -> None:
        # The slowest sample of a batch is the one to wait for.
        loss = max(row[0] for row in info["obs"])
        if callable(self._show):
            self._show(fraction, {**info, "loss": loss})
        else:
            self._tell(fraction, "" if math.isnan(loss) else f"loss {loss:.3e}")


class Schedule:
    """Tell when the state of a run is to be saved again: after so many seconds or steps."""

    def __init__(self, every: Any, name: str = "every") -> None:
        if not isinstance(every, Mapping):
            limits = {"seconds": as_positive(every, name, zero=True)}
        elif not every or not every.keys() <= {"seconds", "steps"}:
            raise ValueError(f"{name} must hold seconds or steps, got {shown(every)}")
        else:
            limits = {n: as_positive(x, f"{name}[{n!r}]", zero=True) for n, x in every.items()}
        self._seconds = limits.get("seconds", math.inf)
        self._steps = limits.get("steps", math.inf)
        self.restart(0)

    def restart(self, steps: int) -> None:
        """Count from now, where a run has made so many steps."""
        self._at, self._from = time.monotonic(), steps

    def due(self, steps: int) -> bool:
        """Tell whether the state is to be saved after so many steps."""
        if steps - self._from >= self._steps:
            return True
        return time.monotonic() - self._at >= self._seconds
