"""Coordinates in which more groups act: weights without a norm, whole gains, stacks taken apart."""

from __future__ import annotations

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
    Polar,
    StackedMaps,
    folded_by,
)
from dln_geometry.learning.architecture.probing.operators import Proposals
from dln_geometry.learning.architecture.probing.ranks import Span
from dln_geometry.learning.architecture.probing.slots import Sample
from dln_geometry.learning.architecture.probing.stages import Stages

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
    return (*polar.values(), *stages.offsets(samples, known))


def stacks_of(
    shapes: Mapping[str, torch.Size], proposals: Proposals
) -> Iterator[tuple[StackedMaps, ...]]:
    """Yield parameters that may be stacks of maps, those with one number of maps together."""

    def stacked(length: int, pieces: int, least: int, **more: bool) -> tuple[StackedMaps, ...]:
        return tuple(
            StackedMaps(name, tuple(shape).index(length), pieces, length // pieces, **more)
            for name, shape in shapes.items()
            if len(shape) >= least and length in shape
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
    needed = folded_by(group.names, folds)
    # A gain may need the shift of its normalisation to be folded before.
    more = {n for f in needed for n in f.names}
    return replace(group, folds=tuple(f for f in folds if f in needed or f.source in more))
