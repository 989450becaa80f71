"""noise."""

from __future__ import annotations

from dln_geometry.dynamics.noise.chains import trace
from dln_geometry.dynamics.noise.deep_split_steps import DeepSplitting
from dln_geometry.dynamics.noise.langevin import brownian_motion, langevin
from dln_geometry.dynamics.noise.network_steps import Upstairs, upstairs_start
from dln_geometry.dynamics.noise.paths import (
    as_confinement,
    as_particles,
    as_singular_values,
    confined,
    deterministic,
    follow,
    schedule,
    simulate,
    stacked,
    warn_if_coarse,
)
from dln_geometry.dynamics.noise.product_steps import Gaussians, StepWatch, Thermostat
from dln_geometry.dynamics.noise.rotations import deep_rates, excess_rates, polished, rotated
from dln_geometry.dynamics.noise.simulation import Diverged, Grid, walk
from dln_geometry.dynamics.noise.splitting_steps import Splitting, rotates_first

__all__ = [
    "DeepSplitting",
    "Diverged",
    "Gaussians",
    "Grid",
    "Splitting",
    "StepWatch",
    "Thermostat",
    "Upstairs",
    "as_confinement",
    "as_particles",
    "as_singular_values",
    "brownian_motion",
    "confined",
    "deep_rates",
    "deterministic",
    "excess_rates",
    "follow",
    "langevin",
    "polished",
    "rotated",
    "rotates_first",
    "schedule",
    "simulate",
    "stacked",
    "trace",
    "upstairs_start",
    "walk",
    "warn_if_coarse",
]
