"""Charges of groups that share a law: predicted from step to step, measured, and compared.

`learning.noether.momentum_law` states the law of one step. Here stand what all laws share, and
the linear charges of translations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture import Part, SymmetricGroup
from dln_geometry.learning.monitor.products import Snapshot, StepOptions, wide_dtype
from dln_geometry.learning.noether import pushes

_MUST_AGREE = ("momentum", "dampening", "nesterov", "maximize")
_IDENTITY = (1.0, 0.0), (0.0, 1.0)


class Law(ABC):
    """Charges of some groups with the same options: predicted from step to step, and measured.

    Parameters
    ----------
    groups : sequence of SymmetricGroup
        Whose charges these are.
    slots : sequence of tuple of str
        Names of the parameters that share options; the largest ones first.
    owner : Tensor, shape (charges,)
        The number of the group that each charge belongs to.
    part_of : Tensor, optional
        The number of the part that each charge belongs to, if steps may move parts separately.
    """

    def __init__(
        self,
        groups: Sequence[SymmetricGroup],
        slots: Sequence[tuple[str, ...]],
        owner: Tensor,
        part_of: Tensor | None = None,
    ) -> None:
        self.groups = tuple(groups)
        self.slots = tuple(slots)
        self.slot_of = {name: j for j, slot in enumerate(slots) for name in slot}
        self.owner = owner
        self.part_of = owner if part_of is None else part_of
        self.charges: Tensor | None = None
        self.momenta: Tensor | None = None
        self.velocities: Tensor | None = None
        # Learning rates ``eta_1 / eta_j`` of the slots.
        self.ratios: tuple[float, ...] = (1.0,) * len(self.slots)
        self._masks: dict[frozenset[str], Tensor] = {}

    @abstractmethod
    def measured(self, snapshot: Snapshot) -> Tensor:
        """Return the charges as they are."""

    @abstractmethod
    def before(self, snapshot: Snapshot, held: frozenset[str], fresh: frozenset[str]) -> None:
        """Prepare a step: gradients are known, nothing has moved.

        The step does not move the parameters `held`, which have no gradient; those of `fresh`
        have no buffer yet.
        """

    def after(self, snapshot: Snapshot) -> None:
        """Finish a step: parameters and buffers have moved; there may be nothing to do."""
        return

    def settle(self) -> None:
        """Apply the steps that were only noted, if any, before charges are read."""
        return

    def forget(self) -> None:
        """Drop the steps that were only noted: the charges are replaced."""
        return

    @abstractmethod
    def sizes(self, snapshot: Snapshot) -> Tensor:
        """Return the size that a deviation of each charge is relative to."""

    def summary(self, charges: Tensor) -> Tensor:
        """Return one number for each group: the sum of its units."""
        return charges.new_zeros(len(self.groups)).index_add_(0, self.owner, charges)

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest value of each group."""
        zero = values.new_zeros(len(self.groups))
        return zero.scatter_reduce_(0, self.owner, values.reshape(-1), "amax")

    def parts_names(self) -> list[Sequence[str]]:
        """Return the names of the parameters that move together, in the numbers of `part_of`."""
        return [group.names for group in self.groups]

    def mask(self, names: frozenset[str]) -> Tensor:
        """Return which charges these parameters contribute to; made once for each set."""
        if names not in self._masks:
            hit = torch.tensor([not names.isdisjoint(own) for own in self.parts_names()])
            self._masks[names] = hit.to(self.part_of.device)[self.part_of]
        return self._masks[names]

    def begin(self, snapshot: Snapshot) -> None:
        """Start the prediction from the charges as they are."""
        self.forget()
        self.ratios = self.rate_ratios(self.options_of(snapshot.options))
        self.charges = self.measured(snapshot)
        self.momenta = self.velocities = None

    def move(
        self,
        held: frozenset[str],
        charges: Tensor,
        momenta: Tensor | None = None,
        velocities: Tensor | None = None,
    ) -> None:
        """Take the values after a step, except for charges of parameters that it did not move."""
        if held and not held.isdisjoint(self.slot_of):
            stay = self.mask(held)
            charges = torch.where(stay, present(self.charges, charges), charges)
            if momenta is not None:
                momenta = torch.where(stay, present(self.momenta, momenta), momenta)
            if velocities is not None:
                velocities = torch.where(stay, present(self.velocities, velocities), velocities)
        self.charges, self.momenta, self.velocities = charges, momenta, velocities

    def damped(self, decay: Tensor, dampening: float, fresh: frozenset[str]) -> Tensor:
        """Multiply by ``1 - dampening``, but for the first step of a buffer."""
        if not dampening:
            return decay
        share: Any = 1 - dampening
        if not fresh.isdisjoint(self.slot_of):
            share = share + dampening * self.mask(fresh).to(decay.dtype)
        return share * decay

    def options_of(self, by_name: Mapping[str, StepOptions]) -> list[StepOptions]:
        """Return the options of every slot; refuse others than rates and decays that differ."""
        options = [by_name[slot[0]] for slot in self.slots]
        if len(options) > 1:
            for field in _MUST_AGREE:
                if len({getattr(o, field) for o in options}) > 1:
                    raise ValueError(
                        f"{field} must be the same for all parameters of a symmetric group, got "
                        f"{[getattr(o, field) for o in options]} for {tuple(self.slot_of)}"
                    )
        return options

    def rate_ratios(self, options: Sequence[StepOptions]) -> tuple[float, ...]:
        """Return ``eta_1 / eta_j``; those of the last step if all rates are zero."""
        if len(options) == 1:
            return (1.0,)
        rates = [float(o.lr) for o in options]
        if not any(rates):
            return self.ratios
        if not all(rates):
            raise ValueError(
                f"lr must not be zero for some parameters of a symmetric group alone, got {rates} "
                f"for {tuple(self.slot_of)}"
            )
        return tuple(rates[0] / rate for rate in rates)

    def state(self) -> dict[str, Any]:
        """Return all that the prediction continues from."""
        self.settle()
        return {
            "charges": self.charges,
            "momenta": self.momenta,
            "velocities": self.velocities,
            "weights": list(self.ratios),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state` returned."""
        self.forget()
        device = self.owner.device
        for name in ("charges", "momenta", "velocities"):
            value = state[name]
            setattr(self, name, None if value is None else value.clone().to(device))
        self.ratios = tuple(state["weights"])


def present(x: Tensor | None, otherwise: Tensor) -> Tensor:
    """Return a tensor, or zeros of the other one's shape if it is None."""
    return torch.zeros_like(otherwise) if x is None else x


class LinearLaw(Law):
    """Translations: sums over the blocks of parts, all of parameters with the same options.

    ``c = <q, n>`` and ``w = <v, n>`` need no gradients: steps are collected as one matrix.
    """

    def __init__(
        self, groups: Sequence[SymmetricGroup], slot: tuple[str, ...], params: Mapping[str, Tensor]
    ) -> None:
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
        return self._sums(snapshot.tensors("q"))

    def _sums(self, tensors: Mapping[str, Tensor | None]) -> Tensor:
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
            self.momenta = self._sums(snapshot.tensors("v"))
        stirred = not (held.isdisjoint(self.slot_of) and fresh.isdisjoint(self.slot_of))
        if b and not stirred and not isinstance(lr, Tensor):
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
        if self.momenta is None or self._noted == _IDENTITY:
            return
        assert self.charges is not None
        (cc, cw), (wc, ww) = self._noted
        c, w = self.charges, self.momenta
        self.charges, self.momenta = cc * c + cw * w, wc * c + ww * w
        self._noted = _IDENTITY

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
