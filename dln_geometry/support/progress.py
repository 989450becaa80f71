"""A progress bar for a flow, fed by the integrator."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["Progress"]


class Progress:
    """Show how far a run has come; a context whose `callback` the integrator is given.

    The callback is the user's own if there is one, `None` where nothing is to be shown.
    """

    def __init__(
        self, show: bool | Callable[[float, dict[str, Any]], None], label: str = "flow"
    ) -> None:
        self.label = label
        self._shows_bar = show is True
        self.callback = self._update if show is True else show or None
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._shows_bar:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%  loss {task.fields[loss]}"),
                TimeElapsedColumn(),
            )
            self._task = self._bar.add_task(self.label, total=1.0, loss="-")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _update(self, fraction: float, info: dict[str, Any]) -> None:
        # The slowest sample of a batch is the one to wait for.
        loss = max(row[0] for row in info["obs"])
        self._bar.update(self._task, completed=fraction, loss=f"{loss:.3e}")
