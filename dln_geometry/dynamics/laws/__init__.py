"""Exact laws of the noise, against which samplers and paths are tested.

Beta ensembles by their tridiagonal and bidiagonal models, their limits at infinite index (zeros of
Hermite and Laguerre polynomials) and at infinite size (semicircle, Marchenko-Pastur), and the
equilibrium of Langevin dynamics (densities of singular values, moments of the energy). Laws of one
number are values too: `fuss_catalan`, `gaussian_product`, `ullman`, `quarter_circle`, `semicircle`,
`marchenko_pastur`, `gibbs_energy` have ``density``, ``distribution``, ``quantile``, ``moment``,
``sample``; their base is `ProbabilityLaw`, in the file `law`. Arguments
come in one order: values, then the size (`n` or `shape`, `rank`, `depth`), then by name what the
law depends on (`t`; `beta`, `kappa`, `entropy`), then how to draw.
"""

from __future__ import annotations

from dln_geometry.dynamics.laws.densities import (
    marchenko_pastur_density,
    marchenko_pastur_distribution,
    marchenko_pastur_edges,
    semicircle_density,
    semicircle_distribution,
    semicircle_radius,
)
from dln_geometry.dynamics.laws.ensembles import (
    beta_hermite,
    beta_laguerre,
    hermite_zeros,
    laguerre_zeros,
    tridiagonal_eigenvalues,
)
from dln_geometry.dynamics.laws.gibbs import (
    fuss_catalan_moment,
    gibbs_energy_moment,
    gibbs_log_density,
    ridge_mean_square,
)
from dln_geometry.dynamics.laws.law import ProbabilityLaw
from dln_geometry.dynamics.laws.limits import fuss_catalan, quarter_circle, ullman
from dln_geometry.dynamics.laws.products import gaussian_product
from dln_geometry.dynamics.laws.values import gibbs_energy, marchenko_pastur, semicircle

__all__ = [
    "ProbabilityLaw",
    "beta_hermite",
    "beta_laguerre",
    "fuss_catalan",
    "fuss_catalan_moment",
    "gaussian_product",
    "gibbs_energy",
    "gibbs_energy_moment",
    "gibbs_log_density",
    "hermite_zeros",
    "laguerre_zeros",
    "marchenko_pastur",
    "marchenko_pastur_density",
    "marchenko_pastur_distribution",
    "marchenko_pastur_edges",
    "quarter_circle",
    "ridge_mean_square",
    "semicircle",
    "semicircle_density",
    "semicircle_distribution",
    "semicircle_radius",
    "tridiagonal_eigenvalues",
    "ullman",
]
