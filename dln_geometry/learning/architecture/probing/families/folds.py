"""Changes of coordinates in which a group acts simply, and a module that is called in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.architecture.subject import Point, Subject
from dln_geometry.learning.functional import Tensors


@dataclass(frozen=True)
class Fold:
    """An element of a group that makes one parameter constant: a gain 1, or a shift 0."""

    group: SymmetricGroup
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that change."""
        return self.group.names

    def divisors(self, params: Tensors) -> list[Tensor]:
        """Return what is divided by."""
        return [] if self.group.kind == "shift" else [params[self.source]]

    def forward(self, params: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        """Return the folded parameters, and what undoes it."""
        x = params[self.source]
        if self.group.kind == "shift":
            group: Any = self.group
            factor = next(t.factor for t in group.terms if t.part.name == self.source)
            t = x.flatten() / factor
            return group.shifted(params, -t), t
        return scaled(params, self.group, 1 / x.flatten()), x.flatten()

    def back(self, params: dict[str, Tensor], element: Any) -> dict[str, Tensor]:
        """Undo a fold."""
        if self.group.kind == "shift":
            group: Any = self.group
            return group.shifted(params, element)
        return scaled(params, self.group, element)


@dataclass(frozen=True)
class Offset:
    """Coordinates ``x + constant`` of a run of a vector x: a gain that is written ``1 + x``."""

    name: str
    constant: float
    start: int
    stop: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that change."""
        return (self.name,)

    def divisors(self, params: Tensors) -> list[Tensor]:
        """Return what is divided by."""
        return []

    def forward(self, params: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        """Return parameters in the new coordinates, and what undoes it."""
        return {**params, self.name: self._plus(params[self.name], self.constant)}, None

    def back(self, params: dict[str, Tensor], element: Any) -> dict[str, Tensor]:
        """Return parameters in the old coordinates."""
        return {**params, self.name: self._plus(params[self.name], -self.constant)}

    def _plus(self, x: Tensor, constant: float) -> Tensor:
        added = torch.zeros_like(x).flatten()
        added[self.start : self.stop] = constant
        return x + added.reshape(x.shape)


@dataclass(frozen=True)
class Polar:
    """Coordinates ``g v / |v|`` in place of directions v, and ``|v|`` of their lengths g.

    Each unit of a part has one length. So a weight norm becomes a plain weight.
    """

    part: Part
    lengths: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that change."""
        return (self.part.name, self.lengths)

    def divisors(self, params: Tensors) -> list[Tensor]:
        """Return what is divided by."""
        return [self._norms(params[self.part.name])]

    def _norms(self, x: Tensor) -> Tensor:
        return self.part.slices(x).flatten(1).norm(dim=1)

    def _times(self, x: Tensor, factors: Tensor) -> Tensor:
        return self.part.replaced(x, self.part.slices(x) * factors[:, None, None])

    def forward(self, params: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        """Return parameters in the new coordinates, and what undoes it."""
        v, g = params[self.part.name], params[self.lengths]
        norms = self._norms(v)
        new = {self.part.name: self._times(v, g.flatten() / norms)}
        return {**params, **new, self.lengths: norms.reshape(g.shape)}, g.detach().sign()

    def back(self, params: dict[str, Tensor], element: Any) -> dict[str, Tensor]:
        """Return parameters in the old coordinates."""
        w, n = params[self.part.name], params[self.lengths]
        norms = self._norms(w)
        signs = torch.ones_like(n) if element is None else element
        v = self._times(w, (signs * n).flatten() / norms)
        return {**params, self.part.name: v, self.lengths: signs * norms.reshape(n.shape)}


@dataclass(frozen=True)
class Joined:
    """Coordinates ``b + factor * row`` of a vector b, with the first rows of some parameters.

    They add up to what one token carries past a branch, with the bias of that branch.
    """

    name: str
    rows: tuple[tuple[str, float], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that change."""
        return (self.name,)

    def divisors(self, params: Tensors) -> list[Tensor]:
        """Return what is divided by."""
        return []

    def _sum(self, params: Tensors) -> Tensor:
        b = params[self.name]
        found = [c * first_row(params[n], b.numel()) for n, c in self.rows]
        return torch.stack(found).sum(0).reshape(b.shape)

    def forward(self, params: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        """Return parameters in the new coordinates, and what undoes it."""
        return {**params, self.name: params[self.name] + self._sum(params)}, None

    def back(self, params: dict[str, Tensor], element: Any) -> dict[str, Tensor]:
        """Return parameters in the old coordinates."""
        return {**params, self.name: params[self.name] - self._sum(params)}


def first_row(x: Tensor, size: int) -> Tensor:
    """Return the first row of a parameter whose last axis has a size."""
    return x.reshape(-1, size)[0]


Chart = Offset | Polar | Joined


def scaled(params: Tensors, group: SymmetricGroup, factors: Tensor) -> dict[str, Tensor]:
    """Multiply the units of the first parts by factors of any sign, those of the second divide."""
    moved = dict(params)
    for part in group.parts:
        f = factors if part in group.first else 1 / factors
        x = moved[part.name]
        moved[part.name] = part.replaced(x, part.slices(x) * f[:, None, None])
    return moved


def summed(group: SymmetricGroup, other: SymmetricGroup) -> SymmetricGroup | None:
    """Return a rescaling of whole parameters and all units of another one made together.

    It is `None` if factors do not stay inverses of each other, or no parameter drops out.
    """
    shares: dict[tuple[str, int, int], int] = {}
    parts: dict[tuple[str, int, int], Part] = {}
    for g in (group, other):
        for part in g.parts:
            key = part.name, part.start, part.units * part.block
            parts.setdefault(key, part.merged())
            shares[key] = shares.get(key, 0) + (1 if part in g.first else -1)
    kept = {key: share for key, share in shares.items() if share}
    if any(abs(share) > 1 for share in kept.values()) or len(kept) == len(shares):
        return None
    first, second = (tuple(parts[k] for k, c in kept.items() if c == sign) for sign in (1, -1))
    return SymmetricGroup("rescale", first, second) if first and second else None


def all_folded(
    params: Tensors, folds: Sequence[Fold | Chart]
) -> tuple[dict[str, Tensor], list[Any]]:
    """Return parameters with all folds made, and the elements that undo them."""
    moved, elements = dict(params), []
    for fold in folds:
        moved, element = fold.forward(moved)
        elements.append(element)
    return moved, elements


def folded_by(names: Sequence[str], folds: Sequence[Fold | Chart]) -> tuple[Fold | Chart, ...]:
    """Return the folds that change some parameters, or take back what happens to them."""

    def own(fold: Fold | Chart) -> set[str]:
        rows = fold.rows if isinstance(fold, Joined) else ()
        return {*fold.names, *(n for n, _ in rows)}

    return tuple(f for f in folds if own(f) & set(names))


class Charted(Subject):
    """A module that is called with parameters in other coordinates."""

    def __init__(self, subject: Subject, charts: Sequence[Any]) -> None:
        self.__dict__ |= subject.__dict__
        self.charts = tuple(charts)

    def own(self) -> Point:
        """Return the parameters in the new coordinates, buffers and arguments."""
        point = super().own()
        return point.at(all_folded(point.params, self.charts)[0])

    def evaluated(self, point: Point, *, grad: bool = False) -> Any:
        """Return all real outputs as one vector, and what was noted on the way."""
        with torch.set_grad_enabled(grad):
            return super().evaluated(point.at(self._plain(point.params)), grad=grad)

    def _plain(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        moved = dict(params)
        for chart in reversed(self.charts):
            moved = chart.back(moved, None)
        return moved
