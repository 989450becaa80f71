r"""Laws of charges: predicted from step to step, measured, and compared.

`learning.noether.momentum_law` states the law of one step. A charge ``C = B(q, q)`` that is
bilinear in the parameters needs ``B(v+, v+)`` with heavy ball. Otherwise, with
``B(d, d) = B(g, g) + k^2 C`` and ``X = B(d, v) = B(g, v) + k R``,

``B(d, v+) = b X + B(d, d)``,  ``B(v+, v+) = b^2 B(v, v) + b X^T + B(d, v+)``.

*Several learning rates.* If the parts j of a group have their own ``eta_j`` and ``k_j``, the
symmetry binds their sum alone, and ``C = sum_j (eta_1 / eta_j) B_j(q, q)`` has the law

``C+ = C - eta_1 (B(q, u) + B(q, u)^T) + eta_1 sum_j eta_j B_j(u, u)``,
``R+ = P - sum_j eta_j B_j(u, v+)``,  ``P = b R + s sum_j k_j B_j(q, q)``.

The last sum is ``k_1 C`` where ``eta_j k_j`` is the same for all; otherwise the squares of the
smaller parts are measured. Momentum must be common.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture import SymmetricGroup
from dln_geometry.learning.monitor.products import Snapshot, StepOptions
from dln_geometry.learning.noether import charge_after, nesterov_products, pushes

Groups = Sequence[SymmetricGroup]
Slots = Sequence[tuple[str, ...]]
Options = Sequence[StepOptions]

_MUST_AGREE = ("momentum", "dampening", "nesterov", "maximize")
_PREDICTED = ("charges", "momenta", "velocities")


class Law(ABC):
    """Charges of some groups with the same options: predicted from step to step, and measured.

    Each of `slots` names the parameters that share options, the largest first. `owner`, of shape
    (charges,), holds the number of the group of each charge, and `part_of` that of its part, if
    steps may move parts separately.
    """

    def __init__(
        self, groups: Groups, slots: Slots, owner: Tensor, part_of: Tensor | None = None
    ) -> None:
        self.groups, self.slots = tuple(groups), tuple(slots)
        self.slot_of = {name: j for j, slot in enumerate(slots) for name in slot}
        self.owner, self.part_of = owner, owner if part_of is None else part_of
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

        The parameters `held` have no gradient and stay; those of `fresh` have no buffer yet.
        """

    def after(self, snapshot: Snapshot) -> None:
        """Finish a step, after parameters and buffers have moved."""
        return

    def settle(self) -> None:
        """Apply the collected steps before charges are read."""
        return

    def forget(self) -> None:
        """Drop the collected steps, because the charges are replaced."""
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

    def move(self, held: frozenset[str], *values: Tensor) -> None:
        """Set charges, momenta and velocities after a step, except those of parameters `held`."""
        stay = self.mask(held) if held and not held.isdisjoint(self.slot_of) else None
        for name, value in zip_longest(_PREDICTED, values):
            if stay is not None and value is not None:
                old = getattr(self, name)
                value = torch.where(stay, torch.zeros_like(value) if old is None else old, value)
            setattr(self, name, value)

    def damped(self, decay: Tensor, dampening: float, fresh: frozenset[str]) -> Tensor:
        """Multiply by ``1 - dampening``, except in the first step of a buffer."""
        if not dampening:
            return decay
        share: Any = 1 - dampening
        if not fresh.isdisjoint(self.slot_of):
            share = share + dampening * self.mask(fresh).to(decay.dtype)
        return share * decay

    def options_of(self, by_name: Mapping[str, StepOptions]) -> list[StepOptions]:
        """Return the options of every slot; only learning rates and decays may differ."""
        options = [by_name[slot[0]] for slot in self.slots]
        if len(options) > 1:
            for field in _MUST_AGREE:
                if len({getattr(o, field) for o in options}) > 1:
                    raise ValueError(
                        f"{field} must be the same for all parameters of a symmetric group, got "
                        f"{[getattr(o, field) for o in options]} for {tuple(self.slot_of)}"
                    )
        return options

    def rate_ratios(self, options: Options) -> tuple[float, ...]:
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
        """Return the predictions and ratios from which `load` continues."""
        self.settle()
        return {name: getattr(self, name) for name in _PREDICTED} | {"weights": list(self.ratios)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state` returned."""
        self.forget()
        for name in _PREDICTED:
            value = state[name]
            setattr(self, name, None if value is None else value.clone().to(self.owner.device))
        self.ratios = tuple(state["weights"])


class BilinearLaw(Law):
    """Charges ``B(q, q)``, by the formulas of this module's docstring."""

    # A step between `before` and `after`: its options, P, and the parameters held.
    _pending: tuple[list[StepOptions], Tensor, frozenset[str]] | None = None

    @abstractmethod
    def pairs(self, snapshot: Snapshot, first: str, second: str) -> Tensor:
        """Return ``B_j(first, second)`` for every slot, shape (slots, ...)."""

    def transposed(self, x: Tensor) -> Tensor:
        """Return the transposes of charges that are matrices; numbers stay."""
        return x

    def measured(self, snapshot: Snapshot) -> Tensor:
        return weighted(self.pairs(snapshot, "q", "q"), self.ratios)

    def forget(self) -> None:
        self._pending = None

    def before(self, snapshot: Snapshot, held: frozenset[str], fresh: frozenset[str]) -> None:
        options = self.options_of(snapshot.options)
        ratios = self.rate_ratios(options)
        if ratios != self.ratios:
            # The ratios enter the charge, which is measured anew; momenta do not depend on them.
            self.ratios = ratios
            self.charges = self.measured(snapshot)
        c, first, b = self.charges, options[0], options[0].momentum
        assert c is not None
        decay = self._decay(snapshot, options, c)
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
        (options, p, held), self._pending = self._pending, None
        assert self.charges is not None
        w = weighted(self.pairs(snapshot, "v", "v"), [o.lr for o in options])
        c = charge_after(self.charges, p, self.transposed(p), w, options[0].lr)
        self.move(held, c, p - w)

    def _products(
        self, snapshot: Snapshot, options: Options, c: Tensor, r: Tensor
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

    def _decay(self, snapshot: Snapshot, options: Options, c: Tensor) -> Tensor:
        """Return ``sum_j k_j B_j(q, q)``."""
        k = options[0].weight_decay
        excess = [o.weight_decay - k * w for o, w in zip(options, self.ratios, strict=True)]
        if not any(excess):
            return k * c
        return k * c + weighted(self.pairs(snapshot, "q", "q"), excess)

    def _mixed_squares(self, snapshot: Snapshot, options: Options, decay: Tensor) -> Tensor:
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
