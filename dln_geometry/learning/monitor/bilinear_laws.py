r"""The exact motion of charges that are bilinear in the parameters.

Let ``B(x, y)`` be bilinear with ``B(y, x) = B(x, y)^T`` and ``B(q, g) = 0``:
that is the symmetry, for the loss of each batch. For scale B is the product ``<x, y>`` of the
slices of a unit, for rescale the difference of those of the two sides, for the gauge of
``W_2 W_1`` the matrix ``y_1 x_1^T - x_2^T y_2``. With ``C = B(q, q)`` and ``R = B(q, v)``,

``P := B(q, v+) = b R + s k C``,  ``B(q, u) = P`` (Nesterov: ``k C + b P``; no momentum: ``k C``),
``C+ = C - eta (B(q, u) + B(q, u)^T) + eta^2 B(u, u)``,  ``R+ = B(q+, v+) = P - eta B(u, v+)``.

Nothing else is needed: the first line uses the symmetry, the others are the step itself. On the
right stand products of the buffers alone. Heavy ball needs ``B(v+, v+)``; otherwise, with
``B(d, d) = B(g, g) + k^2 C`` and ``X := B(d, v) = B(g, v) + k R``,

``B(v+, v+) = b^2 B(v, v) + b (X + X^T) + B(d, d)``,  ``B(d, v+) = b X + B(d, d)``,
``B(u, v+) = B(d, v+) + b B(v+, v+)``,
``B(u, u) = B(d, d) + b (B(d, v+) + B(d, v+)^T) + b^2 B(v+, v+)``.

Where B is a number, ``2 B(d, v+) = B(v+, v+) + B(d, d) - b^2 B(v, v)`` saves the product of two
different tensors.

*Several learning rates.* If the parts j of a group have their own ``eta_j`` and ``k_j``, the
symmetry binds their sum alone, and ``C = sum_j (eta_1 / eta_j) B_j(q, q)`` has the law

``C+ = C - eta_1 (B(q, u) + B(q, u)^T) + eta_1 sum_j eta_j B_j(u, u)``,
``R+ = P - sum_j eta_j B_j(u, v+)``,  ``P = b R + s sum_j k_j B_j(q, q)``.

The last sum is ``k_1 C`` where ``eta_j k_j`` is the same for all; otherwise the squares of the
smaller parts are measured. Momentum must be common.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dln_geometry.learning.architecture import SymmetricGroup
from dln_geometry.learning.monitor.laws import Law
from dln_geometry.learning.monitor.products import Snapshot, StepOptions

__all__ = ["BilinearLaw", "weighted"]


class BilinearLaw(Law):
    """Charges ``B(q, q)`` with the law of this module's text; parameters as of `Law`."""

    def __init__(self, groups: Sequence[SymmetricGroup], slots: Sequence[tuple[str, ...]]) -> None:
        super().__init__(groups, slots)
        self._pending: tuple[Any, ...] | None = None

    @abstractmethod
    def pairs(self, snapshot: Snapshot, first: str, second: str) -> Tensor:
        """Return ``B_j(first, second)`` for every slot, shape (slots, ...)."""

    def transposed(self, x: Tensor) -> Tensor:
        """Return the transposes of matrices; numbers are their own."""
        return x

    def measured(self, snapshot: Snapshot) -> Tensor:
        pairs = self.pairs(snapshot, "q", "q")
        return weighted(pairs, self._weights)

    def begin(self, snapshot: Snapshot) -> None:
        self._pending = None
        super().begin(snapshot)

    def load(self, state: Mapping[str, Any]) -> None:
        self._pending = None
        super().load(state)

    def before(self, snapshot: Snapshot, held: frozenset[str], fresh: frozenset[str]) -> None:
        options = self._options(snapshot.options)
        first = options[0]
        ratios = self._ratios(options)
        if ratios != self._weights:
            # Another charge: momenta go on, but this one must be looked at.
            self._weights = ratios
            self.charges = self.measured(snapshot)
        c = self.charges
        assert c is not None
        decay = self._decay(snapshot, options, c)
        b = first.momentum
        if not b:
            w = self._mixed_squares(snapshot, options, c, decay)
            self.momenta = self.velocities = None
            self._moved(held, c - first.lr * (2 * decay - w), None, None)
            return
        if self.momenta is None:
            self.momenta = self.pairs(snapshot, "q", "v").sum(0)
        s: Any = 1 - first.dampening
        if first.dampening and not fresh.isdisjoint(self.names):
            s = s + (1 - s) * self.mask(fresh).to(c.dtype)
        # Momenta are only read here: in place.
        p = self.momenta.mul(b)
        p = p.add_(decay, alpha=s) if isinstance(s, float | int) else p + s * decay
        if not first.nesterov:
            self._pending = (options, p, held)
            return
        self._nesterov(snapshot, options, p, decay, held)

    def after(self, snapshot: Snapshot) -> None:
        if self._pending is None:
            return
        options, p, held = self._pending
        self._pending = None
        assert self.charges is not None
        w = weighted(self.pairs(snapshot, "v", "v"), [o.lr for o in options])
        c = self.charges + options[0].lr * (w - p - self.transposed(p))
        self._moved(held, c, p - w, None)

    def _nesterov(
        self,
        snapshot: Snapshot,
        options: Sequence[StepOptions],
        p: Tensor,
        decay: Tensor,
        held: frozenset[str],
    ) -> None:
        first, rates = options[0], [o.lr for o in options]
        c, r, b = self.charges, self.momenta, first.momentum
        assert c is not None
        assert r is not None
        if self.velocities is None:
            self.velocities = self.pairs(snapshot, "v", "v")
        if len(options) == 1:
            k = first.weight_decay
            dd = self.pairs(snapshot, "g", "g")
            dv = self.pairs(snapshot, "g", "v")
            if k:
                dd, dv = dd + k * k * c, dv + k * r
        else:
            dd, dv = self.pairs(snapshot, "d", "d"), self.pairs(snapshot, "d", "v")
        vv = b * b * self.velocities + b * (dv + self.transposed(dv)) + dd
        d_after = b * dv + dd
        uv = d_after + b * vv
        uu = dd + b * (d_after + self.transposed(d_after)) + b * b * vv
        qu = decay + b * p
        c = c - first.lr * (qu + self.transposed(qu) - weighted(uu, rates))
        self._moved(held, c, p - weighted(uv, rates), vv)

    def _decay(self, snapshot: Snapshot, options: Sequence[StepOptions], c: Tensor) -> Tensor:
        """Return ``sum_j k_j B_j(q, q)``."""
        first = options[0]
        if len(options) == 1:
            return first.weight_decay * c
        excess = [
            o.weight_decay - first.weight_decay * w
            for o, w in zip(options, self._weights, strict=True)
        ]
        if not any(excess):
            return first.weight_decay * c
        return first.weight_decay * c + weighted(self.pairs(snapshot, "q", "q"), excess)

    def _mixed_squares(
        self, snapshot: Snapshot, options: Sequence[StepOptions], c: Tensor, decay: Tensor
    ) -> Tensor:
        """Return ``sum_j eta_j B_j(d, d)``."""
        rates = [o.lr for o in options]
        if len(options) > 1 and any(o.weight_decay for o in options):
            return weighted(self.pairs(snapshot, "d", "d"), rates)
        squares = weighted(self.pairs(snapshot, "g", "g"), rates)
        k = options[0].weight_decay
        return squares + (rates[0] * k) * decay if k else squares


def weighted(values: Tensor, weights: Sequence[Any]) -> Tensor:
    """Return ``sum_j weights_j values_j``."""
    if len(weights) == 1:
        return (
            values[0]
            if isinstance(weights[0], float) and weights[0] == 1.0
            else weights[0] * values[0]
        )
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total
