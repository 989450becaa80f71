"""The equation of motion of gradient descent: the flow that passes through its iterates.

Open `series` first: the counter terms. `equation` sums them to the field, `modified` has the losses
whose gradient flow momentum and minibatches follow to first order, `discretization` the distance of
the flow from the iterates, `iterates` the field of any optimiser from differences of its iterates,
`rates` closed forms for symmetric parameters under weight decay, `spectrum` products with the
Hessian and its largest eigenvalues, `hessian_spectrum` all of them over data. `central_flow` is the
average of the iterates at the edge of stability, `minibatches` that of SGD under noise.
"""

from __future__ import annotations

from dln_geometry.learning.motion.central_flow import (
    CentralFlow,
    CentralPath,
    central_flow,
)
from dln_geometry.learning.motion.discretization import (
    accumulated_error,
    discretization_error,
    max_learning_rate,
)
from dln_geometry.learning.motion.equation import equation_of_motion
from dln_geometry.learning.motion.hessian_spectrum import HessianSpectrum, hessian_spectrum
from dln_geometry.learning.motion.iterates import (
    equation_of_motion_from_iterates,
    momentum_step,
    motion_of_iterates,
    with_velocity,
    without_velocity,
)
from dln_geometry.learning.motion.modified import modified_loss
from dln_geometry.learning.motion.rates import scale_velocity, translation_rate
from dln_geometry.learning.motion.series import counter_terms
from dln_geometry.learning.motion.spectrum import hessian_product, sharpness, top_eigenpairs

__all__ = [
    "CentralFlow",
    "CentralPath",
    "HessianSpectrum",
    "accumulated_error",
    "central_flow",
    "counter_terms",
    "discretization_error",
    "equation_of_motion",
    "equation_of_motion_from_iterates",
    "hessian_product",
    "hessian_spectrum",
    "max_learning_rate",
    "modified_loss",
    "momentum_step",
    "motion_of_iterates",
    "scale_velocity",
    "sharpness",
    "top_eigenpairs",
    "translation_rate",
    "with_velocity",
    "without_velocity",
]
