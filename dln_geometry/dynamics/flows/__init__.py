"""Deterministic flows: gradient flows of losses and free energies, balancing, exact solutions.

Open `gradient_flow` first; `run` integrates any engine. A new flow is an `Engine` (see the room of
engines) and a public function that gives it to `run_flow`.
"""

from __future__ import annotations

from dln_geometry.dynamics.flows import exact
from dln_geometry.dynamics.flows.balancing import (
    balancing_flow,
    balancing_velocity,
    kirwan_ness_flow,
)
from dln_geometry.dynamics.flows.balancing_path import balancing_generator, moments_of
from dln_geometry.dynamics.flows.choice import collapsed_engine, sharded_engine
from dln_geometry.dynamics.flows.free_energy import FreeEnergy, free_energy_flow
from dln_geometry.dynamics.flows.gradient_flow import gradient_flow
from dln_geometry.dynamics.flows.validation import Validation
from dln_geometry.dynamics.trajectory import FlowError

__all__ = [
    "FlowError",
    "FreeEnergy",
    "Validation",
    "balancing_flow",
    "balancing_generator",
    "balancing_velocity",
    "collapsed_engine",
    "exact",
    "free_energy_flow",
    "gradient_flow",
    "kirwan_ness_flow",
    "moments_of",
    "sharded_engine",
]
