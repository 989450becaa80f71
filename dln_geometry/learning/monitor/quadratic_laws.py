"""The laws of scales and rescalings: one number for each unit, and steps that are collected."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dln_geometry.learning.architecture import SymmetricGroup
from dln_geometry.learning.monitor.bilinear_laws import BilinearLaw, weighted
from dln_geometry.learning.monitor.products import Products, Snapshot, StepOptions
from dln_geometry.learning.noether import charge_after, nesterov_products, pushes

# Number of steps collected before the prediction is updated: the sums of each are kept.
_PATIENCE = 32


@lru_cache(maxsize=256)
def step_matrix(options: StepOptions) -> np.ndarray:
    """Return the coefficients of one step of numbers ``(C, R, V)``, shape (3, 5).

    ``V = B(v, v)``. Columns are C, R, V and the sums of the step: ``B(v+, v+)`` for heavy ball,
    ``B(g, g)`` without momentum, ``B(g, g)`` and ``B(v+, v+)`` with Nesterov's momentum. There
    ``2 B(d, v+) = B(v+, v+) + B(d, d) - b^2 V``: squares are much cheaper to sum than products.
    """
    lr, b, k = options.lr, options.momentum, options.weight_decay
    c, r, v, x, y = np.eye(5)
    share = 1 - options.dampening if b else 1.0
    p, push = pushes(share * k * c, r, b, options.nesterov)
    dd, after = x + k**2 * c, 0 * v
    if options.nesterov:
        after = y
        uu, uv = nesterov_products(dd, (y + dd - b**2 * v) / 2, y, b, lambda z: z)
    else:
        uu, uv = (x, x) if b else (dd, 0 * x)
    return np.array([charge_after(c, push, push, lr * uu, lr), p - lr * uv, after])


class QuadraticLaw(BilinearLaw):
    """Scales and rescalings: one number for each unit of each group.

    Parameters
    ----------
    groups, slots
        As of `Law`.
    products : Products
        Where the sums of products are.
    """

    def __init__(
        self,
        groups: Sequence[SymmetricGroup],
        slots: Sequence[tuple[str, ...]],
        products: Products,
    ) -> None:
        device = products.device
        counts = torch.tensor([g.units for g in groups])
        owner = torch.arange(len(groups)).repeat_interleave(counts).to(device)
        super().__init__(groups, slots, owner)
        self._noted: list[tuple[np.ndarray, tuple[Tensor, ...]]] = []
        self._awaited: tuple[np.ndarray, tuple[Tensor, ...]] | None = None
        # How many of C, R, V the rule of the steps that are noted needs.
        self._width = 0
        source, target, sign = [], [], []
        start, units = 0, len(owner)
        for group in groups:
            unit = torch.arange(start, start + group.units)[:, None]
            start += group.units
            for side, parts in ((1.0, group.first), (-1.0, group.second)):
                for part in parts:
                    places = products.indices(part)
                    source.append(places.reshape(-1))
                    into = unit + self.slot_of[part.name] * units
                    target.append(into.expand(places.shape).reshape(-1))
                    sign.append(torch.full((places.numel(),), side))
        self._source = torch.cat(source).to(device)
        self._target = torch.cat(target).to(device)
        signs = torch.cat(sign).to(device=device, dtype=products.dtype)
        self._sign = signs if any(group.second for group in groups) else None
        self._zero = torch.zeros(len(slots) * units, dtype=products.dtype, device=device)

    def before(self, snapshot: Snapshot, held: frozenset[str], fresh: frozenset[str]) -> None:
        (o, *others) = self.options_of(snapshot.options)
        width = 3 if o.nesterov else 2 if o.momentum else 1
        stirred = not (held.isdisjoint(self.slot_of) and fresh.isdisjoint(self.slot_of))
        if width != self._width:
            self.settle()
        if others or stirred or isinstance(o.lr, Tensor):
            self.settle()
            self._width = 0
            super().before(snapshot, held, fresh)
            return
        self._width = width
        if width == 1:
            self._noted.append((step_matrix(o), (snapshot.sums("g", "g"),)))
            return
        if self.momenta is None:
            self.momenta = self.pairs(snapshot, "q", "v").sum(0)
        if o.nesterov and self.velocities is None:
            self.velocities = self.pairs(snapshot, "v", "v")
        # The step may overwrite the gradients: they are summed now, the buffers afterwards.
        self._awaited = step_matrix(o), (snapshot.sums("g", "g"),) if o.nesterov else ()

    def after(self, snapshot: Snapshot) -> None:
        if self._awaited is not None:
            matrix, sums = self._awaited
            self._noted.append((matrix, (*sums, snapshot.sums("v", "v"))))
            self._awaited = None
        if len(self._noted) >= _PATIENCE:
            self.settle()
        super().after(snapshot)

    def settle(self) -> None:
        if not self._noted:
            return
        # From the last step to the first: all later steps act on what a step adds.
        later = np.eye(3)
        weights: list[np.ndarray] = []
        sums: list[Tensor] = []
        for matrix, added in reversed(self._noted):
            for column, value in enumerate(added, start=3):
                weights.append(later @ matrix[:, column])
                sums.append(value)
            later = later @ matrix[:, :3]
        self._noted.clear()
        velocities = None if self.velocities is None else self.velocities[0]
        state = [self.charges, self.momenta, velocities]
        new: list[Tensor | None] = []
        for i in range(self._width):
            # Scalars as arguments: nothing is sent to the device.
            scaled = torch._foreach_mul(sums, [float(w[i]) for w in weights])
            total = self._gathered(torch.stack(scaled).sum(0), self._sign)[0]
            for j, old in enumerate(state):
                if old is not None and later[i, j]:
                    total = total.add(old, alpha=float(later[i, j]))
            new.append(total)
        self.charges, self.momenta, velocities = (*new, None, None)[:3]
        self.velocities = None if velocities is None else velocities[None]

    def forget(self) -> None:
        self._noted.clear()
        self._awaited = None
        super().forget()

    def pairs(self, snapshot: Snapshot, first: str, second: str) -> Tensor:
        return self._gathered(snapshot.sums(first, second), self._sign)

    def _gathered(self, sums: Tensor, sign: Tensor | None) -> Tensor:
        """Return the sums of each unit in each slot, with their signs."""
        picked = sums[self._source]
        if sign is not None:
            picked *= sign
        return self._zero.index_add(0, self._target, picked).reshape(len(self.slots), -1)

    def sizes(self, snapshot: Snapshot) -> Tensor:
        return weighted(self._gathered(snapshot.sums("q", "q"), None), self.ratios)
