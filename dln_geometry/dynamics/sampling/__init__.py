"""sampling."""

from __future__ import annotations

from dln_geometry.dynamics.sampling.gibbs import sample_gibbs
from dln_geometry.dynamics.sampling.potentials import DeepPotential, Potential

__all__ = [
    "DeepPotential",
    "Potential",
    "sample_gibbs",
]
