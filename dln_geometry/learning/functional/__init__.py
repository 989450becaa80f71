"""functional."""

from __future__ import annotations

from dln_geometry.learning.functional.algebra import (
    as_like,
    as_parameters,
    combine,
    dot,
    norm,
)
from dln_geometry.learning.functional.exactness import ExactDerivatives, with_exact_derivatives
from dln_geometry.learning.functional.lanczos import largest_eigenvalue
from dln_geometry.learning.functional.losses import as_value, gradient_and_value_of, gradient_of
from dln_geometry.learning.functional.parameters import (
    ModuleLoss,
    Parameters,
    flatten,
    functionalize,
    unflatten,
)

__all__ = [
    "ExactDerivatives",
    "ModuleLoss",
    "Parameters",
    "as_like",
    "as_parameters",
    "as_value",
    "combine",
    "dot",
    "flatten",
    "functionalize",
    "gradient_and_value_of",
    "gradient_of",
    "largest_eigenvalue",
    "norm",
    "unflatten",
    "with_exact_derivatives",
]
