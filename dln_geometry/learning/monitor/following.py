"""Choose the groups that a monitor watches, and move their charges with the optimiser's steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from inspect import unwrap
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dln_geometry.learning.architecture import (
    SymmetricGroup,
    symmetries_by_graph,
    symmetries_of,
)
from dln_geometry.learning.functional import parameters_of
from dln_geometry.learning.monitor.group_laws import GaugeLaw, LinearLaw, QuadraticLaw
from dln_geometry.learning.monitor.laws import Groups, Law
from dln_geometry.learning.monitor.products import Products, Snapshot, StepOptions, wide_dtype
from dln_geometry.support import shown

# Of a module with more parameters, a monitor follows the graph alone: the other groups take minutes
# to find, and hardly any of them has a closed charge.
_MOST_PROBED = 600


def is_sgd(optimizer: Any) -> bool:
    """Tell whether steps are those of ``torch.optim.SGD``; refuse what is no optimiser."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {shown(optimizer)}")
    # Hooks wrap the method of each class anew.
    return isinstance(optimizer, SGD) and unwrap(type(optimizer).step) is unwrap(SGD.step)


def watched_groups(
    module: nn.Module,
    optimizer: Optimizer,
    groups: Groups | None,
    example_input: Any,
    loss: str | None,
    moments: int,
) -> list[SymmetricGroup]:
    """Return the given groups, or all that are found and trained; gauges of width <= `moments`."""
    named = dict(module.named_parameters())
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = {n for n, p in named.items() if id(p) in owned and p.requires_grad}
    if groups is None:
        small = sum(p.numel() for p in parameters_of(module).values()) <= _MOST_PROBED
        search = symmetries_of if small else symmetries_by_graph
        found = search(module, example_input, loss=loss)
        groups = [g for group in found for g in _trained_part(group, trained)]
    elif isinstance(groups, str) or not isinstance(groups, Iterable):
        raise TypeError(f"groups must be SymmetricGroups, got {shown(groups)}")
    watched = []
    for group in groups:
        if not isinstance(group, SymmetricGroup):
            raise TypeError(f"groups must be SymmetricGroups, got {shown(group)}")
        if group.kind == "permutation" or not group.is_plain:
            continue
        if group.kind == "gauge" and group.first[0].block > moments:
            group = group.diagonal()
        group.check(named)
        if missing := sorted(set(group.names) - trained):
            raise ValueError(
                f"groups must hold parameters that the optimizer trains, got {missing}"
            )
        watched.append(group)
    if not watched:
        raise ValueError(
            "module must have symmetric groups that the optimizer trains, got none: give "
            "groups, or an example_input and a loss to find more"
        )
    return watched


def _trained_part(group: SymmetricGroup, trained: set[str]) -> list[SymmetricGroup]:
    """Return the part of a group that is still a symmetry if only these parameters move."""
    if trained.issuperset(group.names):
        return [group]
    # The parts of a translation are symmetries of their own.
    own = tuple(p for p in group.first if p.name in trained)
    return [replace(group, first=own)] if group.kind == "translation" and own else []


def laws_of(
    groups: Groups, params: Mapping[str, Tensor], group_of: Mapping[str, int]
) -> tuple[Products, list[Law]]:
    """Sort groups by the optimiser's groups of their parameters: one law computes many at once."""

    def slots(members: Groups) -> list[tuple[str, ...]]:
        # The largest first: the sums of the others may have to be measured.
        names = dict.fromkeys(n for g in members for n in g.names)
        numbers = dict.fromkeys(group_of[n] for n in names)
        found = [tuple(n for n in names if group_of[n] == k) for k in numbers]
        return sorted(found, key=lambda slot: -sum(params[n].numel() for n in slot))

    quadratic: dict[frozenset[int], list[SymmetricGroup]] = {}
    linear: dict[int, list[SymmetricGroup]] = {}
    gauges: list[SymmetricGroup] = []
    for group in groups:
        numbers = frozenset(group_of[n] for n in group.names)
        if group.kind == "translation":
            for number in sorted(numbers):
                own = tuple(p for p in group.first if group_of[p.name] == number)
                linear.setdefault(number, []).append(replace(group, first=own))
        elif group.kind == "gauge":
            gauges.append(group)
        else:
            quadratic.setdefault(numbers, []).append(group)
    parts = [p for members in quadratic.values() for g in members for p in g.parts]
    products = Products(parts, params)
    laws: list[Law] = [QuadraticLaw(m, slots(m), products) for m in quadratic.values()]
    laws += [LinearLaw(m, slots(m)[0], params) for m in linear.values()]
    laws += [GaugeLaw(g, slots([g]), products.device) for g in gauges]
    return products, laws


class Follower:
    """Applies the laws of some groups to the steps of an optimiser.

    It refuses options that are tensors where numbers are needed, and options that differ inside a
    group though they must be common.
    """

    # Steps may have drifts that break symmetries: none under SGD.
    cause: str | None = None

    def __init__(self, optimizer: Optimizer, groups: Groups, named: Mapping[str, Tensor]) -> None:
        self.optimizer = optimizer
        number_of = {id(p): k for k, g in enumerate(optimizer.param_groups) for p in g["params"]}
        self.params = {n: named[n] for n in dict.fromkeys(n for g in groups for n in g.names)}
        self._group_of = {n: number_of[id(p)] for n, p in self.params.items()}
        self._last_options: list[StepOptions] = []
        self._options_of: dict[str, StepOptions] = {}
        self._products, self._laws = laws_of(groups, self.params, self._group_of)
        self.groups = tuple(g for law in self._laws for g in law.groups)
        self.labels = self.named_groups()
        for options in self._options().values():
            for name in ("momentum", "dampening", "weight_decay"):
                if isinstance(getattr(options, name), Tensor):
                    raise TypeError(f"{name} must be a number, got a tensor")
        for law in self._laws:
            law.rate_ratios(law.options_of(self._options()))

    def named_groups(self) -> tuple[str, ...]:
        """Return one distinct name for every group."""
        labels: list[str] = []
        for group in self.groups:
            label = f"{group.kind}({', '.join(group.names)})"
            same = sum(other.split(" #")[0] == label for other in labels)
            labels.append(f"{label} #{same + 1}" if same else label)
        return tuple(labels)

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
        """Start the predictions from the charges as they are."""
        for law in self._laws:
            law.begin(snapshot)

    def held(self) -> frozenset[str]:
        """Return the parameters without a gradient, which the next step does not move.

        It refuses sparse gradients, groups of which only a part has gradients, and a fused
        optimiser that decides on the device whether to step.
        """
        if getattr(self.optimizer, "found_inf", None) is not None:
            raise RuntimeError(
                "a gradient scaler must decide on the host whether to step, but a fused optimizer "
                "decides on the device: use fused=False"
            )
        held: set[str] = set()
        for name, p in self.params.items():
            if p.grad is None:
                held.add(name)
            elif p.grad.is_sparse:
                raise RuntimeError(f"gradients must be dense, got {p.grad.layout} for {name!r}")
        for label, group in zip(self.labels, self.groups, strict=True) if held else ():
            without = [n for n in group.names if n in held]
            if group.kind != "translation" and 0 < len(without) < len(group.names):
                raise RuntimeError(
                    f"all parameters of {label} must have gradients or none of them, got none for "
                    f"{without}: after freezing or replacing some, close the monitor and make "
                    "another"
                )
        return frozenset(held)

    def before(self, snapshot: Snapshot, held: frozenset[str]) -> None:
        """Prepare a step: gradients are known, nothing has moved."""
        fresh: frozenset[str] = frozenset()
        if any(options.dampening for options in self._last_options):
            fresh = frozenset(n for n, v in snapshot.tensors("v").items() if v is None)
        for law in self._laws:
            law.before(snapshot, held, fresh)

    def after(self, snapshot: Snapshot) -> None:
        """Finish a step: parameters and buffers have moved."""
        for law in self._laws:
            law.after(snapshot)

    def figures(self, snapshot: Snapshot, allowed: Tensor, *, units: bool) -> Tensor:
        """Return charges, predictions, residuals and tolerances of all groups in one row.

        With `units`, every single charge and its prediction follow. The row is on the device.
        """
        columns: tuple[list[Tensor], ...] = ([], [], [], [allowed], [], [])
        for index, law in enumerate(self._laws):
            law.settle()
            measured, predicted = law.measured(snapshot), law.charges
            assert predicted is not None
            off = law.largest((measured - predicted).abs())
            size = law.largest(law.sizes(snapshot))
            residual = self.deviations(index, law, off, size)
            row = [law.summary(measured), law.summary(predicted), residual]
            if units:
                row += [measured.reshape(-1), predicted.reshape(-1)]
            for column, value in zip(columns[:3] + columns[4:], row, strict=False):
                column.append(value)
        return torch.cat([value for column in columns for value in column])

    def deviations(self, index: int, law: Law, off: Tensor, size: Tensor) -> Tensor:
        """Return the residuals of the groups of one law; 0/0 counts as 0."""
        return torch.where(off == 0, off, off / size)

    def drift_of(self, index: int) -> dict[str, float]:
        """Return the drifts that break the symmetry of one group: none under SGD."""
        return {}

    def allowances(self, window: int | None) -> tuple[Tensor, Tensor, float]:
        """Return the rounding and the epsilon of each group, and a factor of the epsilons.

        Rounding may leave the first in a window, epsilons the factor times the second (at a
        variance of 1, see `variances`).
        """
        steps = math.inf if window is None else window
        precisions = [
            max(torch.finfo(self.params[n].dtype).eps for n in g.names) for g in self.groups
        ]
        # A short window is held to less: a broken symmetry leaves a smaller residual, too.
        rounding = [min(math.sqrt(eps), steps * eps ** (2 / 3)) for eps in precisions]
        device = self._products.device
        kind: Any = {"dtype": wide_dtype(device), "device": device}
        epsilons = torch.tensor([g.epsilon for g in self.groups], **kind)
        return torch.tensor(rounding, **kind), epsilons, min(100, 10 * steps)

    def owners(self) -> tuple[int, ...]:
        """Return the number of the group that each single charge belongs to."""
        starts = accumulate((len(law.groups) for law in self._laws), initial=0)
        laws = zip(starts, self._laws, strict=False)
        return tuple(start + k for start, law in laws for k in law.owner.tolist())

    def state(self) -> list[dict[str, Any]]:
        """Return the state of every law."""
        return [law.state() for law in self._laws]

    def load(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Continue from a state that `state` returned."""
        for law, saved in zip(self._laws, state, strict=True):
            law.load(saved)
