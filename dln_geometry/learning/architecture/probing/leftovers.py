"""The last stages of the search: shifts inside kernels, under gains, and between two layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement, product
from typing import Any

import torch

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.architecture.probing.families import (
    Family,
    StackedPart,
    Strip,
    Term,
    biases,
    slots_of,
)
from dln_geometry.learning.architecture.probing.jacobian import is_flat
from dln_geometry.learning.architecture.probing.ranks import Span
from dln_geometry.learning.architecture.probing.slots import Sample
from dln_geometry.learning.architecture.probing.stages import Stages

# More terms are not tried at once.
_MOST_TERMS = 400


def under_gains(stages: Stages, samples: Sequence[Sample], known: Span) -> Iterator[SymmetricGroup]:
    """Yield shifts along the direction that normalised entries never take, below gains."""
    shapes = stages.prober.shapes
    vectors = [n for n, s in shapes.items() if len(s) == 1]
    for n, gain in product(stages.proposals.of("orthogonal fixing ones"), vectors):
        if shapes[gain].numel() != n:
            continue
        near = gain.rpartition(".")[0]
        others = [v for v in vectors if v != gain and shapes[v] == shapes[gain]]
        beside = next((v for v in others if v.rpartition(".")[0] == near), "")
        readers: dict[int, list[Term]] = {}
        for slot in slots_of(shapes, n, strided=False, segments=stages.segments):
            m = shapes[slot.name].numel() // shapes[slot.name][slot.axis]
            if len(shapes[slot.name]) > 1:
                part = Part(slot.name, slot.axis, n, 1, slot.start)
                readers.setdefault(m, []).append(Term(part, 1.0, under=gain, size=m))
                # All that they read may also be shifted alike, if others take that back.
                readers.setdefault(1, []).append(Term(part, 1.0, under=gain, size=1))
        for m, terms in readers.items():
            fitting = [v for v in vectors if beside and m in (1, shapes[v].numel())]
            biases = [Part(v, 0, m, shapes[v].numel() // m) for v in fitting]
            terms += [Term(b, 1.0, None, beside, gain, m) for b in biases]
            yield from stages.of_terms(terms, m, samples, known)


def kernels(
    stages: Stages, samples: Sequence[Sample], groups: Sequence[SymmetricGroup]
) -> Iterator[Family]:
    """Yield shifts by what the layers that follow map to 0, one layer or several in a chain."""
    shapes = stages.prober.shapes
    gauges = [g for g in groups if g.kind == "gauge"]
    for group in gauges:
        for side, other in ((group.first, group.second), (group.second, group.first)):
            for through in (*_chains(gauges, side, other, shapes), ()):
                yield from _in_kernel(stages, samples, side, other, through)
            yield from _compensated(stages, samples, side, other)
    for group in (g for g in groups if g.kind == "shift"):
        yield from _alike(stages, samples, getattr(group, "terms", ()))
    # Layers that read a stream alone, which others still need as it is.
    for n in stages.proposals.widths:
        slots = list(slots_of(shapes, n, strided=False, segments=stages.segments))
        narrow = [s for s in slots if shapes[s.name].numel() // shapes[s.name][s.axis] < n]
        if len(slots) * len(narrow) > _MOST_TERMS:
            continue
        for reader in narrow:
            side = [s.part() for s in slots if s.name != reader.name]
            yield from _in_kernel(stages, samples, side, (reader.part(),), ())
            # Of a layer with a bias, the biases of those that read it take the rest up.
            near = reader.name.rpartition(".")[0]
            for name, shape in shapes.items():
                if tuple(shape) == (n,) and name.rpartition(".")[0] == near:
                    other = (reader.part(), Part(name, 0, 1, n))
                    yield from _compensated(stages, samples, side, other)


def _in_kernel(
    stages: Stages,
    samples: Sequence[Sample],
    side: Sequence[Part],
    other: tuple[Part, ...],
    through: tuple[tuple[Part, ...], ...],
) -> Iterator[Family]:
    """Yield the shifts of parts by what others map to 0, if a random one is flat."""
    params = samples[0].params
    readers = Term(other[0], 1.0, kernel=other, through=through).matrix_of(params)
    if readers.shape[-1] >= readers.shape[-2]:
        return
    for part in side:
        entries = part.slices(params[part.name]).numel()
        term = Term(part, 1.0, size=entries, kernel=other, through=through)
        inner = tuple(p for level in through for p in level)
        family = Family("shift", tuple(dict.fromkeys((part, *other, *inner))), terms=(term,))
        change = family.tangent(params, stages.normal(entries))
        field = stages.prober.flat({part.name: change[part.name][None]})
        if is_flat(samples[0].rows, field):
            yield family


def _compensated(
    stages: Stages, samples: Sequence[Sample], side: Sequence[Part], other: Sequence[Part]
) -> Iterator[Family]:
    """Yield shifts by what the weights before map to 0, whose biases a later bias compensates."""
    shapes = stages.prober.shapes
    vectors = tuple(p for p in other if len(shapes[p.name]) == 1)
    weights = tuple(p for p in other if p not in vectors)
    if len(vectors) != 1 or not weights or weights[0].units > 1:
        return
    for part in side:
        count = part.slices(samples[0].params[part.name]).shape[-1]
        if len(shapes[part.name]) < 2 or shapes[weights[0].name].numel() >= part.block**2:
            continue
        for name, shape in shapes.items():
            if tuple(shape) == (count,):
                size: dict[str, Any] = {"size": part.block * count, "kernel": weights}
                own = Term(part, 1.0, **size)
                bias = Term(Part(name, 0, 1, count), -1.0, beside=vectors[0], **size)
                yield from _if_flat(stages, samples, (own, bias), part.block * count)


def _alike(stages: Stages, samples: Sequence[Sample], terms: Sequence[Term]) -> Iterator[Family]:
    """Yield shifts of weights whose biases can be shifted, by what their readers map to 0.

    All indices of a unit are shifted alike, such as those of which a maximum is taken.
    """
    shapes = stages.prober.shapes
    readers = tuple(
        Part(w.name, w.axis, 1, w.units, w.start)
        for w in (t.weight for t in terms)
        if w is not None and w.block == 1
    )
    moved = [t.part for t in terms if t.weight is None and t.is_constant]
    if len(moved) > 1 and readers and all(p.block == 1 for p in moved):
        # Layers of whose outputs a maximum is taken, entry by entry.
        near = [p.name.rpartition(".")[0] for p in moved]
        makers = [n for n, s in shapes.items() if len(s) == 2 and n.rpartition(".")[0] in near]
        makers = [n for n in makers if shapes[n][0] == moved[0].units]
        if len(makers) == len(moved) and len({shapes[n] for n in makers}) == 1:
            size = shapes[makers[0]].numel()
            own = [Part(n, 0, 1, shapes[n][0]) for n in makers]
            added = tuple(Term(p, 1.0, size=size, kernel=readers) for p in own)
            yield from _if_flat(stages, samples, added, size)
    for part in moved:
        n = part.units
        if not readers or part.block == 1 or any(r.block != n for r in readers):
            continue
        for name, shape in shapes.items():
            if len(shape) > 1 and shape[0] == shapes[part.name][part.axis]:
                size = n * shape.numel() // shape[0]
                own = Term(replace(part, name=name, axis=0), 1.0, size=size, kernel=readers)
                yield from _if_flat(stages, samples, (replace(own, each=True),), size)


def beyond_rank(stages: Stages, samples: Sequence[Sample], known: Span) -> Iterator[Family]:
    """Yield shifts of what reads the image of a map into more channels than it has inputs.

    Such as a stream that a layer makes from fewer features. What they read of the bias of that
    layer, a bias after them takes back; or they leave it out as well.
    """
    shapes, tried = stages.prober.shapes, 0
    makers = [Part(n, int(s[0] < s[1]), 1, max(s)) for n, s in shapes.items() if len(s) == 2]
    for maker in makers:
        n = maker.block
        if shapes[maker.name].numel() == n * n:
            continue
        own = [replace(b, units=1, block=n) for b in biases(shapes, maker.name, n)[:1]]
        for slot in slots_of(shapes, n, strided=False, segments=stages.segments):
            shape = shapes[slot.name]
            if slot.name == maker.name or len(shape) < 2 or tried > _MOST_TERMS:
                continue
            for part, rows, start in _readers_of(slot, shapes, stages.segments):
                tried += 1
                size: dict[str, Any] = {"size": n * rows, "kernel": (maker,)}
                term = Term(part, 1.0, **size)
                after = biases(shapes, slot.name, shape.numel() // shape[slot.axis])
                after = [replace(c, units=1, block=rows, start=start) for c in after]
                found = [(term, Term(c, -1.0, beside=b, **size)) for b, c in product(own, after)]
                for terms in (*found, (replace(term, kernel=(maker, *own)),)):
                    yield from _if_flat(stages, samples, terms, n * rows)


def _readers_of(
    slot: Strip, shapes: Mapping[str, torch.Size], segments: Mapping[int, Sequence[tuple[int, int]]]
) -> Iterator[tuple[Part, int, int]]:
    """Yield what reads a run, how many rows that are, and where they start.

    They are all of a parameter, or segments of its other axis.
    """
    shape, part = shapes[slot.name], slot.part()
    yield part, shape.numel() // shape[slot.axis], 0
    along = 1 - slot.axis
    for start, size in segments.get(shape[along], ()) if len(shape) == 2 else ():
        place = {"along": along, "first": start, "count": size}
        yield StackedPart(slot.name, slot.axis, 1, slot.size, slot.start, **place), size, start


def _if_flat(
    stages: Stages, samples: Sequence[Sample], terms: tuple[Term, ...], entries: int
) -> Iterator[Family]:
    """Yield the shift of some terms if a random one is flat at all samples."""
    family = Family("shift", tuple(t.part for t in terms), terms=terms)
    for sample in samples:
        change = family.tangent(sample.params, stages.normal(entries))
        field = stages.prober.flat({n: x[None] for n, x in change.items()})
        if not bool(field.any()) or not is_flat(sample.rows, field):
            return
    yield family


def _chains(
    gauges: Sequence[SymmetricGroup],
    side: tuple[Part, ...],
    other: tuple[Part, ...],
    shapes: Mapping[str, torch.Size],
) -> Iterator[tuple[tuple[Part, ...], ...]]:
    """Yield the further maps that follow the parts of one side of a gauge, the longest first."""

    def width(part: Part) -> int:
        return shapes[part.name].numel() // (part.units * part.block)

    found: list[tuple[Part, ...]] = []
    seen, last = {p.name for p in (*side, *other)}, other
    while True:
        after = None
        for group in gauges:
            for before, beyond in ((group.first, group.second), (group.second, group.first)):
                shared = {p.name for p in before} & {p.name for p in last}
                fits = beyond[0].block in map(width, last)
                if shared and fits and not seen & {p.name for p in beyond}:
                    after = after or beyond
        if after is None:
            break
        found.append(after)
        seen |= {p.name for p in after}
        last = after
    for count in range(len(found), 0, -1):
        yield tuple(found[:count])


def between(stages: Stages, samples: Sequence[Sample], known: Span) -> Iterator[Family]:
    """Yield shifts of one layer by multiples of another beside it, which their readers undo.

    The matrix of multiples may have any entries, or be diagonal.
    """
    shapes, widths = stages.prober.shapes, stages.proposals.widths

    def slots(n: int) -> list[Strip]:
        found = slots_of(shapes, n, strided=False, segments=stages.segments)
        return [s for s in found if n > 1 or shapes[s.name][s.axis] == 1]

    def rest(slot: Strip) -> int:
        return shapes[slot.name].numel() // shapes[slot.name][slot.axis]

    for n in widths:
        own = [s for s in slots(n) if s.axis == 0]
        terms = [Term(s.part(n), 1.0) for s in own if rest(s) == 1]
        for s in own:
            alike = [o for o in own if _are_apart(o, s) and rest(o) == rest(s)]
            terms += [Term(s.part(n), 1.0, beside=o.part(n)) for o in alike]
        if 1 < len(terms) <= _MOST_TERMS:
            yield from stages.of_terms(terms, n, samples, known)
    for m, n in combinations_with_replacement((*widths, 1), 2):
        terms, shape = [], (m, n)
        for count, other, turned in ((m, n, False), (n, m, True)):
            for s in slots(count):
                size = {"matrix": shape, "size": m * n, "turned": turned}
                if rest(s) == other:
                    terms.append(Term(s.part(), 1.0, **size))
                alike = [o for o in slots(other) if _are_apart(o, s) and rest(o) == rest(s)]
                terms += [Term(s.part(), 1.0, beside=o.part(), **size) for o in alike]
            if m == n:
                break
        if 1 < len(terms) <= _MOST_TERMS:
            yield from stages.of_terms(terms, m * n, samples, known)


def _are_apart(one: Strip, other: Strip) -> bool:
    """Tell whether two runs of entries have none in common."""
    ends = one.start + one.size <= other.start or other.start + other.size <= one.start
    return one.name != other.name or (one.axis == other.axis and ends)
