"""The stages of the search: translations, scalings, shifts, and matrices on channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.architecture.probing.families import (
    ALGEBRAS,
    Family,
    Offset,
    Projection,
    Strip,
    Term,
    slots_of,
    terms_of,
    uniform_terms,
    views_of,
    wholes_of,
)
from dln_geometry.learning.architecture.probing.grouping import (
    CLOSE,
    merged_blocks,
    powers_of,
    scaling,
    simple_share,
)
from dln_geometry.learning.architecture.probing.jacobian import Prober
from dln_geometry.learning.architecture.probing.operators import Proposals
from dln_geometry.learning.architecture.probing.ranks import Span
from dln_geometry.learning.architecture.probing.slots import Sample, combinations
from dln_geometry.learning.architecture.probing.translations import translations

# More candidates than this are not tried at once.
_MOST_SLOTS = 1000
# Shifts that are drawn for a set of terms, if these are few.
_DRAWS, _FEW_TERMS = 4, 500


class Stages:
    """Yields groups whose directions change no output at some samples of parameters."""

    def __init__(self, prober: Prober, proposals: Proposals, like: Tensor) -> None:
        self.prober, self.proposals, self._like = prober, proposals, like
        self.segments = {n: list(parts) for n, parts in proposals.segments.items()}
        # Shifts of normalisations whose gains are folded.
        self.partners: tuple[str, ...] = ()

    def all(
        self,
        samples: Sequence[Sample],
        null: Tensor | None,
        known: Span,
        more: Callable[[int], Tensor],
    ) -> Iterator[SymmetricGroup]:
        """Yield the groups of all stages; `known` may grow meanwhile."""
        yield from translations(self.prober, samples, null, more)
        yield from self._matrices(samples, known, "linear")
        yield from self._scalings(samples, known)
        yield from self._shifts(samples, known)
        for algebra in self.proposals.algebras:
            yield from self._matrices(samples, known, algebra)
        for algebra in ("linear", *self.proposals.algebras):
            yield from self._matrices(samples, known, algebra, views=True)

    def _real(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: params[n] for n in self.prober.shapes}

    def normal(self, *shape: int) -> Tensor:
        """Draw a tensor like the parameters."""
        generator = self.prober.generator
        options: Any = {"generator": generator, "device": generator.device}
        return torch.randn(shape, dtype=torch.float64, **options).to(self._like)

    def _scalings(self, samples: Sequence[Sample], known: Span) -> Iterator[SymmetricGroup]:
        """Yield scales and rescales, first of the units, then of whole parameters."""
        shapes, segments = self.prober.shapes, self.segments
        unlike: list[SymmetricGroup] = []
        # Runs with strides are combinations of others: what needs them comes last.
        for strided, d in product((False, True), (*self.proposals.widths, 1)):
            if d == 1:
                slots = [] if strided else list(wholes_of(shapes, segments))
            else:
                slots = list(slots_of(shapes, d, strided=strided, segments=segments))
            if strided and all(slot.stride == 1 for slot in slots):
                continue
            if not 0 < len(slots) <= _MOST_SLOTS:
                continue
            matrices = {s.size: self.normal(s.size).diag() for s in slots}
            if d == 1:
                matrices = {n: self._one(n) for n in matrices}
            fields = [
                lambda at, s=s, m=matrices[s.size]: (s.name, s.field(at.params[s.name], m))
                for s in slots
            ]
            for found in combinations(self.prober, samples, fields, known):
                group = scaling({slots[k]: c for k, c in found.items()}, d, shapes)
                if isinstance(group, Family) and group.powers:
                    unlike.append(group)
                elif group is not None:
                    yield group
        yield from unlike

    def offsets(self, samples: Sequence[Sample], known: Span) -> list[Offset]:
        """Return runs of vectors of which not the entries can be scaled, but their sums with 1."""
        out: list[Offset] = []
        for _, scaled, added in self._logarithms(samples, known):
            for s, c in added.items():
                # Runs of runs are offset already.
                inside = any(o.name == s.name and o.start <= s.start < o.stop for o in out)
                if s in scaled and not inside:
                    out.append(
                        Offset(s.name, simple_share(c / scaled[s]), s.start, s.start + s.size)
                    )
        return out

    def exponents(self, samples: Sequence[Sample], known: Span) -> Iterator[Family]:
        """Yield scalings that shifts of vectors undo, of which the exponential is taken."""
        for d, scaled, added in self._logarithms(samples, known):
            if scaled and added and not scaled.keys() & added.keys():
                grown = [Term(s.part(d), simple_share(c), grows=True) for s, c in scaled.items()]
                moved = [Term(s.part(d), simple_share(c)) for s, c in added.items()]
                parts = tuple(t.part for t in (*moved, *grown))
                yield Family("shift", parts, terms=(*moved, *grown))

    def _logarithms(
        self, samples: Sequence[Sample], known: Span
    ) -> Iterator[tuple[int, dict[Strip, float], dict[Strip, float]]]:
        """Yield the runs that are scaled, and the runs of vectors that are shifted meanwhile."""
        shapes = self.prober.shapes
        for d in (*self.proposals.widths, 1):
            slots = list(
                slots_of(shapes, d, strided=False, segments=self.segments)
                if d > 1
                else wholes_of(shapes, {})
            )
            ones = [s for s in slots if shapes[s.name].numel() == (*shapes[s.name], 1)[s.axis]]
            if not ones or len(slots) + len(ones) > _MOST_SLOTS:
                continue
            sizes = {s.size for s in slots}
            matrices = {n: self.normal(n).diag() if d > 1 else self._one(n) for n in sizes}
            fields = [
                lambda at, s=s, m=matrices[s.size], of=of: (
                    s.name,
                    s.field(of(at.params[s.name]), m),
                )
                for of, some in ((lambda x: x, slots), (torch.ones_like, ones))
                for s in some
            ]
            for found in combinations(self.prober, samples, fields, known):
                scaled = {slots[k]: c for k, c in found.items() if k < len(slots)}
                more = {ones[k - len(slots)]: c for k, c in found.items() if k >= len(slots)}
                yield d, scaled, more

    def _one(self, n: int) -> Tensor:
        return torch.eye(n).to(self._like)

    def _shifts(self, samples: Sequence[Sample], known: Span) -> Iterator[SymmetricGroup]:
        """Yield shifts of a vector that biases after a linear map compensate."""
        for n, over in product(self.proposals.widths, ("", *self.partners)):
            inners = {} if over else self.proposals.inners
            terms = list(terms_of(self._real(samples[0].params), n, over, inners, self.segments))
            if over and not any(term.over for term in terms):
                continue
            if not 1 < len(terms) <= _MOST_SLOTS:
                continue
            for group in self.of_terms(terms, n, samples, known):
                # Weights that take shifts of their inputs up are no translations of their own.
                if any(t.weight is None for t in group.terms):
                    yield group
        terms = list(uniform_terms(self.prober.shapes))
        if 1 < len(terms) <= _MOST_SLOTS:
            for group in self.of_terms(terms, 1, samples, known):
                if any(t.weight is None for t in group.terms):
                    yield group

    def of_terms(
        self, terms: Sequence[Term], n: int, samples: Sequence[Sample], known: Span
    ) -> Iterator[Family]:
        """Yield the shifts of n entries that some terms make together."""
        # Several shifts: one of a small bias alone has few entries, and many terms would fit.
        count = _DRAWS if len(terms) <= _FEW_TERMS else 1
        again = [replace(s, draw=k) for k in range(count) for s in samples]
        shifts = [self.normal(n) for _ in range(count)]

        def field(at: Sample, term: Term) -> tuple[str, Tensor]:
            moved = dict(at.params)
            term.add(moved, shifts[at.draw])
            return term.part.name, moved[term.part.name] - at.params[term.part.name]

        fields = [lambda at, term=term: field(at, term) for term in terms]
        for found in combinations(self.prober, again, fields, known):
            own = tuple(replace(terms[k], factor=c) for k, c in sorted(found.items()))
            parts = [t.part for t in own if t.weight is None]
            parts += [t.part for t in own if t.weight is not None]
            yield Family("shift", tuple(dict.fromkeys(parts)), terms=own)

    def _matrices(
        self,
        samples: Sequence[Sample],
        known: Span,
        algebra: str | Projection,
        *,
        views: bool = False,
    ) -> Iterator[SymmetricGroup]:
        """Yield gauges, rotations and commutants of the widths that operators propose.

        With `views`, also on axes that are merged or split on the way.
        """
        project = ALGEBRAS[algebra] if isinstance(algebra, str) else algebra
        rotates = isinstance(algebra, str) and algebra.startswith("orthogonal")
        for d in self.proposals.of(algebra):
            if d < 2:
                continue
            slots = list(slots_of(self.prober.shapes, d, strided=False, segments=self.segments))
            if views:
                more = list(views_of(self.prober.shapes, d, self.proposals.inners))
                if not more:
                    continue
                # The heads apart tell more than all of them as one.
                apart = {(s.name, s.axis + 1) for s in more if s.span > 1}
                slots = [s for s in slots if (s.name, s.axis) not in apart] + more
            if not 1 < len(slots) * (1 if rotates else 2) <= _MOST_SLOTS:
                continue
            m = project(self.normal(d, d))
            if float(m.norm()) < CLOSE:
                continue
            both = [(s, m) for s in slots] + ([] if rotates else [(s, m.mT) for s in slots])
            fields = [lambda at, s=s, m=m: (s.name, s.field(at.params[s.name], m)) for s, m in both]
            groups = []
            for found in combinations(self.prober, samples, fields, known):
                sides: tuple[list[Part], list[Part]] = ([], [])
                for k in sorted(found):
                    sides[k >= len(slots)].append(both[k][0].part())
                first, second = map(tuple, sides)
                powers = powers_of([found[k] for k in sorted(found)])
                same = {math.copysign(1, c) for k, c in found.items() if k < len(slots)}
                if set(first) == set(second) and not powers:
                    groups.append(Family("rotation", first, algebra="orthogonal"))
                elif rotates and first and len(same) == 1:
                    own = Family("rotation", first, algebra=str(algebra), powers=powers)
                    groups.append(own)
                elif first and second and len(same) == 1 and not set(first) & set(second):
                    kind = "gauge" if algebra == "linear" else "commutant"
                    name = algebra if isinstance(algebra, str) else "custom"
                    groups.append(
                        Family(
                            kind,
                            first,
                            second,
                            algebra="" if kind == "gauge" else name,
                            powers=powers,
                            projection=None if isinstance(algebra, str) else algebra,
                        )
                    )
            yield from merged_blocks(groups)
