"""Integrators of ordinary differential equations for batches; every sample takes its own steps.

`integrate` follows the flows, by explicit Runge-Kutta methods, and where the problem is stiff by a
stabilised one or, for small states, by a linearly implicit one. Open `integrate` first, then `loop`
(one trial step); `methods` holds the methods and switches between them, `control` chooses the step
sizes, `watch` ends runs that get no further, `narrowing` lets samples that have stopped leave the
batch, `recording` saves rows, `checkpoint` stores a run and continues it. `collocate` follows the
geodesics, at order 32.
To add an explicit method, add its `RungeKutta` to `METHODS`; another kind needs a stepper with
the members of `ExplicitStepper`, and lines in `methods.choice`.
"""

from __future__ import annotations

from dln_geometry.ode.anderson import Secants
from dln_geometry.ode.checkpoint import Keeper, ResumeError
from dln_geometry.ode.collocation import GAUSS, Gauss, Journey, collocate
from dln_geometry.ode.integrate import integrate
from dln_geometry.ode.methods import (
    METHODS,
    MOST_NUMBERS,
    RODAS,
    BlockNorms,
    Chebyshev,
    ChebyshevStepper,
    ExplicitStepper,
    KnownField,
    Parts,
    RepeatedStepper,
    Rosenbrock,
    RosenbrockStepper,
    Tape,
    TapeError,
    coefficients,
    differences,
    fetch,
    stage_number,
)
from dln_geometry.ode.recording import (
    MOST_EVALUATIONS,
    IntegrationError,
    Solution,
    end_or_rules,
    save_times,
    until_rules,
)

__all__ = [
    "GAUSS",
    "METHODS",
    "MOST_EVALUATIONS",
    "MOST_NUMBERS",
    "RODAS",
    "BlockNorms",
    "Chebyshev",
    "ChebyshevStepper",
    "ExplicitStepper",
    "Gauss",
    "IntegrationError",
    "Journey",
    "Keeper",
    "KnownField",
    "Parts",
    "RepeatedStepper",
    "ResumeError",
    "Rosenbrock",
    "RosenbrockStepper",
    "Secants",
    "Solution",
    "Tape",
    "TapeError",
    "coefficients",
    "collocate",
    "differences",
    "end_or_rules",
    "fetch",
    "integrate",
    "save_times",
    "stage_number",
    "until_rules",
]
