"""Samples of the Gibbs measure without discretisation error, and diagnostics of chains.

Open `gibbs` first: `sample_gibbs` and its Metropolis chain, a `Stepper` of the room `noise`.
`existence` tells where the measure is infinite, `potentials` holds the density in coordinates where
the volume is flat; `diagnostics` is public.
"""

from __future__ import annotations

from dln_geometry.dynamics.sampling import diagnostics
from dln_geometry.dynamics.sampling.existence import falloff, infinite_measure
from dln_geometry.dynamics.sampling.gibbs import sample_gibbs
from dln_geometry.dynamics.sampling.potentials import Potential

__all__ = ["Potential", "diagnostics", "falloff", "infinite_measure", "sample_gibbs"]
