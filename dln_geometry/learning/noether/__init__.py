"""Noether's learning dynamics: charges, their motion, and their exact laws in every step.

Open `momentum_law` for the law of one step of SGD, `discrete_laws` for it on dicts of parameters,
`charges` and `mechanics` for continuous time, `overdamped` and `adaptive` for slow motion.
"""

from __future__ import annotations

from dln_geometry.learning.noether.adaptive import EffectiveRMSProp, RMSPropState, as_rmsprop
from dln_geometry.learning.noether.charges import (
    charge,
    charge_rate,
    kinetic_asymmetry,
    noether_residual,
)
from dln_geometry.learning.noether.discrete_laws import (
    Charges,
    DiscreteLaw,
    discrete_residual,
    preconditioned_charge,
)
from dln_geometry.learning.noether.equilibrium import NoiseEquilibrium, noise_equilibrium
from dln_geometry.learning.noether.mechanics import acceleration, kinetic_energy
from dln_geometry.learning.noether.momentum_law import (
    charge_after,
    nesterov_direction,
    nesterov_products,
    pushes,
)
from dln_geometry.learning.noether.overdamped import (
    decay_factor,
    growth,
    overdamped_charge,
    overdamped_norm,
    stationary_angle,
    stationary_norm,
)

__all__ = [
    "Charges",
    "DiscreteLaw",
    "EffectiveRMSProp",
    "NoiseEquilibrium",
    "RMSPropState",
    "acceleration",
    "as_rmsprop",
    "charge",
    "charge_after",
    "charge_rate",
    "decay_factor",
    "discrete_residual",
    "growth",
    "kinetic_asymmetry",
    "kinetic_energy",
    "nesterov_direction",
    "nesterov_products",
    "noether_residual",
    "noise_equilibrium",
    "overdamped_charge",
    "overdamped_norm",
    "preconditioned_charge",
    "pushes",
    "stationary_angle",
    "stationary_norm",
]
