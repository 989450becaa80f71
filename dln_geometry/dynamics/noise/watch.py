"""A warning of steps that are too large for a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from dln_geometry.support import warn


class StepWatch:
    """Warn once if steps along the gradient are as long as points are from zero."""

    def __init__(self, depth: float) -> None:
        # At depths below 2 zero is no special place.
        self._done = depth < 2
        self._deferred: list[tuple[Tensor, Tensor, float]] | None = None

    def defer(self, waits: bool) -> None:
        """Keep what is looked at until `settle`, or look at once; forget what was kept."""
        self._deferred = [] if waits else None

    def settle(self) -> None:
        """Look at what was kept."""
        looks, self._deferred = self._deferred or [], None
        if looks:
            # One copy for all of them.
            seen = torch.stack([torch.stack((way, size)) for way, size, _ in looks]).tolist()
            for (way, size), (_, _, h) in zip(seen, looks, strict=True):
                self._compare(way, size, h)

    def due(self, index: int) -> bool:
        """Tell whether to look at this step: its number is a power of two."""
        return not self._done and index & (index - 1) == 0

    def look(self, squares: Tensor, reach: Tensor, h: float) -> None:
        """Look at moves of these squared lengths, (...), at these squared distances from zero."""
        look = squares.mean().sqrt(), reach.mean().sqrt(), h
        if self._deferred is None:
            self._compare(float(look[0]), float(look[1]), h)
        else:
            self._deferred.append(look)

    def _compare(self, way: float, size: float, h: float) -> None:
        # A tamed move is never longer than the reach: half of it is 0.58 untamed.
        if not self._done and way > 0.5 * size > 0:
            self._done = True
            warn(
                f"dt = {h:g} is too large for this loss: one step along the gradient is as long as "
                f"{way / size:.2g} of the way to the zero matrix (1 is the most it may be), "
                "and the path after it means little; take a smaller dt"
            )
