"""Groups from the runs of entries that move together, and how much each moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.architecture.probing.families import Family, Strip

# Directions have no part outside a space, up to this.
CLOSE = 1e-6


def scaling(
    found: Mapping[Strip, float], d: int, shapes: Mapping[str, torch.Size]
) -> SymmetricGroup | None:
    """Return the scale or rescale of some slots, `None` if they are no runs."""
    order = list(shapes)
    slots = sorted(found, key=lambda s: (order.index(s.name), s.axis, s.start))
    sign = found[slots[0]]
    sides: tuple[list[Part], list[Part]] = ([], [])
    shares: tuple[list[float], list[float]] = ([], [])
    strided: dict[tuple[str, int, int, float], list[int]] = {}
    for slot in slots:
        share = found[slot] / sign
        shares[share < 0].append(share)
        if d == 1:
            sides[share < 0].append(Part(slot.name, slot.axis, 1, slot.size, slot.start))
        elif slot.stride == 1:
            sides[share < 0].append(Part(slot.name, slot.axis, d, 1, slot.start))
        else:
            shares[share < 0].pop()
            key = slot.name, slot.axis, slot.stride, round(share, 5)
            strided.setdefault(key, []).append(slot.start)
    for (name, axis, stride, share), starts in strided.items():
        if starts != list(range(stride)):
            return None
        sides[share < 0].append(Part(name, axis, d, stride))
        shares[share < 0].append(share)
    first, second_side = map(tuple, sides)
    powers = powers_of([*shares[0], *shares[1]])
    vectors = [all(len(shapes[p.name]) == 1 for p in side) for side in (first, second_side)]
    if second_side and vectors == [False, True]:
        # Gains come first: they can be folded into what reads them.
        first, second_side = second_side, first
        powers = (*powers[len(second_side) :], *powers[: len(second_side)])
    kind = "rescale" if second_side else "scale"
    return Family(kind, first, second_side, powers=powers)


def powers_of(shares: Sequence[float]) -> tuple[float, ...]:
    """Return the sizes of some shares over the least of them, nothing if all are the same."""
    least = min(map(abs, shares))
    if all(abs(abs(c) - least) <= CLOSE * least for c in shares):
        return ()
    return tuple(simple_share(abs(c) / least) for c in shares)


def simple_share(c: float) -> float:
    """Return the multiple of 1/60 that a number is up to its error, otherwise itself."""
    return round(60 * c) / 60 if abs(60 * c - round(60 * c)) < 1e-3 else c


def merged_blocks(groups: Sequence[SymmetricGroup]) -> list[SymmetricGroup]:
    """Return groups of consecutive blocks, such as heads, as one of several units."""

    def layout(group: SymmetricGroup) -> Any:
        sides = (group.first, group.second)
        parts = tuple(tuple(replace(p, units=1, start=0) for p in s) for s in sides)
        return group.kind, parts, getattr(group, "powers", ())

    def shifted(group: Any, by: int) -> Any:
        return tuple(p.start + by * p.block * p.inner for p in group.parts)

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
