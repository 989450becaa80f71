"""The geometry of deep linear networks.

A point of the theory is an end-to-end matrix with a depth: construct balanced networks, measure
them in the depth-N metric, flow, and compute the entropy of end-to-end matrices.
"""

from __future__ import annotations

from dln_geometry import learning, plot, testing
from dln_geometry.dynamics import diagnostics, exact, laws, losses
from dln_geometry.dynamics.diffusion import brownian_motion, langevin
from dln_geometry.dynamics.dyson import dyson
from dln_geometry.dynamics.fibre import balancing_flow, balancing_velocity, kirwan_ness_flow
from dln_geometry.dynamics.flows import FlowError, gradient_flow
from dln_geometry.dynamics.free_energy import FreeEnergy, free_energy_flow
from dln_geometry.dynamics.isospectral import isospectral_flow
from dln_geometry.dynamics.sampling import sample_gibbs
from dln_geometry.dynamics.singular_dyson import singular_dyson
from dln_geometry.dynamics.spectral_noise import dln_dyson
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.balanced import (
    balance,
    balanced_dimension,
    balanced_factors,
    end_to_end,
    gauge_action,
    is_balanced,
    moments,
    random_balanced,
)
from dln_geometry.geometry.bundle import (
    horizontal,
    horizontal_frame,
    lift,
    pushforward,
    tangent,
    vertical,
    vertical_frame,
)
from dln_geometry.geometry.connection import connection, riemannian_hessian
from dln_geometry.geometry.curvature import (
    ricci_curvature,
    riemann_curvature,
    scalar_curvature,
    sectional_curvature,
)
from dln_geometry.geometry.entropy import (
    entropy,
    entropy_gradient,
    free_energy,
    log_stiefel_volume,
)
from dln_geometry.geometry.geodesics import exponential, geodesic, parallel_transport
from dln_geometry.geometry.hamiltonian import GeodesicError
from dln_geometry.geometry.kernel import depth_kernel, log_depth_kernel
from dln_geometry.geometry.layer_geodesics import balanced_geodesic, balanced_transport
from dln_geometry.geometry.layer_logarithm import balanced_distance, balanced_logarithm
from dln_geometry.geometry.logarithm import distance, logarithm
from dln_geometry.geometry.metric import (
    cometric,
    cometric_sqrt,
    inner,
    log_volume_density,
    metric,
)
from dln_geometry.geometry.point import Collapsed, EndToEnd
from dln_geometry.geometry.second_form import (
    horizontal_lift,
    integrability,
    second_fundamental_form,
)

__version__ = "0.1.0"

__all__ = [
    "Collapsed",
    "EndToEnd",
    "FlowError",
    "FreeEnergy",
    "GeodesicError",
    "Trajectory",
    "balance",
    "balanced_dimension",
    "balanced_distance",
    "balanced_factors",
    "balanced_geodesic",
    "balanced_logarithm",
    "balanced_transport",
    "balancing_flow",
    "balancing_velocity",
    "brownian_motion",
    "cometric",
    "cometric_sqrt",
    "connection",
    "depth_kernel",
    "diagnostics",
    "distance",
    "dln_dyson",
    "dyson",
    "end_to_end",
    "entropy",
    "entropy_gradient",
    "exact",
    "exponential",
    "free_energy",
    "free_energy_flow",
    "gauge_action",
    "geodesic",
    "gradient_flow",
    "horizontal",
    "horizontal_frame",
    "horizontal_lift",
    "inner",
    "integrability",
    "is_balanced",
    "isospectral_flow",
    "kirwan_ness_flow",
    "langevin",
    "laws",
    "learning",
    "lift",
    "log_depth_kernel",
    "log_stiefel_volume",
    "log_volume_density",
    "logarithm",
    "losses",
    "metric",
    "moments",
    "parallel_transport",
    "plot",
    "pushforward",
    "random_balanced",
    "ricci_curvature",
    "riemann_curvature",
    "riemannian_hessian",
    "sample_gibbs",
    "scalar_curvature",
    "second_fundamental_form",
    "sectional_curvature",
    "singular_dyson",
    "tangent",
    "testing",
    "vertical",
    "vertical_frame",
]
