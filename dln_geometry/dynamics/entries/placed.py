"""Observed entries with their values, and the choice between the two ways to compute with them."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from dln_geometry.dynamics.entries.pattern import Pattern
from dln_geometry.dynamics.entries.tiles import Tiles, is_compiled


class PlacedEntries:
    """Values and weights on the pattern of a batch of matrices, which stand below one another.

    ``values`` are (k,) for all matrices or (blocks, k), ``weights`` (k,) or None; the factors are
    ``left`` (blocks m, r) and ``right`` (blocks n, r). `pattern` is that of the places, if there is
    one already.
    """

    def __init__(
        self,
        rows: Tensor,
        cols: Tensor,
        shape: tuple[int, int],
        values: Tensor,
        weights: Tensor | None = None,
        blocks: int = 1,
        pattern: Pattern | None = None,
    ) -> None:
        self.pattern = pattern or Pattern(rows, cols, shape, blocks)
        self.values, self.weights = values, weights

    @cached_property
    def _target(self) -> Tensor:
        """The values as a row-compressed matrix."""
        return self.pattern.matrix(self.values.expand(self.pattern.blocks, -1).reshape(-1))

    @cached_property
    def _ordered(self) -> tuple[Tiles, Tensor, Tensor | None]:
        """The tiles, and the data in their order."""
        tiles = self.pattern.tiles
        weights = None if self.weights is None else tiles.ordered(self.weights)
        return tiles, tiles.ordered(self.values), weights

    def is_compiled(self, left: Tensor, right: Tensor) -> bool:
        """Whether `contract` takes these factors."""
        return is_compiled(self.pattern.work(left), left, right, self.values, self.weights)

    def contract(
        self, left: Tensor, right: Tensor, shifts: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return ``(E (blocks,), G R, G^T L)`` of half the weighted squares, if one pass can.

        `shifts` (blocks m,) of the rows and (blocks n,) of the columns are added to X.
        """
        if not self.is_compiled(left, right):
            return None
        tiles, values, weights = self._ordered
        return tiles.contract(values, weights, left, right, shifts)

    def sums(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted residuals summed over rows (blocks m,) and columns (blocks n,)."""
        tiles, values, weights = self._ordered
        return tiles.sums(values, weights, left, right)

    def residual(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left right^T - values`` on the pattern, shape (blocks k,)."""
        if is_compiled(self.pattern.work(left), left, right, self.values):
            tiles, values, _ = self._ordered
            return tiles.residual(values, left, right)
        return self.pattern.residual(self._target, left, right)

    def products(self, slopes: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(S right, S^T left)`` for the matrix S with these entries."""
        return self.pattern.products(slopes, left, right)
