"""The engine of a flow whose rows lie on several processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor

from dln_geometry.dynamics.engines import (
    CoreEngine,
    Engine,
    PairEngine,
    PlainEngine,
    ProductEngine,
)
from dln_geometry.dynamics.sharded.layout import SharedNorms
from dln_geometry.dynamics.sharded.points import cut_point, point_by_rows
from dln_geometry.dynamics.sharded.ranks import Ranks
from dln_geometry.geometry.points import Collapsed, EndToEnd


class ShardedEngine(Engine):
    """Run an engine on the rows of L and R that this process holds.

    Velocities are the engine's own, with sums over processes. What else is asked of a thin matrix
    is the same for its triangular factor, which every process has: singular values, invariants.
    """

    jacobian: Any = None

    def __init__(self, local: Any, shape: tuple[int, int], ranks: Ranks) -> None:
        self._local, self.shape = local, shape
        super().__init__(local.shapes, local.batch, local.depth, local.is_complex)
        self.ranks = local.ranks = ranks
        (m, n), (_, r) = shape, local.shapes[0]
        counts: list[int | None] = [m, n]
        if isinstance(local, PlainEngine):
            counts = [m]
        elif isinstance(local, CoreEngine):
            counts = [None]
        elif isinstance(local, ProductEngine):
            counts = [m, None, n]
        number = 2 if local.is_complex else 1
        widths = [r * number if count is not None else r * r * number for count in counts]
        self.norms, self._rank = SharedNorms(counts, widths, ranks), r

    @property
    def decay(self) -> Tensor | None:
        """The factor of the decay, which the engine of the own rows applies."""
        return self._local.decay

    @decay.setter
    def decay(self, value: Tensor | None) -> None:
        self._local.decay = value

    @property
    def blocks(self) -> SharedNorms:
        return self.norms

    @property
    def is_steady(self) -> bool:
        """Never: a repetition of the calls of this process would leave out the messages."""
        return False

    @property
    def kind(self) -> str:
        """The name of the engine of the own rows."""
        return type(self._local).__name__

    def rows(self) -> Tensor:
        return self._local.rows()

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        return self._local.field(t, y, out)

    def numbers_of_matrix(self) -> int:
        return self.shape[0] * self.shape[1]

    def narrowed(self, samples: Tensor) -> None:
        return None

    @cached_property
    def _reader(self) -> Any:
        """The engine that reads triangular factors."""
        square = [(self._rank, self._rank)] * len(self.shapes)
        parts = {name: getattr(self._local, name) for name in self._local.reads}
        facts = self.batch, self.depth, None, parts, self.is_complex
        reader = type(self._local).blank(square, *facts)
        if isinstance(reader, ProductEngine):
            reader.terms = self._local.terms
        return reader

    @property
    def _is_wide(self) -> bool:
        """Whether the state is X itself, which is read as a whole."""
        return isinstance(self._local, PlainEngine)

    def _short(self, y: Tensor) -> tuple[Tensor, list[Callable[[Tensor], Tensor]]]:
        """Return rows of triangular factors, and what makes own rows of their images."""
        short, turns = [], []
        for count, x in zip(self.norms.counts, self.split(y), strict=True):
            t, turn = (x, _same) if count is None else self.ranks.triangle(x)
            short.append(t)
            turns.append(turn)
        return self.join(*short), turns

    def singular_values(self, y: Tensor) -> Tensor:
        if self._is_wide:
            return self._twin.singular_values(self.norms.whole(y))
        return self._reader.singular_values(self._short(y)[0])

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        if self._is_wide or isinstance(self._local, CoreEngine):
            return super().defect(y, obs)
        return self._reader.defect(self._short(y)[0], obs)

    def rebalanced(self, y: Tensor) -> Tensor:
        if self._is_wide or isinstance(self._local, CoreEngine):
            return y
        short, turns = self._short(y)
        new = self._reader.split(self._reader.rebalanced(short))
        return self.join(*(turn(x) for turn, x in zip(turns, new, strict=True)))

    def point(self, y: Tensor) -> Collapsed:
        m, n = self.shape
        if self._is_wide:
            return cut_point(Collapsed.of(self._twin.point(self.norms.whole(y))), self.ranks)
        if not isinstance(self._local, PairEngine):
            own = self._local.point(y)
            return point_by_rows(own.L, own.R, own, (m, n), self.ranks)
        short, (turn_left, turn_right) = self._short(y)
        point = self._reader.point(short)
        small = Collapsed.of(point) if isinstance(point, EndToEnd) else point
        return point_by_rows(turn_left(small.L), turn_right(small.R), small, (m, n), self.ranks)

    @cached_property
    def _twin(self) -> Any:
        """The engine of whole states: only square matrices of full rank, or X itself, need it."""
        whole = self.norms.whole(self.rows())
        (m, n), r = self.shape, self._rank
        shapes = [(m, n)] if self._is_wide else [(m, r), *self.shapes[1:-1], (n, r)]
        parts = {name: getattr(self._local, name) for name in self._local.reads}
        twin = type(self._local).blank(shapes, self.batch, self.depth, None, parts, self.is_complex)
        twin._first = whole
        return twin

    @property
    def outside(self) -> Callable[[Tensor], Tensor] | None:
        if isinstance(self._local, CoreEngine):
            return self._local.outside
        square = self.shape == (self._rank, self._rank)
        if self._is_wide or not square or not self._twin.keeps_side:
            return None
        outside: Any = self._twin.outside
        return lambda rows: outside(self.norms.whole(rows))

    def restored(self, y: Tensor, y_new: Tensor) -> Tensor:
        if isinstance(self._local, CoreEngine):
            return self._local.restored(y, y_new)
        return self.norms.own(self._twin.restored(self.norms.whole(y), self.norms.whole(y_new)))


def _same(x: Tensor) -> Tensor:
    return x
