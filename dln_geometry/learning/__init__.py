"""Any torch model: deep linear layers and their optimiser, symmetries and the motion of charges."""

from __future__ import annotations

from dln_geometry.learning.actions import Gauge, Rescale, Rotation, Scale, Translation
from dln_geometry.learning.adaptive import EffectiveRMSProp, RMSPropState, as_rmsprop
from dln_geometry.learning.discrete_laws import Charges, DiscreteLaw, discrete_residual
from dln_geometry.learning.initialisation import balanced_
from dln_geometry.learning.modules import DeepLinear
from dln_geometry.learning.noether import (
    acceleration,
    charge,
    charge_rate,
    kinetic_asymmetry,
    kinetic_energy,
    noether_residual,
)
from dln_geometry.learning.optim import EndToEndSGD
from dln_geometry.learning.overdamped import (
    overdamped_charge,
    overdamped_norm,
    stationary_angle,
    stationary_norm,
)
from dln_geometry.learning.parameters import ModuleLoss, flatten, functionalize, unflatten
from dln_geometry.learning.rules import Rule
from dln_geometry.learning.symmetry import (
    Symmetry,
    SymmetryError,
    check_symmetric,
    is_symmetric,
    symmetry_residual,
)

__all__ = [
    "Charges",
    "DeepLinear",
    "DiscreteLaw",
    "EffectiveRMSProp",
    "EndToEndSGD",
    "Gauge",
    "ModuleLoss",
    "RMSPropState",
    "Rescale",
    "Rotation",
    "Rule",
    "Scale",
    "Symmetry",
    "SymmetryError",
    "Translation",
    "acceleration",
    "as_rmsprop",
    "balanced_",
    "charge",
    "charge_rate",
    "check_symmetric",
    "discrete_residual",
    "flatten",
    "functionalize",
    "is_symmetric",
    "kinetic_asymmetry",
    "kinetic_energy",
    "noether_residual",
    "overdamped_charge",
    "overdamped_norm",
    "stationary_angle",
    "stationary_norm",
    "symmetry_residual",
    "unflatten",
]
