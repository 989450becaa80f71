"""The stages of the search: translations, scalings, shifts, and matrices on channels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, product
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import Part, SymmetricGroup
from dln_geometry.learning.architecture.probing.families import ALGEBRAS, Family, Projection
from dln_geometry.learning.architecture.probing.jacobian import (
    Prober,
    Span,
    common_null_space,
)
from dln_geometry.learning.architecture.probing.operators import Proposals
from dln_geometry.learning.architecture.probing.slots import (
    Sample,
    Strip,
    combinations,
    echelon,
    slots_of,
    terms_of,
)

# Directions have no part outside a space, up to this.
CLOSE = 1e-6
# The null space is known less well if small singular values are kept.
ROUGH = 1e-3
# More candidates than this are not tried at once.
_MOST_SLOTS = 1000


class Stages:
    """Yields groups whose directions change no output at some samples of parameters."""

    def __init__(self, prober: Prober, proposals: Proposals, like: Tensor) -> None:
        self.prober, self.proposals, self._like = prober, proposals, like
        # Shifts of normalisations whose gains are folded.
        self.partners: tuple[str, ...] = ()

    def all(self, samples: Sequence[Sample], null: Tensor, known: Span) -> Iterator[SymmetricGroup]:
        """Yield the groups of all stages; `known` may grow meanwhile."""
        yield from self._translations(samples, null)
        yield from self._matrices(samples, known, "linear")
        yield from self._scalings(samples, known)
        yield from self._shifts(samples, known)
        for algebra in self.proposals.algebras:
            yield from self._matrices(samples, known, algebra)

    def _translations(self, samples: Sequence[Sample], null: Tensor) -> Iterator[SymmetricGroup]:
        """Yield groups of the constant vectors that are flat everywhere."""
        null = common_null_space(null, [sample.rows for sample in samples])
        left = Span(null.shape[0], null)
        for group in self._named_translations(null):
            yield group
            left.add(fields_of(self.prober, group, samples[0].params))
        rest = left.rest(null)
        u, s, _ = torch.linalg.svd(rest, full_matrices=False)
        yield from self._opposed(u[:, s > ROUGH])

    def _named_translations(self, null: Tensor) -> Iterator[SymmetricGroup]:
        if not null.shape[1]:
            return
        free = null.square().sum(1) > 1 - ROUGH
        for name, shape in self.prober.shapes.items():
            start = self.prober.offsets[name]
            own = null[start : start + shape.numel()]
            alone = free[start : start + shape.numel()].reshape(shape)
            if not own.any() or not shape:
                continue
            for axis, n in enumerate(shape):
                whole = alone.movedim(axis, 0).reshape(n, -1).all(1).tolist()
                for u, units in _runs(whole):
                    yield Family("translation", (Part(name, axis, units, 1, u),))
                if all(whole):
                    break
                for units in (k for k in range(n - 1, 0, -1) if n % k == 0):
                    part = Part(name, axis, units, n // units)
                    group = Family("translation", (part,))
                    fields = _indicators(self.prober, part, self._like)
                    fields = fields / fields.norm(dim=0)
                    if float((fields - null @ (null.mT @ fields)).norm(dim=0).max()) < ROUGH:
                        yield group
                        break

    def _opposed(self, rest: Tensor) -> Iterator[SymmetricGroup]:
        """Yield one group for each set of parameters that only move together."""
        if not rest.shape[1]:
            return
        names = [n for n, s in self.prober.shapes.items() if s]
        rows = echelon(rest.mT)
        # Most are whole numbers; what is left of the others must pass the trials.
        rows = torch.where((rows - rows.round()).abs() < ROUGH, rows.round(), rows)
        pieces = []
        for row in rows:
            vectors = {}
            for name in names:
                start, shape = self.prober.offsets[name], self.prober.shapes[name]
                v = row[start : start + shape.numel()]
                if bool(v.any()):
                    vectors[name] = v.reshape(shape)
            pieces.append(vectors)
        pieces.sort(key=sorted)
        for key, members in groupby(pieces, key=lambda v: tuple(n for n in names if n in v)):
            first = tuple(Part(n, 0, 1, self.prober.shapes[n][0]) for n in key)
            if key:
                yield Family("shift", first, basis=tuple(members))

    def _real(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: params[n] for n in self.prober.shapes}

    def normal(self, *shape: int) -> Tensor:
        """Draw a tensor like the parameters."""
        generator = self.prober.generator
        options: Any = {"generator": generator, "device": generator.device}
        return torch.randn(shape, dtype=torch.float64, **options).to(self._like)

    def _scalings(self, samples: Sequence[Sample], known: Span) -> Iterator[SymmetricGroup]:
        """Yield scales and rescales, first of the units, then of whole parameters."""
        shapes = self.prober.shapes
        for d in (*self.proposals.widths, 1):
            if d == 1:
                slots = [Strip(n, 0, 0, 1, s[0]) for n, s in shapes.items() if s]
            else:
                slots = list(slots_of(shapes, d, strided=True))
            if not 1 < len(slots) <= _MOST_SLOTS:
                continue
            matrices = {s.size: self.normal(s.size).diag() for s in slots}
            if d == 1:
                matrices = {n: torch.eye(n).to(m) for n, m in matrices.items()}
            fields = [
                lambda p, s=s, m=matrices[s.size]: (s.name, s.field(p[s.name], m)) for s in slots
            ]
            for found in combinations(self.prober, samples, fields, known):
                group = _scaling({slots[k]: c for k, c in found.items()}, d, shapes)
                if group is not None:
                    yield group

    def _shifts(self, samples: Sequence[Sample], known: Span) -> Iterator[SymmetricGroup]:
        """Yield shifts of a vector that biases after a linear map compensate."""
        for n, over in product(self.proposals.widths, ("", *self.partners)):
            terms = list(terms_of(self._real(samples[0].params), n, over))
            if over and not any(term.over for term in terms):
                continue
            if not 1 < len(terms) <= _MOST_SLOTS:
                continue
            t = self.normal(n)

            def field(params: Mapping[str, Tensor], term: Any, t: Tensor = t) -> Any:
                moved = dict(params)
                term.add(moved, t)
                return term.part.name, moved[term.part.name] - params[term.part.name]

            fields = [lambda p, term=term, f=field: f(p, term) for term in terms]
            for found in combinations(self.prober, samples, fields, known):
                own = tuple(replace(terms[k], factor=c) for k, c in sorted(found.items()))
                constant = [x for x in own if x.weight is None]
                if constant:
                    parts = [t.part for t in constant]
                    parts += [t.part for t in own if t.weight is not None]
                    yield Family("shift", tuple(dict.fromkeys(parts)), terms=own)

    def _matrices(
        self, samples: Sequence[Sample], known: Span, algebra: str | Projection
    ) -> Iterator[SymmetricGroup]:
        """Yield gauges, rotations and commutants of the widths that operators propose."""
        project = ALGEBRAS[algebra] if isinstance(algebra, str) else algebra
        rotates = isinstance(algebra, str) and algebra.startswith("orthogonal")
        for d in self.proposals.of(algebra):
            if d < 2:
                continue
            slots = list(slots_of(self.prober.shapes, d, strided=False))
            if not 1 < len(slots) * (1 if rotates else 2) <= _MOST_SLOTS:
                continue
            m = project(self.normal(d, d))
            if float(m.norm()) < CLOSE:
                continue
            both = [(s, m) for s in slots] + ([] if rotates else [(s, m.mT) for s in slots])
            fields = [lambda p, s=s, m=m: (s.name, s.field(p[s.name], m)) for s, m in both]
            groups = []
            for found in combinations(self.prober, samples, fields, known):
                sides: tuple[list[Part], list[Part]] = ([], [])
                for k, c in sorted(found.items()):
                    slot = both[k][0]
                    sides[k >= len(slots)].append(Part(slot.name, slot.axis, 1, d, slot.start))
                    if abs(abs(c) - 1) > CLOSE:
                        break
                else:
                    first, second = map(tuple, sides)
                    same = {math.copysign(1, c) for k, c in found.items() if k < len(slots)}
                    if set(first) == set(second):
                        groups.append(Family("rotation", first, algebra="orthogonal"))
                    elif rotates and first and len(same) == 1:
                        groups.append(Family("rotation", first, algebra=str(algebra)))
                    elif first and second and len(same) == 1:
                        kind = "gauge" if algebra == "linear" else "commutant"
                        name = algebra if isinstance(algebra, str) else "custom"
                        groups.append(
                            Family(
                                kind,
                                first,
                                second,
                                algebra="" if kind == "gauge" else name,
                                projection=None if isinstance(algebra, str) else algebra,
                            )
                        )
            yield from _merged(groups)


def fields_of(prober: Prober, group: SymmetricGroup, params: dict[str, Tensor]) -> Tensor:
    """Return the generators of a group at some parameters, one for each entry of its elements."""
    if group.kind == "translation" and not getattr(group, "folds", ()):
        return torch.cat([_indicators(prober, part, params[part.name]) for part in group.first], 1)
    symmetry = group.symmetry(params)
    shape = symmetry.shape(params)
    own = {n: params[n] for n in params if n in prober.offsets}
    like = next(iter(own.values()))
    unit = torch.eye(math.prod(shape), dtype=like.dtype, device=like.device)
    directions = unit.reshape(-1, *shape)
    found = [
        prober.flat(torch.func.vmap(lambda s: symmetry.generated(params, s))(some))
        for some in directions.split(256)
    ]
    return torch.cat(found, 1)


def _indicators(prober: Prober, part: Part, like: Tensor) -> Tensor:
    """Return the translations of a part, shape (total, units * rest)."""
    shape = prober.shapes[part.name]
    places = torch.arange(shape.numel(), device=like.device).reshape(shape)
    moved = part.slices(places).movedim(1, 0).reshape(part.block, -1)
    out = like.new_zeros(prober.total, moved.shape[1])
    columns = torch.arange(moved.shape[1], device=like.device).expand_as(moved)
    out[prober.offsets[part.name] + moved, columns] = 1.0
    return out


def _runs(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yield start and length of each run of true flags."""
    start = 0
    for flag, members in groupby(flags):
        count = len(list(members))
        if flag:
            yield start, count
        start += count


def _scaling(
    found: Mapping[Strip, float], d: int, shapes: Mapping[str, torch.Size]
) -> SymmetricGroup | None:
    """Return the scale or rescale of some slots, `None` if their factors are not all the same."""
    if any(abs(abs(c) - 1) > CLOSE for c in found.values()):
        return None
    order = list(shapes)
    slots = sorted(found, key=lambda s: (order.index(s.name), s.axis, s.start))
    sign = found[slots[0]]
    sides: tuple[list[Part], list[Part]] = ([], [])
    strided: dict[tuple[str, int, int, bool], list[int]] = {}
    for slot in slots:
        second = found[slot] * sign < 0
        if d == 1:
            sides[second].append(Part(slot.name, 0, 1, slot.size))
        elif slot.stride == 1:
            sides[second].append(Part(slot.name, slot.axis, d, 1, slot.start))
        else:
            strided.setdefault((slot.name, slot.axis, slot.stride, second), []).append(slot.start)
    for (name, axis, stride, second), starts in strided.items():
        if starts != list(range(stride)):
            return None
        sides[second].append(Part(name, axis, d, stride))
    first, second_side = map(tuple, sides)
    vectors = [all(len(shapes[p.name]) == 1 for p in side) for side in (first, second_side)]
    if second_side and vectors == [False, True]:
        # Gains come first: they can be folded into what reads them.
        first, second_side = second_side, first
    return Family("rescale" if second_side else "scale", first, second_side)


def _merged(groups: Sequence[SymmetricGroup]) -> list[SymmetricGroup]:
    """Return groups of consecutive blocks, such as heads, as one of several units."""

    def layout(group: SymmetricGroup) -> Any:
        sides = (group.first, group.second)
        return group.kind, tuple(tuple((p.name, p.axis, p.block) for p in s) for s in sides)

    def shifted(group: Any, by: int) -> Any:
        return tuple(p.start + by * p.block for p in group.parts)

    out: list[SymmetricGroup] = []
    for group in sorted(groups, key=lambda g: (str(layout(g)), [p.start for p in g.parts])):
        last = out[-1] if out else None
        if (
            last is not None
            and layout(last) == layout(group)
            and shifted(last, last.units) == tuple(p.start for p in group.parts)
        ):
            sides = (last.first, last.second)
            first, second = (tuple(replace(p, units=p.units + 1) for p in s) for s in sides)
            out[-1] = replace(last, first=first, second=second)
        else:
            out.append(group)
    return out
