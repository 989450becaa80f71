"""The charges of the kinds of groups: translations, scales and rescalings, gauges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.learning.architecture import Part, SymmetricGroup
from dln_geometry.learning.monitor.laws import BilinearLaw, Groups, Law, Slots, weighted
from dln_geometry.learning.monitor.products import Products, Snapshot, StepOptions, wide_dtype
from dln_geometry.learning.noether import charge_after, nesterov_products, pushes

_IDENTITY = (1.0, 0.0), (0.0, 1.0)
# Number of steps whose sums are collected before the prediction is updated.
_PATIENCE = 32


class LinearLaw(Law):
    """Translations: sums over the blocks of parts, all of parameters with the same options.

    ``c = <q, n>`` and ``w = <v, n>`` need no gradients: steps are collected as one matrix.
    """

    def __init__(self, groups: Groups, slot: tuple[str, ...], params: Mapping[str, Tensor]) -> None:
        device = params[slot[0]].device
        self._parts: list[Part] = [part for group in groups for part in group.first]
        self._counts = [p.units * p.slices(params[p.name]).shape[-1] for p in self._parts]
        counts = torch.tensor(self._counts)
        part_of = torch.arange(len(self._parts)).repeat_interleave(counts).to(device)
        numbers = torch.tensor([n for n, group in enumerate(groups) for _ in group.first])
        super().__init__(groups, (slot,), numbers.to(device)[part_of], part_of)
        # (c, w) after the steps so far, in terms of (c, w) before them.
        self._noted = _IDENTITY

    def measured(self, snapshot: Snapshot) -> Tensor:
        return self.sums_of(snapshot.tensors("q"))

    def sums_of(self, tensors: Mapping[str, Tensor | None]) -> Tensor:
        """Return the sums over the blocks of all parts, shape (charges,)."""
        device = self.owner.device
        pieces = []
        for part, count in zip(self._parts, self._counts, strict=True):
            x = tensors.get(part.name)
            summed = torch.zeros(count, device=device) if x is None else _block_sums(part, x)
            pieces.append(summed.to(device=device, dtype=wide_dtype(device)))
        return torch.cat(pieces)

    def before(self, snapshot: Snapshot, held: frozenset[str], fresh: frozenset[str]) -> None:
        (o,) = self.options_of(snapshot.options)
        b, k, lr = o.momentum, o.weight_decay, o.lr
        if b and self.momenta is None:
            self.settle()
            self.momenta = self.sums_of(snapshot.tensors("v"))
        uniform = (held | fresh).isdisjoint(self.slot_of)
        if b and uniform and not isinstance(lr, Tensor):
            (cc, cw), (wc, ww) = self._noted
            k *= 1 - o.dampening
            wc, uc = pushes(k * cc, wc, b, o.nesterov)
            ww, uw = pushes(k * cw, ww, b, o.nesterov)
            self._noted = (cc - lr * uc, cw - lr * uw), (wc, ww)
            return
        self.settle()
        c = self.charges
        assert c is not None
        if not b:
            self.move(held, c - lr * (k * c))
            return
        assert self.momenta is not None
        w, u = pushes(self.damped(k * c, o.dampening, fresh), self.momenta, b, o.nesterov)
        self.move(held, c - lr * u, w)

    def settle(self) -> None:
        c, w, ((cc, cw), (wc, ww)) = self.charges, self.momenta, self._noted
        if w is None or self._noted == _IDENTITY:
            return
        assert c is not None
        self.charges, self.momenta, self._noted = cc * c + cw * w, wc * c + ww * w, _IDENTITY

    def forget(self) -> None:
        self._noted = _IDENTITY

    def parts_names(self) -> list[Sequence[str]]:
        return [(part.name,) for part in self._parts]

    def summary(self, charges: Tensor) -> Tensor:
        """Return the norm of the charges of each group."""
        return super().summary(charges.square()).sqrt()

    def sizes(self, snapshot: Snapshot) -> Tensor:
        """Return the norm of the parameter of each part."""
        q: Any = snapshot.tensors("q")
        norms = torch._foreach_norm([q[part.name] for part in self._parts])
        device = self.owner.device
        wide = torch.stack([n.to(device=device, dtype=wide_dtype(device)) for n in norms])
        return wide[self.part_of]


def _block_sums(part: Part, x: Tensor) -> Tensor:
    """Return the sums over the blocks of a part, in one row."""
    if part.block == 1:
        return part.slices(x).reshape(-1)
    if part.units == 1 and part.block == x.shape[part.axis]:
        # In one pass, whatever the strides.
        return x.sum(part.axis).reshape(-1)
    return part.slices(x).sum(1).reshape(-1)


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
    """Scales and rescalings: one number for each unit of each group, from sums of `products`."""

    def __init__(self, groups: Groups, slots: Slots, products: Products) -> None:
        device = products.device
        counts = torch.tensor([g.units for g in groups])
        owner = torch.arange(len(groups)).repeat_interleave(counts).to(device)
        super().__init__(groups, slots, owner)
        self._noted: list[tuple[np.ndarray, tuple[Tensor, ...]]] = []
        self._awaited: tuple[np.ndarray, tuple[Tensor, ...]] | None = None
        # Number of C, R, V that the rule of the collected steps needs.
        self._width = 0
        source, target, sign = [], [], []
        start, units = 0, len(owner)
        for group in groups:
            unit = torch.arange(start, start + group.units)[:, None]
            start += group.units
            sides = [(1.0, p) for p in group.first] + [(-1.0, p) for p in group.second]
            for side, part in sides:
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
        if width != self._width:
            self.settle()
        uniform = (held | fresh).isdisjoint(self.slot_of)
        if others or not uniform or isinstance(o.lr, Tensor):
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
            (matrix, sums), self._awaited = self._awaited, None
            self._noted.append((matrix, (*sums, snapshot.sums("v", "v"))))
        if len(self._noted) >= _PATIENCE:
            self.settle()
        super().after(snapshot)

    def settle(self) -> None:
        if not self._noted:
            return
        # From the last step to the first: all later steps act on what a step adds.
        later = np.eye(3)
        weights, sums = list[np.ndarray](), list[Tensor]()
        for matrix, added in reversed(self._noted):
            weights += [later @ matrix[:, 3 + j] for j in range(len(added))]
            sums += added
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


class GaugeLaw(BilinearLaw):
    """The gauge of consecutive linear maps: a symmetric matrix for each unit of one group."""

    def __init__(self, group: SymmetricGroup, slots: Slots, device: torch.device) -> None:
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
            x1, x2, slot = part.slices(a), part.slices(b), self.slot_of[part.name]
            product = x2 @ x1.mT if part in group.first else -(x1 @ x2.mT)
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
