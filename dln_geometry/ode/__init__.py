"""Integration of ordinary differential equations, for batches in which every sample has its steps.

`integrate` follows the flows: explicit Runge-Kutta methods with error control, and a stabilised
method where the problem is stiff. Open `integrate` first, then `loop` (one trial step after the
other); `control` chooses step sizes and the method, `recording` what is saved. `collocate` follows
the geodesics, in few steps of order 32.

A method is a value: an explicit one is a `RungeKutta` with its tableau, added to `METHODS` in
`runge_kutta`; another kind needs a stepper with the members of `ExplicitStepper`, and a line in
`MethodChoice`.
"""

from __future__ import annotations

from dln_geometry.ode.anderson import Secants
from dln_geometry.ode.chebyshev import Chebyshev, ChebyshevStepper, coefficients, stage_number
from dln_geometry.ode.collocation import GAUSS, Gauss, Journey, collocate
from dln_geometry.ode.integrate import integrate
from dln_geometry.ode.recording import (
    IntegrationError,
    Solution,
    end_or_rules,
    save_times,
    until_rules,
)
from dln_geometry.ode.runge_kutta import METHODS, BlockNorms, ExplicitStepper, fetch

__all__ = [
    "GAUSS",
    "METHODS",
    "BlockNorms",
    "Chebyshev",
    "ChebyshevStepper",
    "ExplicitStepper",
    "Gauss",
    "IntegrationError",
    "Journey",
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
