"""Losses as pure functions of a dict of parameters, and the algebra of such dicts.

Open `parameters` first: `functionalize` makes the function and the dict. `algebra` adds and
multiplies dicts and makes them vectors, `purity` refuses losses that are no pure functions,
`losses` checks the values of a user's loss, `exact_derivatives` mends the higher derivatives of
torch's normalisations, `wrappers` copies modules without what wraps them, `lanczos` finds the
largest eigenvalue, `tangent_kernel` compares kernels before and after training.
"""

from __future__ import annotations

from dln_geometry.learning.functional.algebra import (
    as_finite,
    as_like,
    as_parameters,
    combination,
    dot,
    flatten,
    norm,
    unflatten,
)
from dln_geometry.learning.functional.exact_derivatives import (
    ExactDerivatives,
    with_exact_derivatives,
)
from dln_geometry.learning.functional.lanczos import largest_eigenvalue
from dln_geometry.learning.functional.losses import (
    as_loss,
    as_value,
    gradient_and_value_of,
    gradient_of,
)
from dln_geometry.learning.functional.parameters import (
    Loss,
    ModuleLoss,
    Parameters,
    Tensors,
    as_arguments,
    batch_losses,
    functionalize,
    parameters_of,
)
from dln_geometry.learning.functional.regimes import TrainingRegime, training_regime
from dln_geometry.learning.functional.tangent_kernel import kernel_distance, tangent_kernel
from dln_geometry.learning.functional.wrappers import Bare, bare_copy

__all__ = [
    "Bare",
    "ExactDerivatives",
    "Loss",
    "ModuleLoss",
    "Parameters",
    "Tensors",
    "TrainingRegime",
    "as_arguments",
    "as_finite",
    "as_like",
    "as_loss",
    "as_parameters",
    "as_value",
    "bare_copy",
    "batch_losses",
    "combination",
    "dot",
    "flatten",
    "functionalize",
    "gradient_and_value_of",
    "gradient_of",
    "kernel_distance",
    "largest_eigenvalue",
    "norm",
    "parameters_of",
    "tangent_kernel",
    "training_regime",
    "unflatten",
    "with_exact_derivatives",
]
