"""layers."""

from __future__ import annotations

from dln_geometry.learning.layers.deep_linear import DeepLinear
from dln_geometry.learning.layers.end_to_end_sgd import EndToEndSGD
from dln_geometry.learning.layers.initialisation import balanced_

__all__ = [
    "DeepLinear",
    "EndToEndSGD",
    "balanced_",
]
