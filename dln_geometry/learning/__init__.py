"""Any torch model: modules, initialisers and an optimiser for deep linear layers."""

from __future__ import annotations

from dln_geometry.learning.initialisation import balanced_
from dln_geometry.learning.modules import DeepLinear
from dln_geometry.learning.optim import EndToEndSGD

__all__ = ["DeepLinear", "EndToEndSGD", "balanced_"]
