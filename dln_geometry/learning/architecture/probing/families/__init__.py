"""What linear algebra finds: groups of parameters, candidates for them, and changes of coordinates.

- `family`: `Family`, a group of parameters that is known by its generators;
- `folds`: coordinates in which a group acts simply: gains 1, shifts 0, weights without a norm;
- `pieces`: parameters that hold several maps, and groups of these;
- `terms`: candidates, and what one shift does to each parameter;
- `unreached`: what the gradients of a weight never reach.
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
    Joined,
    Offset,
    Polar,
    all_folded,
    first_row,
    folded_by,
    scaled,
    summed,
)
from dln_geometry.learning.architecture.probing.families.pieces import (
    StackedMaps,
    StackedPart,
    unstacked,
)
from dln_geometry.learning.architecture.probing.families.terms import (
    Strip,
    Term,
    biases,
    slots_of,
    terms_of,
    uniform_terms,
    vectors_beside,
    views_of,
    wholes_of,
)
from dln_geometry.learning.architecture.probing.families.unreached import Unreached, matrix_of

__all__ = [
    "ALGEBRAS",
    "Chart",
    "Charted",
    "Family",
    "Fold",
    "Joined",
    "Offset",
    "Polar",
    "Projection",
    "StackedMaps",
    "StackedPart",
    "Strip",
    "Term",
    "Unreached",
    "all_folded",
    "biases",
    "first_row",
    "folded_by",
    "matrix_of",
    "scaled",
    "slots_of",
    "summed",
    "terms_of",
    "uniform_terms",
    "unstacked",
    "vectors_beside",
    "views_of",
    "wholes_of",
]
