r"""Charges ``C = B(q, q)`` that are bilinear in the parameters, and the gauges of linear maps.

They move by the law of `learning.noether.momentum_law`, with ``R = B(q, v)``. Heavy ball needs
``B(v+, v+)``. Otherwise, with ``B(d, d) = B(g, g) + k^2 C`` and ``X = B(d, v) = B(g, v) + k R``,

``B(d, v+) = b X + B(d, d)``,  ``B(v+, v+) = b^2 B(v, v) + b X^T + B(d, v+)``.

*Several learning rates.* If the parts j of a group have their own ``eta_j`` and ``k_j``, the
symmetry binds their sum alone, and ``C = sum_j (eta_1 / eta_j) B_j(q, q)`` has the law

``C+ = C - eta_1 (B(q, u) + B(q, u)^T) + eta_1 sum_j eta_j B_j(u, u)``,
``R+ = P - sum_j eta_j B_j(u, v+)``,  ``P = b R + s sum_j k_j B_j(q, q)``.

The last sum is ``k_1 C`` where ``eta_j k_j`` is the same for all; otherwise the squares of the
smaller parts are measured. Momentum must be common.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture import SymmetricGroup
from dln_geometry.learning.monitor.laws import Law
from dln_geometry.learning.monitor.products import Snapshot, StepOptions, wide_dtype
from dln_geometry.learning.noether import charge_after, nesterov_products, pushes


class BilinearLaw(Law):
    """Charges ``B(q, q)``, by the formulas above."""

    # A step between `before` and `after`: its options, P, and the parameters held.
    _pending: tuple[list[StepOptions], Tensor, frozenset[str]] | None = None

    @abstractmethod
    def pairs(self, snapshot: Snapshot, first: str, second: str) -> Tensor:
        """Return ``B_j(first, second)`` for every slot, shape (slots, ...)."""

    def transposed(self, x: Tensor) -> Tensor:
        """Return the transposes of matrices; numbers are their own."""
        return x

    def measured(self, snapshot: Snapshot) -> Tensor:
        return weighted(self.pairs(snapshot, "q", "q"), self.ratios)

    def forget(self) -> None:
        self._pending = None

    def before(self, snapshot: Snapshot, held: frozenset[str], fresh: frozenset[str]) -> None:
        options = self.options_of(snapshot.options)
        ratios = self.rate_ratios(options)
        if ratios != self.ratios:
            # The charge is another one now and must be measured; momenta stay the same.
            self.ratios = ratios
            self.charges = self.measured(snapshot)
        c, first = self.charges, options[0]
        assert c is not None
        decay = self._decay(snapshot, options, c)
        b = first.momentum
        if not b:
            squares = self._mixed_squares(snapshot, options, decay)
            self.move(held, charge_after(c, decay, decay, squares, first.lr))
            return
        r = self.pairs(snapshot, "q", "v").sum(0) if self.momenta is None else self.momenta
        self.momenta = r
        p, push = pushes(self.damped(decay, first.dampening, fresh), r, b, first.nesterov)
        if not first.nesterov:
            self._pending = options, p, held
            return
        dd, dv, vv = self._products(snapshot, options, c, r)
        uu, uv = nesterov_products(dd, dv, vv, b, self.transposed)
        rates = [o.lr for o in options]
        c = charge_after(c, push, self.transposed(push), weighted(uu, rates), first.lr)
        self.move(held, c, p - weighted(uv, rates), vv)

    def after(self, snapshot: Snapshot) -> None:
        if self._pending is None:
            return
        options, p, held = self._pending
        self._pending = None
        assert self.charges is not None
        w = weighted(self.pairs(snapshot, "v", "v"), [o.lr for o in options])
        c = charge_after(self.charges, p, self.transposed(p), w, options[0].lr)
        self.move(held, c, p - w)

    def _products(
        self, snapshot: Snapshot, options: Sequence[StepOptions], c: Tensor, r: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``B(d, d)``, ``B(d, v+)`` and ``B(v+, v+)`` of Nesterov's momentum."""
        k, b = options[0].weight_decay, options[0].momentum
        old = self.pairs(snapshot, "v", "v") if self.velocities is None else self.velocities
        self.velocities = old
        if len(options) > 1:
            dd, x = self.pairs(snapshot, "d", "d"), self.pairs(snapshot, "d", "v")
        else:
            dd, x = self.pairs(snapshot, "g", "g"), self.pairs(snapshot, "g", "v")
            if k:
                dd, x = dd + k * k * c, x + k * r
        dv = b * x + dd
        return dd, dv, b * (b * old + self.transposed(x)) + dv

    def _decay(self, snapshot: Snapshot, options: Sequence[StepOptions], c: Tensor) -> Tensor:
        """Return ``sum_j k_j B_j(q, q)``."""
        k = options[0].weight_decay
        excess = [o.weight_decay - k * w for o, w in zip(options, self.ratios, strict=True)]
        if not any(excess):
            return k * c
        return k * c + weighted(self.pairs(snapshot, "q", "q"), excess)

    def _mixed_squares(
        self, snapshot: Snapshot, options: Sequence[StepOptions], decay: Tensor
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
    if len(weights) == 1 and isinstance(weights[0], float) and weights[0] == 1.0:
        return values[0]
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total


class GaugeLaw(BilinearLaw):
    """The gauge of consecutive linear maps: a symmetric matrix for each unit of one group."""

    def __init__(
        self, group: SymmetricGroup, slots: Sequence[tuple[str, ...]], device: torch.device
    ) -> None:
        d = group.first[0].block
        self._shape = group.units, d, d
        owner = torch.zeros(group.units * d * d, dtype=torch.long, device=device)
        super().__init__((group,), slots, owner, owner[:1])

    def pairs(self, snapshot: Snapshot, first: str, second: str) -> Tensor:
        (group,) = self.groups
        x, y = snapshot.tensors(first), snapshot.tensors(second)
        device, dtype = self.owner.device, wide_dtype(self.owner.device)
        values: list[Any] = [torch.zeros(self._shape, dtype=dtype, device=device)] * len(self.slots)
        for part in group.parts:
            a, b = x.get(part.name), y.get(part.name)
            if a is None or b is None:
                continue
            left, right = part.slices(a), part.slices(b)
            product = right @ left.mT if part in group.first else -(left @ right.mT)
            slot = self.slot_of[part.name]
            values[slot] = values[slot] + product.to(wide_dtype(product.device))
        return torch.stack(values)

    def transposed(self, x: Tensor) -> Tensor:
        return x.mT

    def summary(self, charges: Tensor) -> Tensor:
        """Return the trace: the charge of the scalings in the gauge."""
        return charges.diagonal(dim1=-2, dim2=-1).sum().reshape(1)

    def sizes(self, snapshot: Snapshot) -> Tensor:
        q = snapshot.tensors("q")
        total: Any = 0.0
        for part in self.groups[0].parts:
            x: Any = q[part.name]
            wide = part.slices(x).to(wide_dtype(x.device))
            total = total + self.ratios[self.slot_of[part.name]] * wide.square().sum((1, 2))
        return total[:, None, None].expand(self._shape)
