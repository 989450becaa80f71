"""The laws of scales, rescalings and gauges; `bilinear_laws` says what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.learning.architecture import SymmetricGroup
from dln_geometry.learning.monitor.bilinear_laws import BilinearLaw, weighted
from dln_geometry.learning.monitor.laws import present
from dln_geometry.learning.monitor.products import Products, Snapshot, StepOptions, wide_dtype

__all__ = ["GaugeLaw", "QuadraticLaw"]

# Steps that are noted before they are made up for: the sums of each are kept.
_PATIENCE = 32


@lru_cache(maxsize=256)
def step_matrix(options: StepOptions) -> np.ndarray:
    """Return the coefficients of one step of numbers ``(C, R, V)``, shape (3, 5).

    ``V = B(v, v)``. Columns are C, R, V and what is added: ``B(v+, v+)`` for heavy ball,
    ``B(g, g)`` without momentum, ``B(g, g)`` and ``B(v+, v+)`` with Nesterov's. There the three
    squares give the product ``B(d, v+)``: squares are much cheaper to sum than products.
    """
    lr, b, k = options.lr, options.momentum, options.weight_decay
    c, r, v, x, y = np.eye(5)
    if not b:
        return np.array([c - 2 * lr * k * c + lr**2 * (x + k**2 * c), 0 * r, 0 * v])
    p = b * r + (1 - options.dampening) * k * c
    if not options.nesterov:
        return np.array([c - 2 * lr * p + lr**2 * x, p - lr * x, 0 * v])
    dd = x + k**2 * c
    d_after = (y + dd - b**2 * v) / 2
    uu = dd + 2 * b * d_after + b**2 * y
    return np.array([c - 2 * lr * (k * c + b * p) + lr**2 * uu, p - lr * (d_after + b * y), y])


class QuadraticLaw(BilinearLaw):
    """Scales and rescalings: one number for each unit of each group.

    Parameters
    ----------
    groups, slots
        As of `BilinearLaw`.
    products : Products
        Where the sums of products are.
    """

    def __init__(
        self,
        groups: Sequence[SymmetricGroup],
        slots: Sequence[tuple[str, ...]],
        products: Products,
    ) -> None:
        super().__init__(groups, slots)
        self.units = sum(g.units for g in groups)
        self._noted: list[tuple[np.ndarray, tuple[Tensor, ...]]] = []
        self._awaited: tuple[np.ndarray, tuple[Tensor, ...]] | None = None
        self._rule = ""
        source, target, sign, owner = [], [], [], []
        start = 0
        for number, group in enumerate(groups):
            owner += [number] * group.units
            for side, parts in ((1.0, group.first), (-1.0, group.second)):
                for part in parts:
                    slot = next(j for j, names in enumerate(self.slots) if part.name in names)
                    places = products.indices(part)
                    unit = torch.arange(start, start + group.units)[:, None] + slot * self.units
                    source.append(places.reshape(-1))
                    target.append(unit.expand(places.shape).reshape(-1))
                    sign.append(torch.full((places.numel(),), side))
            start += group.units
        device, dtype = products.device, products.dtype
        self._source = torch.cat(source).to(device)
        self._target = torch.cat(target).to(device)
        signs = torch.cat(sign).to(device=device, dtype=dtype)
        self._sign = signs if any(group.second for group in groups) else None
        self._zero = torch.zeros(len(self.slots) * self.units, dtype=dtype, device=device)
        self.owner = torch.tensor(owner, device=device)

    def before(self, snapshot: Snapshot, held: frozenset[str], fresh: frozenset[str]) -> None:
        (o, *others) = self._options(snapshot.options)
        rule = "nesterov" if o.nesterov else "heavy" if o.momentum else "plain"
        stirred = not (held.isdisjoint(self.names) and fresh.isdisjoint(self.names))
        if rule != self._rule:
            self.settle()
        if others or stirred or isinstance(o.lr, Tensor):
            self.settle()
            self._rule = ""
            super().before(snapshot, held, fresh)
            return
        self._rule = rule
        if rule == "plain":
            self._noted.append((step_matrix(o), (snapshot.sums("g", "g"),)))
            return
        if self.momenta is None:
            self.momenta = self.pairs(snapshot, "q", "v").sum(0)
        if rule == "nesterov" and self.velocities is None:
            self.velocities = self.pairs(snapshot, "v", "v")
        # The step may overwrite the gradients: they are summed now, the buffers afterwards.
        sums = (snapshot.sums("g", "g"),) if rule == "nesterov" else ()
        self._awaited = step_matrix(o), sums

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
        # From the last step to the first: what each adds goes through all later ones.
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
        for i in range({"plain": 1, "heavy": 2, "nesterov": 3}[self._rule]):
            # Scalars as arguments: nothing is sent to the device.
            scaled = torch._foreach_mul(sums, [float(w[i]) for w in weights])
            total = self._gathered(torch.stack(scaled).sum(0), self._sign)[0]
            for j, old in enumerate(state):
                if old is not None and later[i, j]:
                    total = total.add(old, alpha=float(later[i, j]))
            new.append(total)
        self.charges, self.momenta, velocities = (*new, None, None)[:3]
        self.velocities = None if velocities is None else velocities[None]

    def begin(self, snapshot: Snapshot) -> None:
        self._noted.clear()
        self._awaited = None
        super().begin(snapshot)

    def load(self, state: Mapping[str, Any]) -> None:
        self._noted.clear()
        self._awaited = None
        super().load(state)

    def pairs(self, snapshot: Snapshot, first: str, second: str) -> Tensor:
        return self._gathered(snapshot.sums(first, second), self._sign)

    def _gathered(self, sums: Tensor, sign: Tensor | None) -> Tensor:
        picked = sums[self._source]
        if sign is not None:
            picked *= sign
        return self._zero.index_add(0, self._target, picked).reshape(len(self.slots), self.units)

    def mask(self, names: frozenset[str]) -> Tensor:
        key = ("mask", names)
        if key not in self._masks:
            hit = torch.tensor([not names.isdisjoint(g.names) for g in self.groups])
            self._masks[key] = hit.to(self.owner.device)[self.owner]
        return self._masks[key]

    def sizes(self, snapshot: Snapshot) -> Tensor:
        return weighted(self._gathered(snapshot.sums("q", "q"), None), self._weights)


class GaugeLaw(BilinearLaw):
    """The gauge of consecutive linear maps: a symmetric matrix for each unit of one group."""

    def __init__(
        self, group: SymmetricGroup, slots: Sequence[tuple[str, ...]], device: torch.device
    ) -> None:
        super().__init__((group,), slots)
        self.group = group
        self.owner = torch.zeros(1, dtype=torch.long, device=device)

    def pairs(self, snapshot: Snapshot, first: str, second: str) -> Tensor:
        x, y = snapshot.tensors(first), snapshot.tensors(second)
        values: list[Any] = [0.0] * len(self.slots)
        for side, parts in ((1, self.group.first), (-1, self.group.second)):
            for part in parts:
                a, b = x.get(part.name), y.get(part.name)
                if a is None or b is None:
                    continue
                left, right = part.slices(a), part.slices(b)
                product = right @ left.mT if side == 1 else left @ right.mT
                slot = next(j for j, names in enumerate(self.slots) if part.name in names)
                wide = product.to(wide_dtype(product.device))
                values[slot] = values[slot] + side * wide
        d = self.group.first[0].block
        device = snapshot.products.device
        zero = torch.zeros(self.group.units, d, d, dtype=wide_dtype(device), device=device)
        return torch.stack([zero + value for value in values])

    def transposed(self, x: Tensor) -> Tensor:
        return x.mT

    def summary(self, charges: Tensor) -> Tensor:
        """Return the trace: the charge of the scalings in the gauge."""
        return charges.diagonal(dim1=-2, dim2=-1).sum().reshape(1)

    def largest(self, values: Tensor) -> Tensor:
        return values.amax().reshape(1)

    def owners(self) -> Tensor:
        return self.owner.expand(self.group.units * self.group.first[0].block ** 2)

    def mask(self, names: frozenset[str]) -> Tensor:
        hit = not names.isdisjoint(self.group.names)
        return torch.tensor(hit, device=present(self.charges, None).device)

    def sizes(self, snapshot: Snapshot) -> Tensor:
        q = snapshot.tensors("q")
        total: Any = 0.0
        for part in self.group.parts:
            slot = next(j for j, names in enumerate(self.slots) if part.name in names)
            x = part.slices(present(q[part.name], None))
            wide = x.to(wide_dtype(x.device))
            total = total + self._weights[slot] * wide.square().sum((1, 2))
        return total[:, None, None]
