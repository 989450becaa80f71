"""Find the mirror symmetries that the architecture of a module has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dln_geometry.learning.architecture import (
    Part,
    SymmetricGroup,
    Trial,
    symmetries_by_graph,
    trials,
)
from dln_geometry.learning.collapse.members import ensembles_of
from dln_geometry.learning.functional import as_arguments
from dln_geometry.learning.mirror import Mirror, as_places, named
from dln_geometry.learning.symmetry import check_names
from dln_geometry.support import as_choice, as_count, shown

Kind = Literal["permutation", "opposition", "rescaling", "rotation", "ensemble"]
# Up to this many parts all subsets are tried for changes of sign; above, only all parts together.
_LARGEST_SEARCH = 6


@dataclass(frozen=True, eq=False)
class MirrorFamily:
    """The mirrors of one kind that the same units have; made by `mirrors_of`.

    - ``"permutation"``: one for every pair of units; collapsed, the two are equal;
    - ``"opposition"``: one for every pair of odd units (tanh); collapsed, the two are opposite;
    - ``"rescaling"``: one for every unit, its change of sign; collapsed, the unit is off;
    - ``"rotation"``: one for every direction of units; collapsed, they have lost that dimension;
    - ``"ensemble"``: one for every pair of members, modules of one kind whose outputs are added or
      read alike; collapsed, the two are equal. `members` names the parameters of each.

    `axes` says where the units live, as in `Mirror.permutation`, `units` how many they are, and
    `through` which modules or functions stand between the parameters, and `readers` names those
    parameters that read the units (of permutations and rotations); the others make them.

    Examples
    --------
    >>> from torch import nn
    >>> net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.ones(2, 3)
    >>> families = dln.learning.mirrors_of(net, (x,))
    >>> [(family.kind, family.units) for family in families]
    [('permutation', 4), ('rescaling', 4), ('opposition', 4)]
    """

    kind: Kind
    axes: dict[str, Any]
    units: int
    through: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    members: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        as_choice(self.kind, get_args(Kind), "kind")
        as_count(self.units, "units")
        check_names(self.through, "through")
        check_names(self.readers, "readers")
        for own in self.members:
            check_names(own, "members")
        if bool(self.members) != (self.kind == "ensemble") or (
            self.members
            and (len(self.members) != self.units or len({len(m) for m in self.members}) > 1)
        ):
            required = "the names of as many parameters of each unit of an ensemble"
            raise ValueError(f"members must be {required}, got {shown(self.members)}")
        if not isinstance(self.axes, Mapping) or not (self.axes or self.members):
            required = "a non-empty mapping from names to axes"
            raise TypeError(f"axes must be {required}, got {shown(self.axes)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that the units own."""
        return (*sum(self.members, ()), *self.axes)

    @property
    def _sign(self) -> float:
        """1 if the members are exchanges of units, -1 with a change of sign, 0 otherwise."""
        return {"permutation": 1.0, "ensemble": 1.0, "opposition": -1.0}.get(self.kind, 0.0)

    def mirror(self, params: Mapping[str, Tensor], member: Any) -> Mirror:
        """Return one mirror: `member` is a pair of units, a unit (rescaling) or a direction."""
        if self._sign:
            if not isinstance(member, Sequence) or isinstance(member, str) or len(member) != 2:
                raise TypeError(f"member must be a pair of units, got {shown(member)}")
            if self.members:
                i, j = (int(k) for k in as_places(member, self.units, "member"))
                pairs = zip(self.members[i], self.members[j], strict=True)
                swaps = [Mirror.swap(params, a, b) for a, b in pairs]
                rest = [Mirror.permutation(params, self.axes, i, j)] if self.axes else []
                return Mirror.join(*swaps, *rest)
            return Mirror.permutation(params, self.axes, *member, sign=self._sign)
        if self.kind == "rescaling":
            return Mirror.rescaling(params, self.axes, member)
        return Mirror.rotation(params, self.axes, member)

    def defects(self, params: Mapping[str, Tensor]) -> Tensor:
        """Return `Mirror.defect` of all members: (d, d) of pairs, (d,) of units.

        For a rotation (d,) of the singular directions, descending.
        """
        rows, scale = self._rows(params)
        if self._sign:
            # Distances by inner products would lose those of nearly equal units to rounding.
            exact = "donot_use_mm_for_euclid_dist"
            distances = torch.cdist(rows, self._sign * rows, compute_mode=exact)
            return distances * (scale / math.sqrt(2))
        if self.kind == "rescaling":
            return scale * torch.linalg.vector_norm(rows, dim=-1)
        values = scale * torch.linalg.svdvals(rows)
        return torch.cat([values, rows.new_zeros(self.units - len(values))])

    def closest(self, params: Mapping[str, Tensor], count: int = 1) -> list[tuple[float, Any]]:
        """Return (defect, `member`) of at most `count` members, the nearest to collapse first."""
        count = as_count(count, "count", 0)
        if self.kind == "rotation":
            rows, scale = self._rows(params)
            u, s, _ = torch.linalg.svd(rows, full_matrices=self.units > rows.shape[1])
            padded = [*s.tolist(), *[0.0] * (self.units - len(s))]
            return [(scale * padded[i], u[:, i]) for i in reversed(range(self.units))][:count]
        if self.kind == "rescaling":
            values, index = self.defects(params).sort()
            return list(zip(values.tolist(), index.tolist(), strict=True))[:count]
        return self._closest_pairs(params, count)

    def _closest_pairs(
        self, params: Mapping[str, Tensor], count: int
    ) -> list[tuple[float, tuple[int, int]]]:
        """Return the nearest pairs of units: chosen by inner products, then measured exactly."""
        rows, scale = self._rows(params)
        other = self._sign * rows
        rough = torch.cdist(rows, other, compute_mode="use_mm_for_euclid_dist")
        i, j = torch.triu_indices(self.units, self.units, 1, device=rough.device)
        chosen = rough[i, j].topk(min(4 * count + 16, len(i)), largest=False).indices
        i, j = i[chosen], j[chosen]
        scale = scale[i, j] if isinstance(scale, Tensor) else scale
        exact = torch.linalg.vector_norm(rows[i] - other[j], dim=-1) * (scale / math.sqrt(2))
        values, order = exact.sort(stable=True)
        pairs = zip(i[order].tolist(), j[order].tolist(), strict=True)
        return list(zip(values.tolist(), pairs, strict=True))[:count]

    def _rows(self, params: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        """Return all parameters of each unit as a row, and the factor from norms to defects.

        The factor is one for each pair of members of an ensemble: others are not touched.
        """
        pieces, square, size = [], 0.0, 0
        for alike in zip(*self.members, strict=True):
            pieces.append(torch.stack([named(params, n).detach().flatten() for n in alike]))
        for name, (axis, positions) in self.axes.items():
            q = named(params, name).detach()
            flat = q.movedim(axis, 0).reshape(q.shape[axis], -1)
            pieces.append(flat[positions.to(q.device)].reshape(self.units, -1))
            square += float(q.square().sum())
            size += q.numel()
        rows = torch.cat(pieces, -1)
        if self.members:
            own = torch.cat(pieces[: len(self.members[0])], -1)
            sums = own.square().sum(-1)
            squares = square + sums[:, None] + sums
            count = (size + 2 * own.shape[1]) / rows.shape[1]
            return rows, torch.where(squares > 0, count / squares, 0.0).sqrt()
        return rows, math.sqrt(size / (rows.shape[1] * square)) if square > 0 else 0.0


def mirrors_of(
    module: nn.Module, example_input: Any = None, *, loss: str | None = None
) -> list[MirrorFamily]:
    """Return the families of mirror symmetries that the architecture of a module has.

    Its symmetric groups that follow from the graph (see `symmetries_of`) give exchanges of hidden
    units, channels and heads, and rotations between two consecutive linear layers, also in every
    head of an attention. On an example input it also tries changes of the sign of units: odd ones
    (tanh), and those before a normalisation whose own weight undoes it; and it exchanges parts of
    the module with the same names and shapes inside, members of an ensemble, alone and with blocks
    of other parameters (of a layer that reads them all, of a gate). Without one there are no
    rescalings, oppositions and ensembles. In evaluation mode members with running statistics of
    their own cannot be exchanged.

    Parameters
    ----------
    module, example_input, loss
        As in `symmetries_of`.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    >>> for family in dln.learning.mirrors_of(net, torch.randn(5, 4)):
    ...     print(family.kind, family.units, family.names)
    permutation 8 ('0.weight', '0.bias', '2.weight')
    rescaling 8 ('0.weight', '0.bias', '2.weight')
    opposition 8 ('0.weight', '0.bias', '2.weight')
    """
    families: list[MirrorFamily] = []
    groups = symmetries_by_graph(module, example_input, loss=loss)
    made = () if example_input is None else trials(module, as_arguments(example_input))
    tries = list(itertools.islice(made, 3))
    for group, changes in zip(groups, _sign_changes(groups, tries), strict=True):
        if group.kind == "gauge":
            block, readers = group.first[0].block, _names(group.second)
            for unit in range(group.units):
                axes = _unit_axes(group.parts, unit)
                families.append(MirrorFamily("rotation", axes, block, group.through, readers))
        elif group.kind == "permutation":
            axes, readers = _unit_axes(group.parts), _names(group.reading)
            families.append(MirrorFamily("permutation", axes, group.units, group.through, readers))
        for parts in changes:
            family = MirrorFamily("rescaling", _unit_axes(parts), group.units, group.through)
            if not _is_among(family, families):
                families.append(family)
    for one in ensembles_of(tries) if tries else ():
        options = {"readers": tuple(one.axes), "members": one.members}
        families.append(MirrorFamily("ensemble", one.axes, len(one.members), **options))
    # Units with both symmetries, exchange and change of sign, also have the two combined.
    return families + [
        replace(family, kind="opposition")
        for family in families
        if family.kind == "permutation" and _is_among(replace(family, kind="rescaling"), families)
    ]


def _unit_axes(parts: Sequence[Part], unit: int | None = None) -> dict[str, Any]:
    """Return the `axes` of `Mirror.permutation` for all units, or for the rows inside one unit."""
    found: dict[str, tuple[int, Tensor]] = {}
    for part in parts:
        index = torch.arange(part.start, part.stop, device="cpu").reshape(part.units, part.block)
        index = index if unit is None else index[unit].unsqueeze(-1)
        if part.name in found:
            index = torch.cat([found[part.name][1], index], -1)
        found[part.name] = (part.axis, index)
    return found


def _names(parts: Sequence[Part]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.name for part in parts))


def _sign_changes(
    groups: Sequence[SymmetricGroup], tries: Iterable[Trial]
) -> list[list[tuple[Part, ...]]]:
    """Return the smallest sets of parts of each group on which the units can change their signs."""
    kept: list[list[tuple[Part, ...]]] | None = None
    for trial in tries:
        if kept is None:
            kept = [list(_candidates(group, trial)) for group in groups]
        else:
            kept = [[parts for parts in sets if _keeps_signs(parts, trial)] for sets in kept]
    return kept or [[] for _ in groups]


def _candidates(group: SymmetricGroup, trial: Trial) -> Iterator[tuple[Part, ...]]:
    """Yield the smallest sets of parts on which one trial lets the units change their signs."""
    if group.kind not in ("permutation", "rescale"):
        return
    atoms = list(_atoms(group.parts, trial.params))
    sizes = range(1, len(atoms) + 1) if len(atoms) <= _LARGEST_SEARCH else (len(atoms),)
    kept: list[set[int]] = []
    for size in sizes:
        for chosen in itertools.combinations(range(len(atoms)), size):
            if any(smaller <= set(chosen) for smaller in kept):
                continue
            parts = tuple(part for i in chosen for part in atoms[i])
            if _keeps_signs(parts, trial):
                kept.append(set(chosen))
                yield parts


def _keeps_signs(parts: Sequence[Part], trial: Trial) -> bool:
    """Tell whether random signs of the units, on all these parts, keep the outputs."""
    units, moved, source = parts[0].units, dict(trial.params), trial.generator
    signs = torch.ones(units, 1, 1, dtype=torch.float64, device=source.device)
    # Half of the units: the sign of a whole layer may be free where that of a unit is not.
    order = torch.randperm(units, generator=source, device=source.device)
    signs[order[: max(1, units // 2)]] = -1.0
    for part in parts:
        x = part.slices(moved[part.name])
        moved[part.name] = part.replaced(moved[part.name], signs.to(x) * x)
    return trial.verdict(moved) is True


def _atoms(parts: Sequence[Part], params: Mapping[str, Tensor]) -> Iterator[tuple[Part, ...]]:
    """Yield the parts one by one, but the rows of a weight together with those of its bias."""
    names = {part.name for part in parts}
    for part in parts:
        head, dot, leaf = part.name.rpartition(".")
        weight, bias = f"{head}{dot}weight", f"{head}{dot}bias"
        if leaf == "bias" and weight in names and params[weight].ndim > 1:
            continue
        own = leaf == "weight" and params[weight].ndim > 1 and part.axis == 0
        yield (part, *(p for p in parts if own and p.name == bias))


def _is_among(a: MirrorFamily, families: Sequence[MirrorFamily]) -> bool:
    return any(
        a.kind == b.kind
        and a.axes.keys() == b.axes.keys()
        and all(i == b.axes[n][0] and torch.equal(x, b.axes[n][1]) for n, (i, x) in a.axes.items())
        for b in families
    )
