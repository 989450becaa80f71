"""Dimensions of modules that are too large for the rank of their outputs, by random probes."""

from __future__ import annotations

from collections.abc import Sequence

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.probing.finding import Finder
from dln_geometry.learning.architecture.probing.jacobian import Prober
from dln_geometry.learning.architecture.probing.ranks import null_space
from dln_geometry.learning.architecture.sampling import probed


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
