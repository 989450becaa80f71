"""Thermodynamics of balanced networks: partition functions, phases, the limit of infinite width.

Open `partition` first. `measure` holds the density of singular values with all constants, `closed`,
`ensembles`, `few` and `chains` are the ways to its mass, `existence` tells where it is infinite,
`exact_samples` draws from it; `mean_field` follows the density of singular values at infinite
width; `regression` is Bayesian.
"""

from __future__ import annotations

from dln_geometry.thermodynamics.exact_samples import sample_exact
from dln_geometry.thermodynamics.mean_field import MeanFieldPath, mean_field_flow
from dln_geometry.thermodynamics.partition import PartitionFunction, partition_function
from dln_geometry.thermodynamics.phases import phase_diagram
from dln_geometry.thermodynamics.regression import (
    BayesianRegression,
    bayesian_regression,
    renormalized_scales,
)

__all__ = [
    "BayesianRegression",
    "MeanFieldPath",
    "PartitionFunction",
    "bayesian_regression",
    "mean_field_flow",
    "partition_function",
    "phase_diagram",
    "renormalized_scales",
    "sample_exact",
]
