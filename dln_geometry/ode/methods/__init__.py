"""The methods of `integrate` as values, and the steppers that try one step of a batch.

`runge_kutta` holds explicit methods, `chebyshev` a stabilised one, `rosenbrock` a linearly implicit
one, and `choice` the switch between them during a run.
"""

from __future__ import annotations

from dln_geometry.ode.methods.chebyshev import (
    RKC,
    SAFETY,
    Chebyshev,
    ChebyshevStepper,
    coefficients,
    stage_number,
)
from dln_geometry.ode.methods.choice import (
    KnownField,
    Method,
    MethodChoice,
    Methods,
    Stepper,
    methods_of,
)
from dln_geometry.ode.methods.jacobians import Jacobian, Parts, differences
from dln_geometry.ode.methods.norms import BlockNorms, move_pieces, norms_by_pieces, pieces_of
from dln_geometry.ode.methods.rosenbrock import (
    MOST_NUMBERS,
    RODAS,
    Projection,
    Rosenbrock,
    RosenbrockStepper,
)
from dln_geometry.ode.methods.runge_kutta import (
    METHODS,
    ExplicitStepper,
    Field,
    RungeKutta,
    fetch,
    upload,
)

__all__ = [
    "METHODS",
    "MOST_NUMBERS",
    "RKC",
    "RODAS",
    "SAFETY",
    "BlockNorms",
    "Chebyshev",
    "ChebyshevStepper",
    "ExplicitStepper",
    "Field",
    "Jacobian",
    "KnownField",
    "Method",
    "MethodChoice",
    "Methods",
    "Parts",
    "Projection",
    "Rosenbrock",
    "RosenbrockStepper",
    "RungeKutta",
    "Stepper",
    "coefficients",
    "differences",
    "fetch",
    "methods_of",
    "move_pieces",
    "norms_by_pieces",
    "pieces_of",
    "stage_number",
    "upload",
]
