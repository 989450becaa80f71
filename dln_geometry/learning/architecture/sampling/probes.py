"""Probe modules that are too large for the rank of a Jacobian, on a few units of every axis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.sampling.axes import SampledAxes
from dln_geometry.learning.architecture.sampling.spans import (
    MOST_OUTSIDE,
    Direction,
    GroupSpan,
    norm_of,
    outside,
)

# Gradients of the outputs at some parameters, in the parameters named; never ends.
Gradients = Callable[[Mapping[str, Tensor], Sequence[str]], Iterator[Direction]]

# Seconds for the gradients, and for the products with all generators.
_SECONDS = 100.0
_MOST_UNITS, _LOOKS = 3, 12
# Entries of gradients that are kept, to try groups on.
_ENTRIES = 1e8
# About so many products make the dimension of a span and the rests of a few directions.
_PRODUCTS = 150
_FLAT = 1e-7


@dataclass(frozen=True)
class Probes:
    """What random probes say of the flat directions of a large module.

    Attributes
    ----------
    found : int
        Dimension of the span of the groups.
    beyond : int
        Flat directions among those probed that are not in it, at most 8.
    rank : int
        Directions that do change the outputs, independent of each other.
    told : str
        What was probed, or why nothing was.
    is_complete : bool
        Whether all flat directions probed are in the span, and inputs reach all parameters.
    """

    found: int
    beyond: int
    rank: int
    told: str
    is_complete: bool


def probed(
    gradients: Gradients,
    points: Iterable[Mapping[str, Tensor]],
    names: Sequence[str],
    groups: Sequence[SymmetricGroup],
    cut: Callable[[Tensor], tuple[Tensor, float]],
    generator: torch.Generator,
) -> Probes:
    """Return the dimension of groups, and whether probes show more flat directions.

    Of the points the first is taken at which gradients reach all units, or the one that leaves the
    fewest out. `cut` returns the null space of rows, a basis in its columns, and the gap.
    """
    best: tuple[int, Mapping[str, Tensor], list[Direction], dict[str, Tensor], float] | None = None
    for point in points:
        looks, live, seconds = _looks(gradients, point, names)
        idle = sum(map(_idle, live.values()))
        if looks and (best is None or idle < best[0]):
            best = idle, point, looks, live, seconds
        if not idle:
            break
    if best is None:
        return Probes(0, 0, 0, "the outputs have no gradient in the parameters", is_complete=False)
    idle, params, looks, live, seconds = best
    flat = [g for g in groups if g.kind != "permutation" and _passes(g, params, looks)]
    span = GroupSpan(flat, params)
    started = time.monotonic()
    if span.count:
        span.pulled(span.moved(torch.ones(span.count).to(next(iter(params.values())))))
    if _PRODUCTS * (time.monotonic() - started) > _SECONDS:
        told = "the number of generators is counted: products with them take too long to tell more"
        return Probes(span.count, 0, 0, told, is_complete=False)
    found = span.dimension()
    own = {n: params[n] for n in names}
    axes, units = _sampled_axes(own, live, generator, int(_SECONDS / seconds))
    if axes is None:
        told = f"one gradient takes {seconds:.1f} s: too long for probes"
        return Probes(found, 0, 0, told, is_complete=False)
    count = int(1.1 * axes.count) + 10
    drawn = gradients(params, list(axes.params))
    rows = [axes.row(g) for _, g in zip(range(count), drawn, strict=False)]
    if len(rows) < count:
        told = f"the outputs give {len(rows)} equations for {axes.count} probes"
        return Probes(found, 0, 0, told, is_complete=False)
    null, gap = cut(torch.stack(rows))

    def mixtures() -> Iterator[Direction]:
        while True:
            weights = torch.randn(null.shape[1], generator=generator, device=generator.device)
            yield axes.direction(null @ weights.to(null))

    beyond = outside(span, mixtures()) if null.shape[1] else 0
    some = len(axes.params)
    more = f"{beyond} or more" if beyond == MOST_OUTSIDE else beyond or "none"
    over = "every axis" if some == len(names) else f"the axes of {some} of {len(names)} parameters"
    told = (
        f"random probes: of {axes.count} directions of {units} units on {over}, {null.shape[1]} "
        f"are flat (gap {gap:.0e}), {more} of them in no group"
    )
    if idle:
        told += f"; {idle} entries have no gradient on these inputs"
    rank = axes.count - null.shape[1]
    return Probes(found, beyond, rank, told, is_complete=not (beyond or idle))


def _looks(
    gradients: Gradients, params: Mapping[str, Tensor], names: Sequence[str]
) -> tuple[list[Direction], dict[str, Tensor], float]:
    """Return a few gradients, which entries any of some more reach, and the seconds of one."""
    started = time.monotonic()
    live = {n: torch.zeros_like(params[n], dtype=torch.bool) for n in names}
    kept = max(2, int(_ENTRIES / max(1, sum(x.numel() for x in live.values()))))
    found: list[Direction] = []
    count = 0
    for count, own in zip(range(1, _LOOKS + 1), gradients(params, names), strict=False):  # noqa: B007
        found += [own] * (len(found) < kept)
        for name, x in own.items():
            live[name] |= x != 0
    return found, live, (time.monotonic() - started) / max(count, 1)


def _passes(group: SymmetricGroup, params: Mapping[str, Tensor], rows: Sequence[Direction]) -> bool:
    """Tell whether gradients show no response to a random generator of a group."""
    span = GroupSpan([group], params)
    generator = torch.Generator("cpu").manual_seed(0)
    s = torch.randn(span.count, generator=generator, dtype=torch.float64)
    field = span.moved(s.to(rows[0][group.names[0]]))
    for row in rows:
        products = [row[n] * x for n, x in field.items()]
        response = abs(sum(float(x.sum()) for x in products))
        usual = sum(float(x.square().sum()) for x in products) ** 0.5
        if response > _FLAT * usual + 1e-12 * norm_of(row) * norm_of(field):
            return False
    return True


def _sampled_axes(
    params: Mapping[str, Tensor],
    live: Mapping[str, Tensor],
    generator: torch.Generator,
    most: int,
) -> tuple[SampledAxes | None, int]:
    """Return directions for which so many gradients are enough, and the units of each axis."""
    for units in range(_MOST_UNITS, 0, -1):
        axes = SampledAxes(params, _chosen_units(params, live, units, generator))
        if 1.1 * axes.count + 10 <= most:
            return axes, units
    # Some parameters that stand beside each other: most symmetries do not reach far.
    names, units = list(params), 2
    places = _chosen_units(params, live, units, generator)
    start = int(torch.randint(len(names), (), generator=generator, device=generator.device))
    chosen: SampledAxes | None = None
    for count in range(3, len(names)):
        first = min(start, len(names) - count)
        own = {n: params[n] for n in names[first : first + count]}
        axes = SampledAxes(own, places)
        if 1.1 * axes.count + 10 > most:
            break
        chosen = axes
    return chosen, units


def _idle(live: Tensor) -> int:
    """Return the number of entries in slices that no gradient reaches: unused rows, dead units."""
    idle = torch.zeros_like(live)
    for axis in range(min(live.ndim, 2)):
        rows = live.movedim(axis, 0).reshape(live.shape[axis], -1).any(1)
        shape = [1] * live.ndim
        shape[axis] = -1
        idle = idle | ~rows.reshape(shape)
    return int(idle.sum())


def _chosen_units(
    params: Mapping[str, Tensor],
    live: Mapping[str, Tensor],
    units: int,
    generator: torch.Generator,
) -> dict[int, Tensor]:
    """Choose units for each length of an axis, two neighbours first, that have gradients."""
    options: dict[int, Tensor] = {}
    for name, q in params.items():
        for axis, n in enumerate(q.shape[:2]):
            if n:
                own = live[name].movedim(axis, 0).reshape(n, -1).any(1)
                options[n] = options[n] & own if n in options else own
    found = {}
    for n, seen in options.items():
        able = (
            torch.nonzero(seen).flatten() if bool(seen.any()) else torch.arange(n).to(seen.device)
        )
        order = torch.randperm(len(able), generator=generator, device=generator.device)
        order = order.to(able.device)
        beside = (order[:1] + 1) % len(able)
        mixed = torch.cat([order[:1], beside, order[1:][order[1:] != beside]])
        found[n] = able[mixed[: min(units, len(able))].unique()]
    return found
