"""Members of an ensemble: parts of a module that have the same shapes and can be exchanged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dln_geometry.learning.architecture import Trial

# Most calls of the module in the search for layers that read members, of one set and of all.
_PER_SET, _IN_ALL = 24, 96
# Of more parts, pairs that alone can be exchanged are not looked for.
_LARGEST_SET = 6

Axes = dict[str, tuple[int, Tensor]]


@dataclass(frozen=True, eq=False)
class Members:
    """Exchangeable members: the parameters of each, and axes of others where they have blocks."""

    members: tuple[tuple[str, ...], ...]
    axes: Axes

    def moved(self, params: Mapping[str, Tensor], order: Sequence[int]) -> dict[str, Tensor]:
        """Return the parameters with the members in another order."""
        found = dict(params)
        for own, other in zip(self.members, order, strict=True):
            found |= {a: params[b] for a, b in zip(own, self.members[other], strict=True)}
        for name, (axis, positions) in self.axes.items():
            index = positions[list(order)].flatten().to(params[name].device)
            found[name] = params[name].index_select(axis, index)
        return found

    def is_exchanged(self, trial: Trial) -> bool:
        """Tell whether all exchanges keep the outputs: a cycle and a swap generate them."""
        n = len(self.members)
        orders = [[*range(1, n), 0], *([[1, 0, *range(2, n)]] if n > 2 else [])]
        return all(trial.verdict(self.moved(trial.params, order)) is True for order in orders)

    def joined(self, other: Members) -> Members:
        """Return the ensemble whose members have the parts of both."""
        pairs = zip(self.members, other.members, strict=True)
        return Members(tuple(a + b for a, b in pairs), self.axes | other.axes)


def ensembles_of(tries: Sequence[Trial]) -> list[Members]:
    """Return the ensembles that all of these trials find, the outermost members first."""
    first, budget = tries[0], _IN_ALL
    found: list[Members] = []
    sets = list(_sets_of_siblings(first.params))
    for members in sets:
        taken = {name for one in found for own in one.members for name in own}
        if any(not taken.isdisjoint(own) for own in members):
            continue
        alone = Members(members, {})
        accepted: list[Members] = []
        if alone.is_exchanged(first):
            accepted = [alone]
        else:
            count = 0
            for one in _with_readers(alone, sets, first.params):
                count, budget = count + 1, budget - 1
                if count > _PER_SET or budget < 0:
                    break
                if one.is_exchanged(first):
                    accepted = [one]
                    break
            accepted = accepted or _classes(alone, first)
        found += [one for one in accepted if all(one.is_exchanged(t) for t in tries[1:])]
    return found


def _sets_of_siblings(params: Mapping[str, Tensor]) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Yield sets of parts with the same names and shapes inside, those near the root first."""
    tree: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, p in params.items():
        steps = name.split(".")
        for k, step in enumerate(steps):
            own = tree.setdefault(".".join(steps[:k]), {}).setdefault(step, {})
            own[".".join(steps[k + 1 :])] = p
    for prefix in sorted(tree, key=lambda path: path.count(".") + bool(path)):
        alike: dict[object, list[tuple[str, ...]]] = {}
        for step, inside in tree[prefix].items():
            shapes = tuple((suffix, p.shape) for suffix, p in inside.items())
            base = f"{prefix}.{step}" if prefix else step
            names = tuple(f"{base}.{suffix}" if suffix else base for suffix in inside)
            alike.setdefault(shapes, []).append(names)
        yield from (tuple(members) for members in alike.values() if len(members) > 1)


def _with_readers(
    alone: Members, sets: Sequence[tuple[tuple[str, ...], ...]], params: Mapping[str, Tensor]
) -> Iterator[Members]:
    """Yield the ensemble with one or two of other sets, and of axes that fall into its blocks."""
    n, own = len(alone.members), {name for names in alone.members for name in names}
    others = [Members(m, {}) for m in sets if len(m) == n and own.isdisjoint(sum(m, ()))]
    blank = tuple(() for _ in range(n))
    for name, p in params.items():
        head, _, leaf = name.rpartition(".")
        if name in own:
            continue
        for axis, length in enumerate(p.shape):
            if length % n or not length:
                continue
            places = torch.arange(length, device="cpu").reshape(n, -1)
            axes: Axes = {name: (axis, places)}
            bias = f"{head}.bias".lstrip(".")
            # The rows of a weight go with its bias.
            if leaf == "weight" and axis == 0 and bias in params and len(params[bias]) == length:
                axes[bias] = (0, places)
            others.append(Members(blank, axes))
    for size in (1, 2):
        for chosen in itertools.combinations(others, size):
            names = [{*sum(one.members, ()), *one.axes} for one in chosen]
            if size == 1 or names[0].isdisjoint(names[1]):
                whole = alone
                for one in chosen:
                    whole = whole.joined(one)
                yield whole


def _classes(alone: Members, trial: Trial) -> list[Members]:
    """Return the classes of members that can be exchanged among each other alone."""
    members = alone.members
    if not 2 < len(members) <= _LARGEST_SET:
        return []
    classes: list[list[tuple[str, ...]]] = []
    for one in members:
        for own in classes:
            if Members((own[0], one), {}).is_exchanged(trial):
                own.append(one)
                break
        else:
            classes.append([one])
    return [Members(tuple(own), {}) for own in classes if len(own) > 1]
