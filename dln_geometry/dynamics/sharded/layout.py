"""The rows of numbers of a run on several processes: their norms, places and wholes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.sharded.ranks import Ranks
from dln_geometry.dynamics.sharded.rows import rows_of
from dln_geometry.ode import BlockNorms, fetch


class SharedNorms(BlockNorms):
    """Norms of states (B, n) that are matrices by their rows, or the same in every process.

    `counts` are the rows of every matrix, None for one that all processes have, `widths` the
    numbers of a row or of the whole of such a matrix.
    """

    is_shared = True

    def __init__(self, counts: Sequence[int | None], widths: Sequence[int], ranks: Ranks) -> None:
        self.ranks, self.counts, self.widths = ranks, tuple(counts), tuple(widths)
        super().__init__(self.sizes_of(ranks.rank), together=False)

    def sizes_of(self, rank: int) -> list[int]:
        """Return the numbers that a process holds of every matrix."""
        parts = []
        for count, width in zip(self.counts, self.widths, strict=True):
            first, last = (0, 1) if count is None else rows_of(count, self.ranks.count, rank)
            parts.append((last - first) * width)
        return parts

    def _counted(self, block: int) -> bool:
        """Tell whether this process counts a block: of what all have, the first does."""
        return self.ranks.rank == 0 or self.counts[block] is not None

    def lengths(self, x: Tensor) -> Tensor:
        squares = x.new_zeros(len(x), dtype=torch.float64)
        for block, view in enumerate(self.views(x)):
            if self._counted(block):
                squares += torch.linalg.vector_norm(view, dim=(-2, -1)).double().square()
        return self.ranks.summed(squares)[0].sqrt().to(x.dtype)

    def places(self, x: Tensor) -> Tensor:
        parts, start = [], 1
        for count, width in zip(self.counts, self.widths, strict=True):
            whole = 1 if count is None else count
            first, last = (
                (0, 1) if count is None else rows_of(count, self.ranks.count, self.ranks.rank)
            )
            parts.append(torch.arange(start + first * width, start + last * width))
            start += whole * width
        return torch.cat(parts).to(x.device, torch.float64)

    def fetch(self, pieces: list[Tensor], count: int | None = None) -> np.ndarray:
        parts, count = [], len(pieces) if count is None else count
        for k, piece in enumerate(pieces):
            wide = piece.reshape(-1).double()
            own = self._counted(k % self.count) if k < count else self.ranks.rank == 0
            wide = wide.square() if k < count else wide
            parts.append(wide if own else torch.zeros_like(wide))
        (flat,) = self.ranks.summed(torch.cat(parts))
        at = sum(piece.numel() for piece in pieces[:count])
        return fetch([flat[:at].sqrt(), flat[at:]])

    def agreed(self, *numbers: float) -> tuple[float, ...]:
        return self.ranks.agreed(*numbers)

    def whole(self, y: Tensor) -> Tensor:
        """Return whole states (B, n), of rows (B, n_p), in every process."""
        parts = []
        for count, width, part in zip(self.counts, self.widths, self._parts(y), strict=True):
            if count is not None:
                rows = part.unflatten(-1, (part.shape[-1] // width, width))
                part = self.ranks.gathered(rows, count, "whole")
                part = part.flatten(-2).clone()
            parts.append(part)
        return torch.cat(parts, dim=1)

    def own(self, whole: Tensor, rank: int | None = None) -> Tensor:
        """Return the rows (B, n_p) of a process, of whole states (B, n)."""
        parts, at = [], 0
        rank = self.ranks.rank if rank is None else rank
        for count, width in zip(self.counts, self.widths, strict=True):
            first, last = (0, 1) if count is None else rows_of(count, self.ranks.count, rank)
            parts.append(whole[:, at + first * width : at + last * width])
            at += (1 if count is None else count) * width
        return torch.cat(parts, dim=1)

    def to_first(self, y: Tensor) -> Tensor | None:
        """Return whole states (B, n) on the CPU, of rows (B, n_p), in the first process alone."""
        sizes = [self.sizes_of(k) for k in range(self.ranks.count)]
        found = self.ranks.to_first(y, [sum(s) for s in sizes])
        if not found:
            return None
        parts = [x.split(s, dim=1) for x, s in zip(found, sizes, strict=True)]
        return torch.cat(
            [
                parts[0][k] if count is None else torch.cat([p[k] for p in parts], dim=1)
                for k, count in enumerate(self.counts)
            ],
            dim=1,
        )

    def from_first(self, whole: Tensor | None, like: Tensor) -> Tensor:
        """Return the own rows (B, n_p), like these, of whole states that the first process has."""
        ranks = range(self.ranks.count)
        parts = [] if whole is None else [self.own(whole, k) for k in ranks]
        return self.ranks.from_first(parts, like)

    def _parts(self, y: Tensor) -> Sequence[Tensor]:
        return y.split(self.sizes_of(self.ranks.rank), dim=1)
