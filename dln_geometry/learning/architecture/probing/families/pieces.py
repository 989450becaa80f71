"""Stacks: parameters that hold several maps, such as those of experts, of heads or of two gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.architecture.probing.families.family import Family
from dln_geometry.learning.architecture.probing.families.terms import Term


@dataclass(frozen=True)
class StackedPart(Part):
    """A part of some entries of a parameter only, as if the others were not there.

    Parameters
    ----------
    along, first, count, step : int
        These entries: `count` indices ``first, first + step, ...`` of the axis `along`.
    """

    along: int = 0
    first: int = 0
    count: int = 1
    step: int = 1

    def _require(self, shape: Sequence[int], name: str) -> None:
        last = self.first + (self.count - 1) * self.step
        if len(shape) <= self.along or shape[self.along] <= last:
            required = f"more than {last} entries along axis {self.along}"
            raise ValueError(f"{name} must have {required}, got shape {tuple(shape)}")
        super()._require([*shape[: self.along], self.count, *shape[self.along + 1 :]], name)

    def entries(self, tensor: Tensor) -> Tensor:
        """Return the entries of the piece, with all axes of the parameter."""
        last = self.first + (self.count - 1) * self.step
        return tensor[(slice(None),) * self.along + (slice(self.first, last + 1, self.step),)]

    def slices(self, tensor: Tensor) -> Tensor:
        """Return the slices of the units, shape (units, block, rest)."""
        self._require(tensor.shape, "tensor")
        return self._whole.slices(self.entries(tensor))

    def replaced(self, tensor: Tensor, slices: Tensor) -> Tensor:
        """Return the tensor with other slices, shape (units, block, rest); nothing in place."""
        new = self._whole.replaced(self.entries(tensor), slices)
        stop = self.first + (self.count - 1) * self.step + 1
        return torch.slice_scatter(tensor, new, self.along, self.first, stop, self.step)

    @property
    def _whole(self) -> Part:
        return Part(self.name, self.axis, self.units, self.block, self.start, self.inner, self.span)


@dataclass(frozen=True)
class StackedMaps:
    """Coordinates in which the pieces of a parameter along one axis are parameters of their own.

    The axis has `pieces` runs of equal size, or as many combs if it is `strided`. If it `drops`,
    runs of one index lose the axis.
    """

    name: str
    axis: int
    pieces: int
    size: int
    strided: bool = False
    drops: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that change."""
        return (self.name,)

    @property
    def inner(self) -> tuple[str, ...]:
        """Names of the pieces."""
        return tuple(f"{self.name}[{k}]" for k in range(self.pieces))

    def divisors(self, params: Mapping[str, Tensor]) -> list[Tensor]:
        """Return what is divided by."""
        return []

    def forward(self, params: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        """Return the pieces in place of the parameter."""
        found: dict[str, Tensor] = {}
        for name, x in params.items():
            if name != self.name:
                found[name] = x
                continue
            for k, own in enumerate(self.inner):
                y = self.piece(Part(name, 0, 1), k).entries(x)
                found[own] = y.squeeze(self.axis) if self.drops else y
        return found, None

    def back(self, params: dict[str, Tensor], element: Any) -> dict[str, Tensor]:
        """Return the parameter in place of its pieces."""
        pieces = [params[own] for own in self.inner]
        if self.drops:
            x = torch.stack(pieces, self.axis)
        elif self.strided:
            x = torch.stack(pieces, self.axis + 1).flatten(self.axis, self.axis + 1)
        else:
            x = torch.cat(pieces, self.axis)
        return {**{n: p for n, p in params.items() if n not in self.inner}, self.name: x}

    def piece(self, part: Part, index: int) -> StackedPart:
        """Return a part of a piece as one of the parameter."""
        axis, last = part.axis, part.axis + part.span - 1
        if self.drops:
            axis, last = axis + (axis >= self.axis), last + (last >= self.axis)
        return StackedPart(
            self.name, axis, part.units, part.block, part.start, part.inner, last - axis + 1,
            along=self.axis,
            first=index if self.strided else index * self.size,
            count=self.size,
            step=self.pieces if self.strided else 1,
        )  # fmt: skip


def unstacked(group: Family, stacks: Sequence[StackedMaps]) -> Family | None:
    """Return a group of pieces as one of the parameters; `None` if it has no words for them."""
    places = {own: (s, k) for s in stacks for k, own in enumerate(s.inner)}

    def part(own: Part | None) -> Any:
        if own is None or own.name not in places:
            return own
        stack, index = places[own.name]
        return stack.piece(own, index)

    def parts(own: Sequence[Part]) -> tuple[Part, ...]:
        return tuple(map(part, own))

    def term(own: Term) -> Term:
        return replace(
            own,
            part=part(own.part),
            weight=part(own.weight),
            beside=part(own.beside),
            kernel=parts(own.kernel),
            through=tuple(map(parts, own.through)),
        )

    folded = chain.from_iterable((*f.names, getattr(f, "source", "")) for f in group.folds)
    vectors = (n for t in group.terms if t.over or t.under for n in (t.over, t.under, t.part.name))
    if any(n in places for n in (*folded, *vectors)):
        return None
    basis = tuple(_whole_vectors(vectors, places) for vectors in group.basis)
    sides = {side: parts(getattr(group, side)) for side in ("first", "second", "reading")}
    return replace(group, **sides, terms=tuple(map(term, group.terms)), basis=basis)


def _whole_vectors(vectors: Mapping[str, Tensor], places: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return constant vectors of pieces as vectors of their parameters."""
    found: dict[str, Tensor] = {}
    for name, x in vectors.items():
        if name not in places:
            found[name] = x
            continue
        stack, _ = places[name]
        own = {n: vectors.get(n, torch.zeros_like(x)) for n in stack.inner}
        found[stack.name] = stack.back(own, None)[stack.name]
    return found
