"""Which mirrors of a network collapse: by weight decay, by the noise of minibatches.

Open `report` first: it puts together `detection` (which mirrors an architecture has), `thresholds`
(curvature and weight decay) and `dead` (units that are off). `exponents` is the noise of SGD.
`sparsify` cuts units that are off, by `pruning`. A new kind of mirror is a `kind` of `MirrorFamily`
in `detection`.
"""

from __future__ import annotations

from dln_geometry.learning.collapse.dead import DeadUnit
from dln_geometry.learning.collapse.detection import MirrorFamily, mirrors_of
from dln_geometry.learning.collapse.exponents import (
    Lyapunov,
    batch_curvatures,
    lyapunov,
    noise_threshold,
)
from dln_geometry.learning.collapse.report import Collapse, CollapseReport, collapse_report
from dln_geometry.learning.collapse.sparsify import Sparsified, sparsify
from dln_geometry.learning.collapse.thresholds import Stability, curvature, stability

__all__ = [
    "Collapse",
    "CollapseReport",
    "DeadUnit",
    "Lyapunov",
    "MirrorFamily",
    "Sparsified",
    "Stability",
    "batch_curvatures",
    "collapse_report",
    "curvature",
    "lyapunov",
    "mirrors_of",
    "noise_threshold",
    "sparsify",
    "stability",
]
