"""Take the laws of all watched groups along with the steps of an optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from dln_geometry.learning.architecture import SymmetricGroup
from dln_geometry.learning.monitor.assembly import check_options, labels_of, laws_of
from dln_geometry.learning.monitor.products import Snapshot, StepOptions

__all__ = ["Follower"]

_NONE: frozenset[str] = frozenset()


class Follower:
    """The laws of some groups, and where they stand.

    Parameters
    ----------
    optimizer : torch.optim.SGD
        Whose steps are followed.
    groups : sequence of SymmetricGroup
        Of parameters that it trains.
    named : mapping of str to Tensor
        The parameters.

    Raises
    ------
    TypeError
        If an option that must be a number is a tensor.
    ValueError
        If options that must be common differ inside a group.
    """

    def __init__(
        self, optimizer: SGD, groups: Sequence[SymmetricGroup], named: Mapping[str, Tensor]
    ) -> None:
        self.optimizer = optimizer
        number_of = {
            id(p): number for number, g in enumerate(optimizer.param_groups) for p in g["params"]
        }
        self.params = {n: named[n] for n in dict.fromkeys(n for g in groups for n in g.names)}
        self._group_of = {n: number_of[id(p)] for n, p in self.params.items()}
        self._last_options: list[StepOptions] = []
        self._options_of: dict[str, StepOptions] = {}
        self._products, self._laws = laws_of(groups, self.params, self._group_of)
        self.groups = tuple(g for law in self._laws for g in law.groups)
        self.labels = labels_of(self.groups)
        for options in self._options().values():
            check_options(options)
        for law in self._laws:
            law.check(self._options())

    def _options(self) -> dict[str, StepOptions]:
        options = [StepOptions.of(group) for group in self.optimizer.param_groups]
        if options != self._last_options:
            self._last_options = options
            self._options_of = {name: options[k] for name, k in self._group_of.items()}
        return self._options_of

    def snapshot(self) -> Snapshot:
        """Return parameters, gradients and buffers of this moment."""
        return Snapshot(self._products, self.params, self.optimizer.state, self._options())

    def begin(self, snapshot: Snapshot) -> None:
        """Take the charges as they are for the prediction."""
        for law in self._laws:
            law.begin(snapshot)

    def held(self) -> frozenset[str]:
        """Return the parameters without a gradient, which the step that comes leaves alone.

        Raises
        ------
        RuntimeError
            If a gradient is sparse or a part of a group has none, or a fused optimiser decides on
            the device whether to step.
        """
        if getattr(self.optimizer, "found_inf", None) is not None:
            raise RuntimeError(
                "a gradient scaler must decide on the host whether to step, but a fused optimizer "
                "decides on the device: use fused=False"
            )
        without = []
        for name, p in self.params.items():
            gradient = p.grad
            if gradient is None:
                without.append(name)
            elif gradient.is_sparse:
                raise RuntimeError(f"gradients must be dense, got {gradient.layout} for {name!r}")
        held = frozenset(without)
        if held:
            self._check_held(held)
        return held

    def before(self, snapshot: Snapshot, held: frozenset[str]) -> None:
        """Prepare a step: gradients are known, nothing has moved."""
        fresh = _NONE
        if any(options.dampening for options in self._last_options):
            fresh = frozenset(n for n, v in snapshot.tensors("v").items() if v is None)
        for law in self._laws:
            law.before(snapshot, held, fresh)

    def _check_held(self, held: frozenset[str]) -> None:
        """Refuse a step that moves a part of a group only."""
        for label, group in zip(self.labels, self.groups, strict=True):
            without = [n for n in group.names if n in held]
            if group.kind != "translation" and 0 < len(without) < len(group.names):
                raise RuntimeError(
                    f"all parameters of {label} must have gradients or none of them, got none for "
                    f"{without}: after freezing or replacing some, close the monitor and make "
                    "another"
                )

    def after(self, snapshot: Snapshot) -> None:
        """Finish a step: parameters and buffers have moved."""
        for law in self._laws:
            law.after(snapshot)

    def figures(self, snapshot: Snapshot, *, units: bool) -> Tensor:
        """Return charges, predictions and residuals of all groups in one row, on the device.

        With `units`, every single charge and its prediction follow.
        """
        charges, predicted, residuals = [], [], []
        singles: list[Tensor] = []
        predictions: list[Tensor] = []
        for law in self._laws:
            law.settle()
            measured = law.measured(snapshot)
            assert law.charges is not None
            charges.append(law.summary(measured))
            predicted.append(law.summary(law.charges))
            off = law.largest((measured - law.charges).abs())
            size = law.largest(law.sizes(snapshot))
            # Nothing against nothing is no deviation.
            residuals.append(torch.where(off == 0, off, off / size))
            if units:
                singles.append(measured.reshape(-1))
                predictions.append(law.charges.reshape(-1))
        return torch.cat([*charges, *predicted, *residuals, *singles, *predictions])

    def tolerances(self, window: int | None) -> list[float]:
        """Return the residuals that rounding and epsilons may leave in so many steps."""
        steps = math.inf if window is None else window
        found = []
        for group in self.groups:
            eps = max(torch.finfo(self.params[n].dtype).eps for n in group.names)
            # A break, too, shows less the fewer steps are followed.
            rounding = min(math.sqrt(eps), steps * eps ** (2 / 3))
            found.append(max(rounding, min(100, 10 * steps) * group.epsilon))
        return found

    def owners(self) -> tuple[int, ...]:
        """Return the number of the group that each single charge belongs to."""
        owners: list[int] = []
        before = 0
        for law in self._laws:
            owners += [before + k for k in law.owners().tolist()]
            before += len(law.groups)
        return tuple(owners)

    def state(self) -> list[dict[str, Any]]:
        """Return what the predictions go on from."""
        return [law.state() for law in self._laws]

    def load(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what `state` returned."""
        for law, saved in zip(self._laws, state, strict=True):
            law.load(saved)
