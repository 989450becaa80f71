"""The exact motion of linear charges, those of translations.

With ``c = <q, n>``, ``<g, n> = 0``: with ``w = <v, n>``,
``w+ = b w + s k c``, and ``c+ = c - eta w+``, or with Nesterov's momentum
``c+ = c - eta (k c + b w+)``. No gradient enters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture import Part, SymmetricGroup
from dln_geometry.learning.monitor.laws import Law, present
from dln_geometry.learning.monitor.products import Snapshot, wide_dtype

__all__ = ["LinearLaw"]

_NOTHING = (1.0, 0.0), (0.0, 1.0)


class LinearLaw(Law):
    """Translations: sums over the blocks of parts, all of parameters with the same options."""

    def __init__(
        self, groups: Sequence[SymmetricGroup], slot: tuple[str, ...], params: Mapping[str, Tensor]
    ) -> None:
        super().__init__(groups, (slot,))
        self._noted = _NOTHING
        self._parts: list[Part] = [part for group in groups for part in group.first]
        self._names_of = [p.name for p in self._parts]
        self._counts = [p.units * p.slices(params[p.name]).shape[-1] for p in self._parts]
        numbers = torch.tensor([n for n, group in enumerate(groups) for _ in group.first])
        counts, device = torch.tensor(self._counts), params[slot[0]].device
        self.owner = numbers.repeat_interleave(counts).to(device)
        self._part_of = torch.arange(len(self._parts)).repeat_interleave(counts).to(device)

    def measured(self, snapshot: Snapshot) -> Tensor:
        return self._sums(snapshot.tensors("q"))

    def _sums(self, tensors: Mapping[str, Tensor | None]) -> Tensor:
        device = self.owner.device
        pieces = []
        for part, count in zip(self._parts, self._counts, strict=True):
            x = tensors.get(part.name)
            if x is None:
                pieces.append(torch.zeros(count, dtype=wide_dtype(device), device=device))
            else:
                summed = _summed(part, x)
                pieces.append(summed.to(device=device, dtype=wide_dtype(device)))
        return torch.cat(pieces)

    def before(self, snapshot: Snapshot, held: frozenset[str], fresh: frozenset[str]) -> None:
        (o,) = self._options(snapshot.options)
        b, k, lr = o.momentum, o.weight_decay, o.lr
        stirred = not (held.isdisjoint(self.names) and fresh.isdisjoint(self.names))
        if b and self.momenta is None:
            self.settle()
            self.momenta = self._sums(snapshot.tensors("v"))
        s = 1 - o.dampening
        if b and not stirred and not isinstance(lr, Tensor):
            # In numbers: the steps so far as one matrix, and what it makes of w and of u.
            (cc, cw), (wc, ww) = self._noted
            wc, ww = s * k * cc + b * wc, s * k * cw + b * ww
            uc, uw = (k * cc + b * wc, k * cw + b * ww) if o.nesterov else (wc, ww)
            self._noted = (cc - lr * uc, cw - lr * uw), (wc, ww)
            return
        self.settle()
        c = self.charges
        assert c is not None
        decay = k * c
        if not b:
            self.momenta = None
            self._moved(held, c - lr * decay, None, None)
            return
        assert self.momenta is not None
        full: Any = s + (1 - s) * self.mask(fresh).to(c.dtype) if stirred else s
        w = b * self.momenta + full * decay
        u = decay + b * w if o.nesterov else w
        self._moved(held, c - lr * u, w, None)

    def settle(self) -> None:
        if self.momenta is None or self._noted == _NOTHING:
            return
        assert self.charges is not None
        (cc, cw), (wc, ww) = self._noted
        c, w = self.charges, self.momenta
        self.charges, self.momenta = cc * c + cw * w, wc * c + ww * w
        self._noted = _NOTHING

    def begin(self, snapshot: Snapshot) -> None:
        self._noted = _NOTHING
        super().begin(snapshot)

    def load(self, state: Mapping[str, Any]) -> None:
        self._noted = _NOTHING
        super().load(state)

    def mask(self, names: frozenset[str]) -> Tensor:
        key = ("mask", names)
        if key not in self._masks:
            hit = [name in names for name in self._names_of]
            counts = torch.tensor(self._counts)
            self._masks[key] = torch.tensor(hit).repeat_interleave(counts).to(self.owner.device)
        return self._masks[key]

    def summary(self, charges: Tensor) -> Tensor:
        """Return the norm of the charges of each group."""
        return super().summary(charges.square()).sqrt()

    def sizes(self, snapshot: Snapshot) -> Tensor:
        """Return the norm of the parameter of each part."""
        q = snapshot.tensors("q")
        norms = torch._foreach_norm([present(q[name], None) for name in self._names_of])
        device = self.owner.device
        wide = torch.stack([n.to(device=device, dtype=wide_dtype(device)) for n in norms])
        return wide[self._part_of]


def _summed(part: Part, x: Tensor) -> Tensor:
    """Return the sums over the blocks of a part, in one row."""
    if part.block == 1:
        return part.slices(x).reshape(-1)
    if part.units == 1 and part.block == x.shape[part.axis]:
        # In one pass, whatever the strides.
        return x.sum(part.axis).reshape(-1)
    return part.slices(x).sum(1).reshape(-1)
