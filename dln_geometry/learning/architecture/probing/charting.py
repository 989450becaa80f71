"""Coordinates in which more groups act: weights without a norm, whole gains, stacks taken apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.architecture.probing.families import (
    Chart,
    Family,
    Fold,
    Joined,
    Polar,
    StackedMaps,
    first_row,
    folded_by,
    vectors_beside,
    wholes_of,
)
from dln_geometry.learning.architecture.probing.grouping import CLOSE
from dln_geometry.learning.architecture.probing.operators import Proposals
from dln_geometry.learning.architecture.probing.ranks import Span
from dln_geometry.learning.architecture.probing.slots import Sample, combinations
from dln_geometry.learning.architecture.probing.stages import Stages

# More pairs of a bias and a token are not tried.
_MOST_PAIRS = 400

Stacks = tuple[StackedMaps, ...]

# A parameter is taken apart into so many maps at most.
_MOST_PIECES = 16


def charts_of(
    stages: Stages,
    samples: Sequence[Sample],
    groups: Sequence[SymmetricGroup],
    known: Span,
    is_same: Callable[[dict[str, Tensor]], bool],
) -> tuple[Chart, ...]:
    """Return weights with a norm and their lengths, and gains that are sums with a constant.

    Weights with a norm are parts that can be scaled; `is_same` tells whether other parameters give
    the same outputs.
    """
    polar: dict[str, Polar] = {}
    shapes, params = stages.prober.shapes, samples[0].params
    for group in groups:
        part = group.first[0]
        plain = group.kind == "scale" and len(group.parts) == 1 and group.is_plain
        if not plain or part.slices(params[part.name])[0].numel() == 1:
            continue
        near = part.name.rpartition(".")[0]
        fitting = [n for n in shapes if shapes[n].numel() == part.units and n != part.name]
        for name in sorted(fitting, key=lambda n: n.rpartition(".")[0] != near):
            if name not in polar and is_same(_with_turned_signs(part, name, params)):
                polar[name] = Polar(part, name)
                break
    return (
        *polar.values(),
        *stages.offsets(samples, known),
        *_of_tokens(stages, samples, known),
    )


def _of_tokens(stages: Stages, samples: Sequence[Sample], known: Span) -> Iterator[Joined]:
    """Yield biases that take back what the scaling of one token does to the sum that they enter."""
    shapes = stages.prober.shapes
    for d in stages.proposals.widths:
        vectors = [n for n, s in shapes.items() if tuple(s) == (d,)]
        # Rows of layers are no tokens.
        tables = [
            n
            for n, x in shapes.items()
            if len(x) > 1 and x[-1] == d and not vectors_beside(shapes, n, x[0])
        ]
        # Few candidates first: many fit a few points by chance.
        for rows in (tables, [*tables, *vectors]):
            found = list(_taken_back(stages, samples, known, vectors, rows, d))
            yield from found
            if found:
                break


def _taken_back(
    stages: Stages,
    samples: Sequence[Sample],
    known: Span,
    vectors: Sequence[str],
    rows: Sequence[str],
    d: int,
) -> Iterator[Joined]:
    """Yield biases that take back what the scaling of some first rows of d entries does."""
    slots = list(wholes_of(stages.prober.shapes, {}))
    pairs = [(v, n) for v in vectors for n in rows if n != v]
    if not pairs or len(slots) + len(pairs) > _MOST_PAIRS:
        return
    one = {s.size: torch.eye(s.size).to(samples[0].rows) for s in slots}
    fields = [lambda at, s=s: (s.name, s.field(at.params[s.name], one[s.size])) for s in slots]
    fields += [lambda at, v=v, n=n: (v, first_row(at.params[n], d)) for v, n in pairs]
    done = set[str]()
    for found in combinations(stages.prober, samples, fields, known):
        scaled = {slots[k].name: c for k, c in found.items() if k < len(slots)}
        taken: dict[str, list[tuple[str, float]]] = {}
        for k, c in found.items():
            v, name = pairs[k - len(slots)] if k >= len(slots) else ("", "")
            # The sum grows with one rate, its parts with others.
            rate = scaled.get(v, 0.0) - scaled.get(name, 0.0)
            if v:
                taken.setdefault(v, []).append((name, c / rate if rate else math.inf))
        for v, own in taken.items():
            # Other numbers only fit a few points.
            if v not in done and all(abs(abs(c) - 1) < CLOSE for _, c in own):
                done.add(v)
                yield Joined(v, tuple((n, float(round(c))) for n, c in own))


def stacks_of(shapes: Mapping[str, torch.Size], proposals: Proposals) -> Iterator[Stacks]:
    """Yield parameters that may be stacks of maps, those with one number of maps together."""

    def stacked(length: int, pieces: int, least: int, *, strided: bool = False) -> Stacks:
        size = length // pieces
        return tuple(
            StackedMaps(n, tuple(s).index(length), pieces, size, strided, size == 1 < len(s))
            for n, s in shapes.items()
            if len(s) >= least and length in s
        )

    stacks = {s[0]: None for s in shapes.values() if len(s) > 2 and s not in proposals.kernels}
    found = [
        *(stacked(n, n, 2) for n in {**proposals.batches, **stacks} if 1 < n <= _MOST_PIECES),
        *(stacked(n, k, 1) for n, k in proposals.runs if k <= _MOST_PIECES and n % k == 0),
        *(
            stacked(n, k, 1, strided=True)
            for n, k in proposals.combs
            if k <= _MOST_PIECES and n % k == 0 and n > k
        ),
    ]
    yield from dict.fromkeys(stacks for stacks in found if stacks)


def _with_turned_signs(part: Part, lengths: str, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn the signs of some units together with those of their lengths."""
    x, g = params[part.name], params[lengths]
    signs = torch.ones(part.units).to(x)
    signs[::2] = -1
    turned = part.replaced(x, part.slices(x) * signs[:, None, None])
    return {part.name: turned, lengths: g * signs.reshape(g.shape)}


def with_folds(group: SymmetricGroup, folds: tuple[Fold, ...]) -> SymmetricGroup:
    """Return the group with the folds that move its parameters."""
    if not folds or not isinstance(group, Family):
        return group
    # Shifts pass weights that they do not move.
    needed = folded_by([*group.names, *group.read], folds)
    # A gain may need the shift of its normalisation to be folded before.
    more = {n for f in needed for n in f.names}
    return replace(group, folds=tuple(f for f in folds if f in needed or f.source in more))
