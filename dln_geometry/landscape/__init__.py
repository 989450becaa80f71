"""The landscape of quadratic losses of layers: critical points, fibres, learning coefficients.

`critical_factors` makes critical points of any rank and modes, `classify` tells minimisers, strict
and other saddles apart, `layer_hessian` is the second derivative in all layers. `RankPattern` names
a stratum of the layers with one end-to-end matrix; `learning_coefficient` is the exponent of the
volume of nearly optimal layers. Open `critical_points` first.
"""

from __future__ import annotations

from dln_geometry.landscape.critical_points import (
    CriticalPoint,
    classify,
    critical_factors,
    saddle_index,
)
from dln_geometry.landscape.hessian import layer_hessian
from dln_geometry.landscape.learning_coefficient import (
    LearningCoefficient,
    estimate_learning_coefficient,
    learning_coefficient,
)
from dln_geometry.landscape.strata import RankPattern, fibre_dimension, strata

__all__ = [
    "CriticalPoint",
    "LearningCoefficient",
    "RankPattern",
    "classify",
    "critical_factors",
    "estimate_learning_coefficient",
    "fibre_dimension",
    "layer_hessian",
    "learning_coefficient",
    "saddle_index",
    "strata",
]
