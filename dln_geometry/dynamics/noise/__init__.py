"""Random motions of matrices and networks: Brownian motion and Langevin dynamics.

Open `langevin` first: it chooses the steps (`product_steps`, `splitting_steps`, `network_steps`)
and hands them to the one loop of all random motions, `simulation.simulate`. A new motion is a
`Stepper`: the step of a state (a tuple of tensors), and the figures that are saved of it.
"""

from __future__ import annotations

from dln_geometry.dynamics.noise.flat_coordinates import FlatCoordinates
from dln_geometry.dynamics.noise.gauge_noise import gauge_noise
from dln_geometry.dynamics.noise.grids import Grid, time_grid
from dln_geometry.dynamics.noise.langevin import brownian_motion, langevin
from dln_geometry.dynamics.noise.network_steps import NetworkSteps, network_start
from dln_geometry.dynamics.noise.particles import Particles
from dln_geometry.dynamics.noise.product_steps import Gaussians, Thermostat
from dln_geometry.dynamics.noise.rotations import excess_rates, rotated
from dln_geometry.dynamics.noise.simulation import (
    OVERFLOW,
    Diverged,
    Show,
    State,
    Stepper,
    simulate,
)
from dln_geometry.dynamics.noise.splitting_steps import SplittingSteps, rotates_first
from dln_geometry.dynamics.noise.watch import StepWatch

__all__ = [
    "OVERFLOW",
    "Diverged",
    "FlatCoordinates",
    "Gaussians",
    "Grid",
    "NetworkSteps",
    "Particles",
    "Show",
    "SplittingSteps",
    "State",
    "StepWatch",
    "Stepper",
    "Thermostat",
    "brownian_motion",
    "excess_rates",
    "gauge_noise",
    "langevin",
    "network_start",
    "rotated",
    "rotates_first",
    "simulate",
    "time_grid",
]
