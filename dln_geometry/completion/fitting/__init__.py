"""Train models of a table with holes, and choose among them by held-out entries.

Open `problem` first: the entries and their units. `offsets` are the means of the sides,
`equations` how they are found, `training` a run and its settings, `models` what is trained (small
tables as `dense` matrices), `errors` their errors, `comparison` tries depths and decays (on a
`subtable` if there are very many entries), `residuals` lower a decay without held-out entries,
`search` trains what was chosen.
"""

from __future__ import annotations

from dln_geometry.completion.fitting.dense import DenseCompletion
from dln_geometry.completion.fitting.models import train, train_together
from dln_geometry.completion.fitting.offsets import Offsets, ProfiledCompletion, SideMeans
from dln_geometry.completion.fitting.problem import (
    LINKS,
    SHRINK,
    Problem,
    default_rank,
    folds_of,
    units_of,
)
from dln_geometry.completion.fitting.search import DEPTHS, Search
from dln_geometry.completion.fitting.subtable import dense_part
from dln_geometry.completion.fitting.training import (
    PATIENCE,
    Choice,
    Limits,
    Model,
    Setting,
    side_means_alone,
)

__all__ = [
    "DEPTHS",
    "LINKS",
    "PATIENCE",
    "SHRINK",
    "Choice",
    "DenseCompletion",
    "Limits",
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
    "side_means_alone",
    "train",
    "train_together",
    "units_of",
]
