"""Symmetric groups from what a module computes: linear algebra decides about candidates.

- `operators`: the table of operators, which propose groups, and those without a rule;
- `jacobian`: the Jacobian of the outputs at random parameters, the directions of groups; `ranks`:
  its null space, spans;
- `families`: the groups that are found, `Family`, some in other coordinates; candidates;
- `grouping`: groups from these;
- `slots`: the combinations of candidates that change no output;
- `stages`: scalings, shifts, matrices; `translations`; `leftovers`: what is tried last;
  `charting`: coordinates in which it is tried again;
- `finding`: the order of the search; `counting`: the dimensions;
- `coverage`: `symmetries_of` and `symmetry_coverage`.
"""

from __future__ import annotations

from dln_geometry.learning.architecture.probing.coverage import (
    SymmetryCoverage,
    symmetries_by_graph,
    symmetries_of,
    symmetry_coverage,
)
from dln_geometry.learning.architecture.probing.families import Family
from dln_geometry.learning.architecture.probing.operators import register_operator

__all__ = [
    "Family",
    "SymmetryCoverage",
    "register_operator",
    "symmetries_by_graph",
    "symmetries_of",
    "symmetry_coverage",
]
