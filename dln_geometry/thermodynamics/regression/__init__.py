"""Bayesian regression with deep linear networks: evidence and posterior at finite width and depth.

Open `posterior` first. `mellin` has the one integral behind it, a Meijer G function, and with it
the law of products of Gamma variables; `limits` the equations of wide networks.
"""

from __future__ import annotations

from dln_geometry.thermodynamics.regression.limits import renormalized_scales
from dln_geometry.thermodynamics.regression.posterior import (
    BayesianRegression,
    bayesian_regression,
)

__all__ = ["BayesianRegression", "bayesian_regression", "renormalized_scales"]
