"""What linear algebra finds: groups of parameters, candidates for them, and changes of coordinates.

- `family`: `Family`, a group of parameters that is known by its generators;
- `folds`: coordinates in which a group acts simply: gains 1, shifts 0, weights without a norm;
- `terms`: candidates, and what one shift does to each parameter.
"""

from __future__ import annotations

from dln_geometry.learning.architecture.probing.families.family import (
    ALGEBRAS,
    Family,
    Projection,
)
from dln_geometry.learning.architecture.probing.families.folds import (
    Chart,
    Charted,
    Fold,
    Offset,
    Polar,
    all_folded,
    folded_by,
    scaled,
    summed,
)
from dln_geometry.learning.architecture.probing.families.terms import (
    Strip,
    Term,
    slots_of,
    terms_of,
    uniform_terms,
    views_of,
    wholes_of,
)

__all__ = [
    "ALGEBRAS",
    "Chart",
    "Charted",
    "Family",
    "Fold",
    "Offset",
    "Polar",
    "Projection",
    "Strip",
    "Term",
    "all_folded",
    "folded_by",
    "scaled",
    "slots_of",
    "summed",
    "terms_of",
    "uniform_terms",
    "views_of",
    "wholes_of",
]
