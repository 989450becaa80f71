"""The base class of engines on the two matrices of a `Collapsed`, or three."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.engines.engine import Engine, Pairing, Shapes
from dln_geometry.dynamics.engines.terms import (
    balanced_pair,
    observables,
    orientation,
    squares,
    turned_back,
)
from dln_geometry.dynamics.losses import Loss
from dln_geometry.geometry.kernel import small_svd
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import on_device, real_product


class CollapsedEngine(Engine):
    """A balanced network as two matrices, those of a `Collapsed`, or as other `shapes`."""

    reads = ("start",)

    def __init__(self, loss: Loss, start: Collapsed, watch: bool, shapes: Shapes = ()) -> None:
        (m, n), r = start.shape, start.rank
        shapes, is_complex = shapes or ((m, r), (n, r)), start.L.is_complex()
        super().__init__(shapes, start.batch_shape, start.depth, is_complex)
        self.loss, self.start, self.watch = loss, start, watch

    def rows(self) -> Tensor:
        return self.join(self.start.L, self.start.R)

    def finished(
        self, y: Tensor, out: Tensor, value: Tensor, squared: Tensor | None, pairing: Pairing
    ) -> Tensor:
        """Add the decay to the velocity, and return the columns of `field`.

        `squared` is ``|grad E|^2``, if watched; `pairing` two matrices whose inner product is
        ``<E'(X), X>``. With ``P = sum |W_p|^2 / 2`` the decay makes it
        ``|grad E|^2 + 2 k N <E', X> + 2 k^2 P``.
        """
        self.decayed(y, out)
        if self.decay is None or squared is None:
            return observables(value, squared)
        a, b = pairing
        k = self.decay.view(squared.shape)
        slope = self.depth.unit(True) * self.total(real_product(a, b).sum((-2, -1)))
        size = self.norm_squared(y).view(squared.shape)
        return observables(value, squared + 2.0 * k * slope + k.square() * size)

    def norm_squared(self, y: Tensor) -> Tensor:
        """Return ``sum |W_p|^2`` of rows (b, n), shape (b,)."""
        return self.depth * self.total(squares(self.split(y)[0]))

    def pair(self, y: Tensor) -> Collapsed:
        """Return the two matrices of rows (b, n)."""
        left, right = self.split(y)
        return self.start.replace(L=left, R=right, check=False)

    def singular_values(self, y: Tensor) -> Tensor:
        return self.pair(y).singular_values

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        return self.pair(y).defect()

    def point(self, y: Tensor) -> Any:
        return self.pair(y)

    def decomposed(self, y: Tensor) -> EndToEnd:
        """Return the singular value decomposition of what the rows (b, n) hold."""
        return self.pair(y).point()

    def rows_of(self, point: EndToEnd) -> Tensor:
        """Return balanced rows (b, n)."""
        pair = Collapsed.of(point)
        return self.join(pair.L, pair.R)

    def rebalanced(self, y: Tensor) -> Tensor:
        return self.rows_of(self.decomposed(y))

    @property
    def keeps_side(self) -> bool:
        """From depth 2 on; real matrices of lower rank, and complex ones, pass a rank drop by."""
        square = all(a == b for a, b in self.shapes)
        return self.depth >= 2.0 and not self.is_complex and square

    def _balanced_rows(self, y: Tensor) -> Tensor:
        return self.join(*balanced_pair(*self.split(y)))

    def shift(self, y: Tensor, y_new: Tensor) -> Tensor:
        if not self._is_rebalanced:
            return super().shift(y, y_new)

        def between(old: Tensor) -> Tensor:
            # Common turns of the columns of a pair move nothing.
            a, b = self.split(old), self.split(y_new)
            overlap = b[0].mH @ a[0] + b[1].mH @ a[1]
            # Of a trial step that overflowed both are infinite, and decompositions refuse that.
            whole = torch.isfinite(overlap).all(-1, keepdim=True).all(-2, keepdim=True)
            u, _, vh = small_svd(torch.where(whole, overlap, torch.zeros_like(overlap)))
            return self.join(b[0] @ (u @ vh), b[1] @ (u @ vh))

        return super().shift(y, between(y))

    @property
    def _is_rebalanced(self) -> bool:
        """Whether `restored` balances a pair at every step."""
        return self.depth == 2.0 and len(self.shapes) == 2

    def restored(self, y: Tensor, y_new: Tensor) -> Tensor:
        """Return `y_new`, its smallest singular value turned back where it crossed zero.

        Nothing else moves: a change of X, however small, the next stiff step has to undo. Only at
        depth 2 the pair is balanced anew: there the smallest value decays below the rounding of
        either matrix, and its two sides would be lost apart.
        """
        pair = self._is_rebalanced
        if self.is_complex:
            # A generic path of complex matrices passes rank drops by: they have codimension 2.
            return self.finite(self._balanced_rows, y, y_new) if pair else y_new

        def change(rows: Tensor) -> Tensor:
            before, new = self.split(y), self.split(rows)
            if pair:
                new = balanced_pair(*new)
            # A value below rounding has no sign to compare: square matrices keep that of the start.
            # All are compared with one state: the columns of a pair turn from step to step.
            first = self.split(self.rows() if self._first is None else self._first)
            pairs = zip(first if all(a == b for a, b in self.shapes) else before, new, strict=True)
            side = math.prod((orientation(a, b) for a, b in pairs), start=torch.ones(()))
            if pair:
                # The columns of a balanced pair are orthogonal; the last ones are the smallest.
                turn = torch.where(side < 0, -1.0, 1.0).unsqueeze(-1)
                left = torch.cat((new[0][..., :-1], turn.unsqueeze(-1) * new[0][..., -1:]), -1)
                return self.join(left, new[1])
            if not on_device(rows) and bool((side > 0).all()):
                return rows
            turned = self.join(turned_back(new[0]), *new[1:])
            return torch.where((side < 0).unsqueeze(-1), turned, rows)

        return self.finite(change, y, y_new)
