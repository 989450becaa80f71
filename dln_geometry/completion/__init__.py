"""Tables with holes, completed by deep linear networks: `MatrixCompleter`.

Open `estimator` first. `intake` reads what a user gives, `problem` holds the entries and their
units, `offsets` the means of the sides, `training` the flow of one model, `search` the choice by
held-out entries, `folding` completes new rows, `prediction` entries with intervals, `report` tells
what was tried. `base` has the conventions of scikit-learn, which is used where it is installed.
"""

from __future__ import annotations

from dln_geometry.completion.estimator import MatrixCompleter
from dln_geometry.completion.offsets import Offsets, ProfiledCompletion, SideMeans
from dln_geometry.completion.problem import LINKS, Problem, units_of
from dln_geometry.completion.search import DEPTHS, Search, default_rank
from dln_geometry.completion.training import Limits, Model, Setting, train

__all__ = [
    "DEPTHS",
    "LINKS",
    "Limits",
    "MatrixCompleter",
    "Model",
    "Offsets",
    "Problem",
    "ProfiledCompletion",
    "Search",
    "Setting",
    "SideMeans",
    "default_rank",
    "train",
    "units_of",
]
