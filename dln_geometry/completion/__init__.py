"""Tables with holes, completed by deep linear networks: `MatrixCompleter`.

Open `estimator` first. `intake` reads what a user gives, `problem` holds the entries and their
units, `offsets` the means of the sides, `training` a run and its settings, `models` what is
trained, `search` the choice by held-out entries, `prediction` entries with intervals and new rows,
`report` tells what was tried. `base` has the conventions of scikit-learn, which is used where it is
installed.
"""

from __future__ import annotations

from dln_geometry.completion.estimator import MatrixCompleter
from dln_geometry.completion.models import DenseCompletion, train, train_together
from dln_geometry.completion.offsets import (
    Offsets,
    ProfiledCompletion,
    SideMeans,
)
from dln_geometry.completion.problem import LINKS, Problem, default_rank, folds_of, units_of
from dln_geometry.completion.search import DEPTHS, Search
from dln_geometry.completion.training import Limits, Model, Setting

__all__ = [
    "DEPTHS",
    "LINKS",
    "DenseCompletion",
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
    "folds_of",
    "train",
    "train_together",
    "units_of",
]
