"""What the monitor of a run saw: an observable at every step, and where it was least."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points import indexed


@dataclass(frozen=True, eq=False)
class Monitored:
    """An observable along a run; the run's `final` is the point where it was least.

    Attributes
    ----------
    t, values : Tensor, shape (S, ...)
        Times and values at the start and after every step, S in all. A sample of a batch that did
        not advance keeps its time and value.
    best_t, best : Tensor, shape (...)
        Time and value of the least one.
    last : Collapsed, EndToEnd, Network or None
        The point at which the run stopped.
    """

    t: Tensor
    values: Tensor
    best_t: Tensor
    best: Tensor
    last: Any = None

    def __repr__(self) -> str:
        if self.best.ndim:
            return f"Monitored({len(self.t)} steps, batch {tuple(self.best.shape)})"
        best, t = float(self.best), float(self.best_t)
        return f"Monitored({len(self.t)} steps, least {best:.6g} at t = {t:g})"

    def select(self, index: Any) -> Monitored:
        """Return what was seen of some samples; `index` as for a tensor of the batch shape."""
        t, values = (
            indexed(x.movedim(0, -1), index, 1).movedim(-1, 0) for x in (self.t, self.values)
        )
        best_t, best = (indexed(x, index, 0) for x in (self.best_t, self.best))
        last = None if self.last is None else self.last.select(index)
        return Monitored(t, values, best_t, best, last)

    def arrays(self) -> dict[str, Tensor]:
        """Return the tensors by name, for files."""
        return {name: getattr(self, name) for name in ("t", "values", "best_t", "best")}


def monitored_of(seen: Any, batch: torch.Size | tuple[int, ...], slow: float, last: Any) -> Any:
    """Give what the integrator saw of B samples the shape of the batch and the run's own time."""
    if seen is None:
        return None
    assert math.prod(batch) == seen.best.shape[0]
    t, values = seen.t * slow, seen.values
    best_t, best = (x.reshape(batch) for x in (seen.best_t * slow, seen.best))
    return Monitored(t.reshape(-1, *batch), values.reshape(-1, *batch), best_t, best, last)
