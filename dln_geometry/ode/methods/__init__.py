"""The methods of `integrate` as values, and the steppers that try one step of a batch.

`runge_kutta` holds explicit methods, `chebyshev` a stabilised one, `rosenbrock` a linearly implicit
one, and `choice` the switch between them during a run. `repeated` makes explicit steps of a small
state by calls of numpy, noted on a `tape`; `calls` says which call repeats which operation.
"""

from __future__ import annotations

from dln_geometry.ode.methods.calls import TapeError
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
from dln_geometry.ode.methods.norms import (
    BlockNorms,
    move_pieces,
    norms_by_pieces,
    norms_of,
    pieces_of,
)
from dln_geometry.ode.methods.repeated import RepeatedStepper
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
)
from dln_geometry.ode.methods.tape import Tape
from dln_geometry.ode.methods.transfers import fetch, upload

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
    "RepeatedStepper",
    "Rosenbrock",
    "RosenbrockStepper",
    "RungeKutta",
    "Stepper",
    "Tape",
    "TapeError",
    "coefficients",
    "differences",
    "fetch",
    "methods_of",
    "move_pieces",
    "norms_by_pieces",
    "norms_of",
    "pieces_of",
    "stage_number",
    "upload",
]
