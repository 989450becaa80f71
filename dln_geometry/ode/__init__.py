"""ode."""

from __future__ import annotations

from dln_geometry.ode.anderson import Secants, secant_step
from dln_geometry.ode.chebyshev import Chebyshev, coefficients, stage_number
from dln_geometry.ode.collocation import StepFailure, collocate, collocate_samples
from dln_geometry.ode.gauss import nodes_and_weights
from dln_geometry.ode.integrate import fixed_steps, integrate
from dln_geometry.ode.options import end_or_rules, save_times, until_rules
from dln_geometry.ode.recording import IntegrationError, Solution
from dln_geometry.ode.runge_kutta import METHODS

__all__ = [
    "METHODS",
    "Chebyshev",
    "IntegrationError",
    "Secants",
    "Solution",
    "StepFailure",
    "coefficients",
    "collocate",
    "collocate_samples",
    "end_or_rules",
    "fixed_steps",
    "integrate",
    "nodes_and_weights",
    "save_times",
    "secant_step",
    "stage_number",
    "until_rules",
]
