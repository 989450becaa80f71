"""Turn symmetric groups and an optimiser into laws: which parameters share which options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD

from dln_geometry.learning.architecture import SymmetricGroup, symmetries_of
from dln_geometry.learning.monitor.laws import Law
from dln_geometry.learning.monitor.linear_laws import LinearLaw
from dln_geometry.learning.monitor.products import Products, StepOptions
from dln_geometry.learning.monitor.quadratic_laws import GaugeLaw, QuadraticLaw

__all__ = [
    "check_optimizer",
    "check_options",
    "labels_of",
    "laws_of",
    "watched_groups",
]


def watched_groups(
    module: nn.Module,
    optimizer: SGD,
    groups: Sequence[SymmetricGroup] | None,
    example_input: Any,
    loss: str | None,
    moments: int,
) -> list[SymmetricGroup]:
    """Return what a monitor watches: given groups, or all that are found and trained.

    Raises
    ------
    ValueError
        If there is nothing, or a given group has parameters that the optimiser does not train.
    """
    named = dict(module.named_parameters())
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = {n for n, p in named.items() if id(p) in owned and p.requires_grad}
    if groups is None:
        found = symmetries_of(module, example_input, loss=loss)
        groups = [g for group in found for g in _trained_part(group, trained)]
    watched = [_narrowed(group, moments) for group in groups if group.kind != "permutation"]
    for group in watched:
        group.check(named)
        missing = sorted(set(group.names) - trained)
        if missing:
            raise ValueError(
                f"groups must hold parameters that the optimizer trains, got {missing}"
            )
    if not watched:
        raise ValueError(
            "module must have symmetric groups that the optimizer trains, got none: give "
            "groups, or an example_input and a loss to find more"
        )
    return watched


def laws_of(
    groups: Sequence[SymmetricGroup],
    params: Mapping[str, Tensor],
    group_of: Mapping[str, int],
) -> tuple[Products, list[Law]]:
    """Sort groups by the options of their parameters: one law computes many at once.

    Parameters
    ----------
    groups : sequence of SymmetricGroup
        What is watched.
    params : dict of str to Tensor
        Their parameters.
    group_of : dict of str to int
        The number of the optimiser's parameter group of each.
    """

    def slots(members: Sequence[SymmetricGroup]) -> list[tuple[str, ...]]:
        # The most numbers first: the others are the ones that may have to be measured.
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


def _narrowed(group: SymmetricGroup, moments: int) -> SymmetricGroup:
    """Return the diagonal of a gauge that is wider than this, or the group itself."""
    wide = group.kind == "gauge" and group.first[0].block > moments
    return group.diagonal() if wide else group


def check_optimizer(optimizer: Any) -> None:
    """Refuse what makes other steps than those of ``torch.optim.SGD``."""
    # Hooks wrap the method of each class anew.
    own = isinstance(optimizer, SGD)
    if not own or inspect.unwrap(type(optimizer).step) is not inspect.unwrap(SGD.step):
        raise TypeError(
            "optimizer must be torch.optim.SGD, whose charges have exact laws, got "
            f"{type(optimizer).__name__}"
        )


def check_options(options: StepOptions) -> None:
    """Refuse tensors where numbers must be known on the host."""
    for name in ("momentum", "dampening", "weight_decay"):
        if isinstance(getattr(options, name), Tensor):
            raise TypeError(f"{name} must be a number, got a tensor")


def _trained_part(group: SymmetricGroup, trained: set[str]) -> list[SymmetricGroup]:
    """Return what is left of a group if only these parameters move."""
    if trained.issuperset(group.names):
        return [group]
    # The parts of a translation are symmetries of their own.
    own = tuple(p for p in group.first if p.name in trained)
    return [replace(group, first=own)] if group.kind == "translation" and own else []


def labels_of(groups: Sequence[SymmetricGroup]) -> tuple[str, ...]:
    """Return a name for every group, each once."""
    labels: list[str] = []
    for group in groups:
        label = f"{group.kind}({', '.join(group.names)})"
        same = sum(1 for other in labels if other.split(" #")[0] == label)
        labels.append(f"{label} #{same + 1}" if same else label)
    return tuple(labels)
