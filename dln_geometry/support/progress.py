"""Progress bars, and the callback that an integrator is given for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

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
