"""The span of the generators of some groups, by products with it alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import SymmetricGroup

Direction = dict[str, Tensor]

# Conjugate gradients end there, or give up.
_SMALL, _MOST_STEPS = 1e-10, 400
# What is left of a direction inside the span, relative to it, and of one outside.
OUTSIDE = 1e-4
# Random vectors that count the elements that move nothing, and directions outside.
_MOST_NULL, MOST_OUTSIDE = 24, 8


class GroupSpan:
    """The directions ``F s`` in which groups move parameters, s all elements of their algebras.

    Projections on it are least squares by conjugate gradients: of a random direction they tell
    what holds for all, with probability 1.
    """

    def __init__(self, groups: Iterable[SymmetricGroup], params: Mapping[str, Tensor]) -> None:
        self.params = dict(params)
        self._members = [_member(g, self.params) for g in groups]
        self.count = sum(m.count for m in self._members)
        self._generator = torch.Generator("cpu").manual_seed(0)
        # Groups of parameters of different sizes get generators of one size.
        for member in self._members:
            s = torch.randn(member.count, generator=self._generator, dtype=torch.float64)
            size = norm_of(member.moved(s.to(self._like)))
            member.scale = float(s.norm()) / size if size else 1.0

    @property
    def _like(self) -> Tensor:
        return next(iter(self.params.values())).double()[:0]

    def moved(self, s: Tensor) -> Direction:
        """Return ``F s``, for a vector of all elements."""
        out: Direction = {}
        pieces = s.split([m.count for m in self._members])
        for member, own in zip(self._members, pieces, strict=True):
            for name, x in member.moved(member.scale * own).items():
                out[name] = out[name] + x if name in out else x
        return out

    def pulled(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return ``F^T v``; parameters that are missing count as 0."""
        return torch.cat([m.scale * m.pulled(direction) for m in self._members])

    def dimension(self) -> int:
        """Return the dimension: the number of elements less that of those that move nothing.

        The parts of random vectors in the null space of F have its dimension as their rank, up to
        23; above, the mean of their squares tells it, to a tenth at most.
        """
        if not self.count:
            return 0
        found: list[Tensor] = []
        while len(found) < min(_MOST_NULL, self.count):
            s = torch.randn(self.count, generator=self._generator, dtype=torch.float64)
            s = s.to(self._like)
            rest = s - self._solved(self._normal(s))
            found.append(rest)
            sizes = torch.linalg.svdvals(torch.stack(found))
            rank = int((sizes > OUTSIDE * float(s.norm())).sum())
            if rank < len(found):
                return self.count - rank
        squares = torch.stack([x.square().sum() for x in found])
        return self.count - min(self.count, round(float(squares.mean())))

    def rest(self, direction: Mapping[str, Tensor]) -> Direction:
        """Return the part of a direction that is orthogonal to the span."""
        if not self.count:
            return dict(direction)
        inside = self.moved(self._solved(self.pulled(direction)))
        names = {**dict(direction), **inside}
        zero = torch.zeros((), dtype=torch.float64)
        return {n: direction.get(n, zero) - inside.get(n, zero) for n in names}

    def _normal(self, s: Tensor) -> Tensor:
        return self.pulled(self.moved(s))

    def _solved(self, right: Tensor) -> Tensor:
        """Return the least solution s of ``F^T F s = right``, by conjugate gradients."""
        x, r = torch.zeros_like(right), right.clone()
        p, size = r.clone(), float(r.square().sum())
        least = _SMALL**2 * size
        for _ in range(_MOST_STEPS):
            if size <= least:
                break
            image = self._normal(p)
            step = size / float(p @ image)
            x, r = x + step * p, r - step * image
            before, size = size, float(r.square().sum())
            p = r + (size / before) * p
        return x


class _Member:
    """The generators of any group, by automatic differentiation."""

    def __init__(self, group: SymmetricGroup, params: Mapping[str, Tensor]) -> None:
        self.params, self.group, self.scale = dict(params), group, 1.0
        self._symmetry = group.symmetry(self.params)
        self._zero = self._symmetry.zero(self.params)
        self.count = self._zero.numel()

    def moved(self, s: Tensor) -> Direction:
        """Return the direction of an element, a vector."""
        return self._symmetry.generated(self.params, s.reshape(self._zero.shape))

    def pulled(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return the products of a direction with all generators."""
        field, pull = torch.func.vjp(
            lambda s: self._symmetry.generated(self.params, s), self._zero
        )[:2]
        own = {n: direction.get(n, torch.zeros_like(x)) for n, x in field.items()}
        return pull(own)[0].flatten()


class _Plain(_Member):
    """The generators of a group of a plain kind, by their formulas: several times as fast."""

    def _shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of the pieces of an element: one of a shift for each part."""
        group = self.group
        if group.kind != "translation":
            return [tuple(self._zero.shape)]
        each = [(p, p.slices(self.params[p.name])) for p in group.first]
        return [(p.units, x.shape[-1]) for p, x in each]

    def moved(self, s: Tensor) -> Direction:
        """Return the direction of an element, a vector."""
        shapes, out = self._shapes(), dict[str, Tensor]()
        own = s.split([torch.Size(x).numel() for x in shapes])
        pieces = [x.reshape(shape) for x, shape in zip(own, shapes, strict=True)]
        for k, part in enumerate(self.group.parts):
            q = self.params[part.name]
            x, second = part.slices(q), k >= len(self.group.first)
            if self.group.kind == "translation":
                change = pieces[k].unsqueeze(-2).expand_as(x)
            elif self.group.kind == "gauge":
                change = (-pieces[0].mT if second else pieces[0]) @ x
            else:
                change = (-x if second else x) * pieces[0][:, None, None]
            change = part.replaced(torch.zeros_like(q), change)
            out[part.name] = out[part.name] + change if part.name in out else change
        return out

    def pulled(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return the products of a direction with all generators."""
        total: Tensor | None = None
        shifts: list[Tensor] = []
        for k, part in enumerate(self.group.parts):
            q = self.params[part.name]
            y, x = part.slices(direction.get(part.name, torch.zeros_like(q))), part.slices(q)
            second = k >= len(self.group.first)
            if self.group.kind == "translation":
                shifts.append(y.sum(-2).flatten())
                continue
            if self.group.kind == "gauge":
                own = -(x @ y.mT) if second else y @ x.mT
            else:
                own = (x * y).sum((1, 2))
                own = -own if second else own
            total = own if total is None else total + own
        return torch.cat(shifts) if total is None else total.flatten()


def _member(group: SymmetricGroup, params: Mapping[str, Tensor]) -> _Member:
    return (_Plain if type(group) is SymmetricGroup else _Member)(group, params)


def outside(span: GroupSpan, directions: Iterable[Direction], most: int = MOST_OUTSIDE) -> int:
    """Return how many of some directions are independent of each other and of a span, up to `most`.

    They should be random combinations of all that are asked for: the first one inside ends it.
    """
    rests: list[Direction] = []
    for _, direction in zip(range(most), directions, strict=False):
        rest = span.rest(direction)
        size = norm_of(direction)
        rests.append({n: x / size for n, x in rest.items()} if size else rest)
        sizes = torch.linalg.eigvalsh(_gram(rests))
        if int((sizes > OUTSIDE**2).sum()) < len(rests):
            return len(rests) - 1
    return len(rests)


def _gram(directions: Sequence[Direction]) -> Tensor:
    names = directions[0]
    return sum((m := torch.stack([d[n].flatten() for d in directions])) @ m.mT for n in names)  # type: ignore


def norm_of(direction: Mapping[str, Tensor]) -> float:
    """Return the norm of all entries of a direction."""
    return sum(float(x.square().sum()) for x in direction.values()) ** 0.5
