"""Coordinates in which more groups act: weights in place of norms and directions, whole gains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import Part, SymmetricGroup
from dln_geometry.learning.architecture.probing.families import (
    Chart,
    Family,
    Fold,
    Polar,
    folded_by,
)
from dln_geometry.learning.architecture.probing.ranks import Span
from dln_geometry.learning.architecture.probing.slots import Sample
from dln_geometry.learning.architecture.probing.stages import Stages


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
    return (*polar.values(), *stages.offsets(samples, known).values())


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
