"""The dimensions that groups have and could have, from the rank of the Jacobian, or from probes."""

from __future__ import annotations

from collections.abc import Sequence

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.probing.finding import Finder
from dln_geometry.learning.architecture.probing.jacobian import Prober
from dln_geometry.learning.architecture.probing.ranks import (
    Span,
    null_space,
    nullity,
    nullity_beyond,
)
from dln_geometry.learning.architecture.sampling import probed

# Up to so many parameters the rank is computed.
MOST_FOR_RANK = 5000
# A rank with singular values of about the same size on both sides of the cut is not known.
_LEAST_GAP = 10.0
# Sizes of noise and of gains where the rank is counted again if directions are missing, and at how
# many of these it is counted also where units switch.
_ELSEWHERE = ((2.0, 1.0), (0.5, 4.0), (0.5, 10.0), *[(1.0, 1.0), (2.0, 1.0)] * 5)
_SWITCHED = 7


def dimensions(search: Finder, groups: Sequence[SymmetricGroup]) -> tuple[int, int | None]:
    """Return the dimension that some groups have, and the one that they could have."""
    p = search.prober
    span = Span(p.total, search.samples[0].rows)
    for group in groups:
        if group.kind != "permutation":
            span.add(search.fields(group))
    found = span.dimension
    if not search.samples[0].rows.shape[0]:
        search.reason = "the outputs have no gradient in the parameters"
        return found, None
    if p.total > MOST_FOR_RANK:
        search.reason = f"the rank of the outputs is not computed beyond {MOST_FOR_RANK} parameters"
        return found, None
    if found == search.true:
        rows = search.samples[0].rows
    else:
        whole = search.null is not None
        rows = search.samples[0].rows if whole else p.rows(search.base, search.count)
        more, search.gap = nullity_beyond(rows, span.basis, p.tolerance)
        search.true = found + more
        seen = [search.true]
        for k, (size, gain) in enumerate(_ELSEWHERE):
            # If it is the same everywhere, no units are on at some points only.
            if found >= min(seen) or (len(seen) > 5 and len(set(seen)) == 1):
                break
            seen.append(nullity(p.rows(p.point(size, gain), search.count), p.tolerance)[0])
            switched = (
                search.switched(search.count) if k < _SWITCHED and found < min(seen) else None
            )
            if switched is not None:
                seen.append(nullity(switched[1], p.tolerance)[0])
        search.true = min(seen)
    if rows.shape[0] < p.total:
        search.reason = f"the outputs give {rows.shape[0]} equations for {p.total} parameters"
        return found, None
    if search.gap < _LEAST_GAP:
        search.reason = f"the singular values of the outputs leave a gap of {search.gap:.1f} only"
        return found, None
    return found, search.true


def by_probes(
    search: Finder | Prober, groups: Sequence[SymmetricGroup], found: int
) -> tuple[int, int | None, tuple[int, int], str]:
    """Return the dimensions found and true, the bounds and the reason, of a large module."""
    prober = search.prober if isinstance(search, Finder) else search
    reason = f"{prober.total} parameters are too many for the rank of the outputs; "
    try:
        # Units that are off on all inputs at one point may be on at another.
        far = map(prober.point, (0.5, 0.1, 1.0))
        points = [search.base] if isinstance(search, Finder) else far
        probes = probed(
            prober.gradients, points, tuple(prober.shapes), groups,
            lambda rows: null_space(rows, prober.tolerance), prober.generator,
        )  # fmt: skip
    except RuntimeError as error:
        reason = f"{reason}the module fails at other parameters ({error})"
        return found, None, (0, prober.total), reason
    found = found if isinstance(search, Finder) else probes.found
    bounds = (found + probes.beyond, prober.total - probes.rank)
    return found, found if probes.is_complete else None, bounds, reason + probes.told
