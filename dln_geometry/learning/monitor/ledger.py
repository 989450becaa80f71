"""The rows of figures of a monitor: on the device until they are fetched, then on the host."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture import SymmetricGroup
from dln_geometry.learning.monitor.record import ChargeRecord, ChargeReport
from dln_geometry.learning.symmetry import SymmetryError
from dln_geometry.support import as_choice, as_count, warn


class Ledger:
    """Rows of figures: charges, predictions, residuals and tolerances of all groups, then units.

    The options are those of `ChargeMonitor`.
    """

    def __init__(
        self,
        labels: Sequence[str],
        history: int | None,
        on_break: str,
        writer: Any,
        prefix: str,
        flush_every: int,
    ) -> None:
        as_choice(on_break, ("ignore", "warn", "raise"), "on_break")
        if isinstance(writer, type) or (
            writer is not None and not callable(getattr(writer, "add_scalar", None))
        ):
            raise TypeError(f"writer must have a method add_scalar, got {type(writer).__name__}")
        self.labels = tuple(labels)
        self.on_break, self.writer, self.prefix = on_break, writer, prefix
        self.flush_every = as_count(flush_every, "flush_every")
        self.warned = False
        self._waiting: list[tuple[int, Tensor]] = []
        kept = None if history is None else as_count(history, "history")
        self._kept: deque[tuple[int, Tensor]] = deque(maxlen=kept)

    def add(self, step: int, figures: Tensor) -> None:
        """Add a row; flush when `flush_every` rows wait."""
        self._waiting.append((step, figures))
        if len(self._waiting) >= self.flush_every:
            self.flush()

    def flush(self) -> None:
        """Fetch the rows that wait, write them to the writer, and check the tolerances."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        values = torch.stack([figures for _, figures in waiting]).cpu()
        rows = [(step, row) for (step, _), row in zip(waiting, values, strict=True)]
        self._kept.extend(rows)
        if self.writer is not None:
            for step, row in rows:
                for k, label in enumerate(self.labels):
                    residual = float(row[2 * len(self.labels) + k])
                    self.writer.add_scalar(f"{self.prefix}/{label}", float(row[k]), step)
                    self.writer.add_scalar(f"{self.prefix}_residual/{label}", residual, step)
        if self.on_break != "ignore" and not self.warned:
            self._check(rows)

    def _check(self, rows: Sequence[tuple[int, Tensor]]) -> None:
        count = len(self.labels)
        for step, row in rows:
            residual, allowed = row[2 * count : 4 * count].chunk(2)
            broken = ~(residual <= allowed)
            if bool(broken.any()):
                k = int(torch.where(broken, residual / allowed, -1.0).nan_to_num(math.inf).argmax())
                message = (
                    f"{self.labels[k]} must be a symmetry within {float(allowed[k]):.1e}, got a "
                    f"residual of {float(residual[k]):.3e} after {step} steps"
                )
                if self.on_break == "raise":
                    raise SymmetryError(message, float(residual[k]))
                self.warned = True
                warn(message)
                return

    def record(self, owners: tuple[int, ...] | None) -> ChargeRecord:
        """Return all rows that are kept; `owners` are the groups of the single charges."""
        self.flush()
        if not self._kept:
            raise RuntimeError("nothing is recorded yet: the first step of the optimizer begins")
        values = torch.stack([row for _, row in self._kept])
        g = len(self.labels)
        sizes = [g, g, g, g, values.shape[1] - 4 * g]
        charge, predicted, residual, tolerance, rest = values.split(sizes, dim=1)
        steps = torch.tensor([step for step, _ in self._kept])
        known = steps, self.labels, charge, predicted, residual
        if owners is None:
            return ChargeRecord(*known, tolerance=tolerance)
        singles, predictions = rest.chunk(2, dim=1)
        return ChargeRecord(*known, singles, predictions, owners, tolerance)

    def report(self, record: ChargeRecord, groups: Sequence[SymmetricGroup]) -> list[ChargeReport]:
        """Return one line for every group, with the worst residual of all rows."""
        assert record.tolerance is not None
        last = (x[-1].tolist() for x in (record.charge, record.predicted, record.residual))
        residual = record.residual.nan_to_num(math.inf)
        # The worst by its own tolerance, which follows the variances of normalisations.
        at = (residual / record.tolerance).argmax(0, keepdim=True)
        worst, allowed = (x.gather(0, at)[0].tolist() for x in (residual, record.tolerance))
        rows = zip(self.labels, groups, *last, worst, allowed, strict=True)
        return [ChargeReport(*row) for row in rows]

    def state(self) -> list[tuple[int, Tensor]]:
        """Return the rows that are kept."""
        self.flush()
        return [(step, row.clone()) for step, row in self._kept]

    def load(self, rows: Sequence[tuple[int, Tensor]]) -> None:
        """Continue from rows that `state` returned."""
        self._waiting = []
        self._kept.clear()
        self._kept.extend((step, row.clone()) for step, row in rows)
