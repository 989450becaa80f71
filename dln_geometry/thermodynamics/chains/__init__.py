"""Partition functions by chains from a Gaussian to the Gibbs measure.

Open `walk` first, the chains; `annealing` makes log Z of their work.
"""

from __future__ import annotations

from dln_geometry.thermodynamics.chains.annealing import by_chains
from dln_geometry.thermodynamics.chains.walk import Walk

__all__ = ["Walk", "by_chains"]
