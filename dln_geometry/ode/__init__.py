"""Integrators of ordinary differential equations for batches; every sample takes its own steps.

`integrate` follows the flows, by explicit Runge-Kutta methods, and by a stabilised one where the
problem is stiff. Open `integrate` first, then `loop` (one trial step); `control` chooses the step
sizes and the method, `watch` ends runs that get no further, `recording` saves rows, `checkpoint`
stores a run and continues it. `collocate` follows the geodesics, at order 32.
To add an explicit method, add its `RungeKutta` to `METHODS`; another kind needs a stepper with
the members of `ExplicitStepper`, and a line in `MethodChoice`.
"""

from __future__ import annotations

from dln_geometry.ode.anderson import Secants
from dln_geometry.ode.chebyshev import Chebyshev, ChebyshevStepper, coefficients, stage_number
from dln_geometry.ode.collocation import GAUSS, Gauss, Journey, collocate
from dln_geometry.ode.integrate import integrate
from dln_geometry.ode.recording import (
    MOST_EVALUATIONS,
    IntegrationError,
    ResumeError,
    Solution,
    end_or_rules,
    save_times,
    until_rules,
)
from dln_geometry.ode.runge_kutta import METHODS, BlockNorms, ExplicitStepper, fetch

__all__ = [
    "GAUSS",
    "METHODS",
    "MOST_EVALUATIONS",
    "BlockNorms",
    "Chebyshev",
    "ChebyshevStepper",
    "ExplicitStepper",
    "Gauss",
    "IntegrationError",
    "Journey",
    "ResumeError",
    "Secants",
    "Solution",
    "coefficients",
    "collocate",
    "end_or_rules",
    "fetch",
    "integrate",
    "save_times",
    "stage_number",
    "until_rules",
]
