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
from dln_geometry.support import as_count, as_positive, warn


class Ledger:
    """Rows of figures: charges, predictions and residuals of all groups, then single charges.

    Of `tolerances`, one may stand for all groups; the options are those of `ChargeMonitor`.
    """

    def __init__(
        self,
        labels: Sequence[str],
        tolerances: Sequence[float],
        history: int | None,
        on_break: str,
        writer: Any,
        prefix: str,
        flush_every: int,
    ) -> None:
        if on_break not in ("ignore", "warn", "raise"):
            raise ValueError(f'on_break must be "ignore", "warn" or "raise", got {on_break!r}')
        tolerances = [as_positive(value, "tolerance") for value in tolerances]
        if writer is not None and not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(f"writer must have a method add_scalar, got {type(writer).__name__}")
        self.labels = tuple(labels)
        self.tolerances = tuple(tolerances * len(labels) if len(tolerances) == 1 else tolerances)
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
        allowed = torch.tensor(self.tolerances, dtype=rows[0][1].dtype)
        for step, row in rows:
            residual = row[2 * count : 3 * count]
            broken = ~(residual <= allowed)
            if bool(broken.any()):
                k = int(torch.where(broken, residual / allowed, -1.0).nan_to_num(math.inf).argmax())
                message = (
                    f"{self.labels[k]} must be a symmetry within {self.tolerances[k]:.1e}, got a "
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
        charge, predicted, residual, rest = values.split([g, g, g, values.shape[1] - 3 * g], dim=1)
        steps = torch.tensor([step for step, _ in self._kept])
        known = steps, self.labels, charge, predicted, residual
        if owners is None:
            return ChargeRecord(*known)
        singles, predictions = rest.chunk(2, dim=1)
        return ChargeRecord(*known, singles, predictions, owners)

    def report(self, record: ChargeRecord, groups: Sequence[SymmetricGroup]) -> list[ChargeReport]:
        """Return one line for every group, with the worst residual of all rows."""
        last = (x[-1].tolist() for x in (record.charge, record.predicted, record.residual))
        worst = record.residual.nan_to_num(math.inf).amax(0).tolist()
        rows = zip(self.labels, groups, *last, worst, self.tolerances, strict=True)
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
