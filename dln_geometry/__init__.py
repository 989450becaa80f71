"""The geometry of deep linear networks, on PyTorch.

Points      `EndToEnd`, `Collapsed`, `Network`; `random_balanced`, `balanced_factors`, `balance`.
Metric      `cometric`, `metric`, `inner`, `entropy`, `free_energy`, `connection`, curvatures.
Submersion  `tangent`, `horizontal`, `vertical`, `lift`, `pushforward` and their frames.
Geodesics   `exponential`, `logarithm`, `distance`, `parallel_transport`; `balanced_geodesic`, ...
Flows       `gradient_flow`, `free_energy_flow`, `balancing_flow`, `kirwan_ness_flow`; `losses`,
            `exact`, `Trajectory`, `Validation`.
Noise       `langevin`, `brownian_motion`, `sample_gibbs`; `dyson`, `singular_dyson`, `dln_dyson`,
            `isospectral_flow`; `laws`, `diagnostics`.
Models      `learning`: any torch module, its symmetries, charges, equation of motion, mirrors.
Figures     `plot`.
"""

from __future__ import annotations

from dln_geometry import (
    _startup,  # noqa: F401 - first, for the others take seconds
    learning,
    plot,
    testing,
)
from dln_geometry.dynamics import laws, losses
from dln_geometry.dynamics.dyson import dln_dyson, dyson, isospectral_flow, singular_dyson
from dln_geometry.dynamics.flows import (
    FlowError,
    FreeEnergy,
    Validation,
    balancing_flow,
    balancing_velocity,
    exact,
    free_energy_flow,
    gradient_flow,
    kirwan_ness_flow,
)
from dln_geometry.dynamics.noise import brownian_motion, langevin
from dln_geometry.dynamics.sampling import diagnostics, sample_gibbs
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.curvature import (
    ricci_curvature,
    riemann_curvature,
    scalar_curvature,
    sectional_curvature,
)
from dln_geometry.geometry.geodesics import (
    GeodesicError,
    distance,
    exponential,
    geodesic,
    logarithm,
    parallel_transport,
)
from dln_geometry.geometry.kernel import depth_kernel, log_depth_kernel
from dln_geometry.geometry.metric import (
    cometric,
    cometric_sqrt,
    connection,
    entropy,
    entropy_gradient,
    free_energy,
    inner,
    log_stiefel_volume,
    log_volume_density,
    metric,
    riemannian_hessian,
)
from dln_geometry.geometry.network_geodesics import (
    balanced_distance,
    balanced_geodesic,
    balanced_logarithm,
    balanced_transport,
)
from dln_geometry.geometry.points import (
    Collapsed,
    EndToEnd,
    Network,
    balance,
    balanced_dimension,
    balanced_factors,
    end_to_end,
    gauge_action,
    is_balanced,
    moments,
    random_balanced,
)
from dln_geometry.geometry.submersion import (
    horizontal,
    horizontal_frame,
    horizontal_lift,
    integrability,
    lift,
    pushforward,
    second_fundamental_form,
    tangent,
    vertical,
    vertical_frame,
)
from dln_geometry.version import __version__ as __version__

__all__ = [
    "Collapsed",
    "EndToEnd",
    "FlowError",
    "FreeEnergy",
    "GeodesicError",
    "Network",
    "Trajectory",
    "Validation",
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
