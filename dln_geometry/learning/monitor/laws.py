"""The exact motion of charges under every step of stochastic gradient descent.

A step of ``torch.optim.SGD`` is, with the gradient g of a batch, the buffer v and numbers that may
change from step to step (learning rate ``eta``, momentum b, decay k; ``s = 1 - dampening``, 1 in
the first step of a buffer),

``d = g + k q``,  ``v+ = b v + s d``,  ``q+ = q - eta u``,
``u = v+``, with Nesterov's momentum ``u = d + b v+``, without momentum ``u = d``.

What this makes of charges that are bilinear in q is in `bilinear_laws`, of linear ones in
`linear_laws`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture import SymmetricGroup
from dln_geometry.learning.monitor.products import Snapshot, StepOptions

__all__ = ["Law", "present"]


class Law(ABC):
    """Charges of some groups with the same options: predicted from step to step, and measured.

    Parameters
    ----------
    groups : sequence of SymmetricGroup
        Whose charges these are.
    slots : sequence of tuple of str
        Names of the parameters that share options; the largest ones first.
    """

    def __init__(self, groups: Sequence[SymmetricGroup], slots: Sequence[tuple[str, ...]]) -> None:
        self.groups = tuple(groups)
        self.slots = tuple(slots)
        self.names = tuple(name for slot in slots for name in slot)
        self.charges: Tensor | None = None
        self.momenta: Tensor | None = None
        self.velocities: Tensor | None = None
        self.owner = torch.zeros(0, dtype=torch.long)
        self._weights: tuple[float, ...] = (1.0,) * len(self.slots)
        self._masks: dict[tuple[str, frozenset[str]], Tensor] = {}

    def settle(self) -> None:
        """Make up for steps that were only noted, if any, before charges are looked at."""
        return

    @abstractmethod
    def measured(self, snapshot: Snapshot) -> Tensor:
        """Return the charges as they are."""

    @abstractmethod
    def before(self, snapshot: Snapshot, held: frozenset[str], fresh: frozenset[str]) -> None:
        """Prepare a step: gradients are known, nothing has moved.

        Parameters
        ----------
        snapshot : Snapshot
            Of this moment.
        held : frozenset of str
            Names of the parameters without a gradient, which the step leaves alone.
        fresh : frozenset of str
            Names of those without a buffer.
        """

    def after(self, snapshot: Snapshot) -> None:
        """Finish a step: parameters and buffers have moved; there may be nothing to do."""
        return

    @abstractmethod
    def mask(self, names: frozenset[str]) -> Tensor:
        """Return which charges belong to groups that hold any of these parameters."""

    @abstractmethod
    def sizes(self, snapshot: Snapshot) -> Tensor:
        """Return what a deviation of each charge is compared with."""

    def summary(self, charges: Tensor) -> Tensor:
        """Return one number for each group: the sum of its units."""
        zero = torch.zeros(len(self.groups), dtype=charges.dtype, device=charges.device)
        return zero.index_add_(0, self.owner, charges)

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest value of each group."""
        zero = torch.zeros(len(self.groups), dtype=values.dtype, device=values.device)
        return zero.scatter_reduce_(0, self.owner, values, "amax")

    def owners(self) -> Tensor:
        """Return the number of the group that each single charge belongs to."""
        return self.owner

    def check(self, options: Mapping[str, StepOptions]) -> None:
        """Refuse options that differ inside a group in more than rate and decay.

        Raises
        ------
        ValueError
            If they do.
        """
        self._ratios(self._options(options))

    def begin(self, snapshot: Snapshot) -> None:
        """Take the charges as they are for the prediction."""
        self._weights = self._ratios(self._options(snapshot.options))
        self.charges = self.measured(snapshot)
        self.momenta = self.velocities = None

    def _moved(
        self,
        held: frozenset[str],
        charges: Tensor,
        momenta: Tensor | None,
        velocities: Tensor | None,
    ) -> None:
        """Take over the values after a step, but for groups that it left alone."""
        if held and not held.isdisjoint(self.names):
            stay = self.mask(held)
            charges = torch.where(stay, present(self.charges, charges), charges)
            if momenta is not None:
                momenta = torch.where(stay, present(self.momenta, momenta), momenta)
            if velocities is not None:
                velocities = torch.where(stay, present(self.velocities, velocities), velocities)
        self.charges, self.momenta, self.velocities = charges, momenta, velocities

    def _options(self, by_name: Mapping[str, StepOptions]) -> list[StepOptions]:
        """Return the options of every slot; they may differ in rate and decay alone.

        Raises
        ------
        ValueError
            If they do not.
        """
        options = [by_name[slot[0]] for slot in self.slots]
        for field in ("momentum", "dampening", "nesterov", "maximize"):
            if len({getattr(o, field) for o in options}) > 1:
                raise ValueError(
                    f"{field} must be the same for all parameters of a symmetric group, got "
                    f"{[getattr(o, field) for o in options]} for {self.names}"
                )
        return options

    def _ratios(self, options: Sequence[StepOptions]) -> tuple[float, ...]:
        """Return ``eta_1 / eta_j``."""
        if len(options) == 1:
            return (1.0,)
        rates = [float(o.lr) for o in options]
        if not any(rates):
            return self._weights
        if not all(rates):
            raise ValueError(
                f"lr must not be zero for some parameters of a symmetric group alone, got {rates} "
                f"for {self.names}"
            )
        return tuple(rates[0] / rate for rate in rates)

    def state(self) -> dict[str, Any]:
        """Return what a prediction goes on from."""
        self.settle()
        return {
            "charges": self.charges,
            "momenta": self.momenta,
            "velocities": self.velocities,
            "weights": list(self._weights),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        device = self.owner.device
        for name in ("charges", "momenta", "velocities"):
            value = state[name]
            setattr(self, name, None if value is None else value.clone().to(device))
        self._weights = tuple(state["weights"])


def present(x: Tensor | None, otherwise: Tensor | None) -> Tensor:
    """Return a tensor that must be there, or zeros of the other one's shape."""
    if x is not None:
        return x
    assert otherwise is not None
    return torch.zeros_like(otherwise)
