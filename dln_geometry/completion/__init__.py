"""Tables with holes, completed by deep linear networks: `MatrixCompleter`.

Open `estimator` first. `intake` reads what a user gives, the room `fitting` trains models and
chooses among them, `prediction` predicts entries with intervals and new rows, `report` tells what
was tried. `base` has the conventions of scikit-learn, which is used where it is installed.
"""

from __future__ import annotations

from dln_geometry.completion.estimator import MatrixCompleter
from dln_geometry.completion.fitting import (
    DEPTHS,
    LINKS,
    PATIENCE,
    DenseCompletion,
    Limits,
    Model,
    Offsets,
    Problem,
    ProfiledCompletion,
    Search,
    Setting,
    SideMeans,
    default_rank,
    dense_part,
    folds_of,
    train,
    train_together,
    units_of,
)

__all__ = [
    "DEPTHS",
    "LINKS",
    "PATIENCE",
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
    "dense_part",
    "folds_of",
    "train",
    "train_together",
    "units_of",
]
