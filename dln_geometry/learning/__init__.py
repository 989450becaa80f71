"""Any torch model: deep linear layers and their optimiser, symmetries and the motion of charges."""

from __future__ import annotations

from dln_geometry.learning import bridge
from dln_geometry.learning.architecture.groups import Part, SymmetricGroup
from dln_geometry.learning.architecture.search import symmetries_of
from dln_geometry.learning.bridge import balance_step, momentum_balance_step
from dln_geometry.learning.initialisation import balanced_
from dln_geometry.learning.mirror.collapse import Collapse, CollapseReport, collapse_report
from dln_geometry.learning.mirror.constraint import dcs_norm, dcs_parameter_groups, dcs_penalty
from dln_geometry.learning.mirror.dcs import dcs_
from dln_geometry.learning.mirror.detection import MirrorFamily, mirrors_of
from dln_geometry.learning.mirror.exponents import (
    Lyapunov,
    batch_curvatures,
    lyapunov,
    noise_threshold,
)
from dln_geometry.learning.mirror.mirrors import Mirror
from dln_geometry.learning.mirror.syre import syre_
from dln_geometry.learning.mirror.thresholds import Stability, curvature, stability
from dln_geometry.learning.modules import DeepLinear
from dln_geometry.learning.monitor.charge_monitor import ChargeMonitor
from dln_geometry.learning.monitor.record import ChargeRecord, ChargeReport
from dln_geometry.learning.motion.discretization import (
    accumulated_error,
    discretization_error,
    max_learning_rate,
)
from dln_geometry.learning.motion.equation import equation_of_motion, modified_loss
from dln_geometry.learning.motion.iterates import (
    equation_of_motion_from_iterates,
    momentum_step,
    motion_of_iterates,
    with_velocity,
    without_velocity,
)
from dln_geometry.learning.motion.rates import scale_velocity, translation_rate
from dln_geometry.learning.motion.series import counter_terms
from dln_geometry.learning.motion.spectrum import hessian_product, sharpness
from dln_geometry.learning.noether.adaptive import EffectiveRMSProp, RMSPropState, as_rmsprop
from dln_geometry.learning.noether.charges import (
    charge,
    charge_rate,
    kinetic_asymmetry,
    noether_residual,
)
from dln_geometry.learning.noether.discrete_laws import Charges, DiscreteLaw, discrete_residual
from dln_geometry.learning.noether.mechanics import acceleration, kinetic_energy
from dln_geometry.learning.noether.overdamped import (
    overdamped_charge,
    overdamped_norm,
    stationary_angle,
    stationary_norm,
)
from dln_geometry.learning.optim import EndToEndSGD
from dln_geometry.learning.parameters import ModuleLoss, flatten, functionalize, unflatten
from dln_geometry.learning.rules import Rule
from dln_geometry.learning.symmetry.actions import Rescale, Scale, Translation
from dln_geometry.learning.symmetry.claims import check_symmetric, is_symmetric, symmetry_residual
from dln_geometry.learning.symmetry.symmetries import Symmetry, SymmetryError
from dln_geometry.learning.symmetry.turns import Gauge, Rotation

__all__ = [
    "ChargeMonitor",
    "ChargeRecord",
    "ChargeReport",
    "Charges",
    "Collapse",
    "CollapseReport",
    "DeepLinear",
    "DiscreteLaw",
    "EffectiveRMSProp",
    "EndToEndSGD",
    "Gauge",
    "Lyapunov",
    "Mirror",
    "MirrorFamily",
    "ModuleLoss",
    "Part",
    "RMSPropState",
    "Rescale",
    "Rotation",
    "Rule",
    "Scale",
    "Stability",
    "SymmetricGroup",
    "Symmetry",
    "SymmetryError",
    "Translation",
    "acceleration",
    "accumulated_error",
    "as_rmsprop",
    "balance_step",
    "balanced_",
    "batch_curvatures",
    "bridge",
    "charge",
    "charge_rate",
    "check_symmetric",
    "collapse_report",
    "counter_terms",
    "curvature",
    "dcs_",
    "dcs_norm",
    "dcs_parameter_groups",
    "dcs_penalty",
    "discrete_residual",
    "discretization_error",
    "equation_of_motion",
    "equation_of_motion_from_iterates",
    "flatten",
    "functionalize",
    "hessian_product",
    "is_symmetric",
    "kinetic_asymmetry",
    "kinetic_energy",
    "lyapunov",
    "max_learning_rate",
    "mirrors_of",
    "modified_loss",
    "momentum_balance_step",
    "momentum_step",
    "motion_of_iterates",
    "noether_residual",
    "noise_threshold",
    "overdamped_charge",
    "overdamped_norm",
    "scale_velocity",
    "sharpness",
    "stability",
    "stationary_angle",
    "stationary_norm",
    "symmetries_of",
    "symmetry_residual",
    "syre_",
    "translation_rate",
    "unflatten",
    "with_velocity",
    "without_velocity",
]
