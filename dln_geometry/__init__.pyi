"""Public names: where each comes from. `__init__` imports them when they are asked for."""

from dln_geometry import (
    landscape as landscape,
    learning as learning,
    plot as plot,
    testing as testing,
    thermodynamics as thermodynamics,
)
from dln_geometry.dynamics import (
    laws as laws,
    losses as losses,
    sharded as sharded,
)
from dln_geometry.dynamics.dyson import (
    dln_dyson as dln_dyson,
    dyson as dyson,
    isospectral_flow as isospectral_flow,
    singular_dyson as singular_dyson,
)
from dln_geometry.dynamics.ensembles import (
    ensemble as ensemble,
)
from dln_geometry.dynamics.flows import (
    FlowError as FlowError,
    FreeEnergy as FreeEnergy,
    Validation as Validation,
    balancing_flow as balancing_flow,
    balancing_velocity as balancing_velocity,
    exact as exact,
    free_energy_flow as free_energy_flow,
    gradient_flow as gradient_flow,
    kirwan_ness_flow as kirwan_ness_flow,
)
from dln_geometry.dynamics.noise import (
    brownian_motion as brownian_motion,
    gauge_noise as gauge_noise,
    langevin as langevin,
)
from dln_geometry.dynamics.sampling import (
    diagnostics as diagnostics,
    sample_gibbs as sample_gibbs,
)
from dln_geometry.dynamics.sweeping import (
    SweepError as SweepError,
    sweep as sweep,
)
from dln_geometry.dynamics.trajectory import (
    Trajectory as Trajectory,
)
from dln_geometry.geometry.curvature import (
    ricci_curvature as ricci_curvature,
    riemann_curvature as riemann_curvature,
    scalar_curvature as scalar_curvature,
    sectional_curvature as sectional_curvature,
)
from dln_geometry.geometry.geodesics import (
    GeodesicError as GeodesicError,
    distance as distance,
    exponential as exponential,
    geodesic as geodesic,
    logarithm as logarithm,
    parallel_transport as parallel_transport,
)
from dln_geometry.geometry.kernel import (
    depth_kernel as depth_kernel,
    log_depth_kernel as log_depth_kernel,
)
from dln_geometry.geometry.metric import (
    cometric as cometric,
    cometric_sqrt as cometric_sqrt,
    connection as connection,
    entropy as entropy,
    entropy_gradient as entropy_gradient,
    free_energy as free_energy,
    inner as inner,
    log_stiefel_volume as log_stiefel_volume,
    log_volume_density as log_volume_density,
    metric as metric,
    riemannian_hessian as riemannian_hessian,
)
from dln_geometry.geometry.network_geodesics import (
    balanced_distance as balanced_distance,
    balanced_geodesic as balanced_geodesic,
    balanced_logarithm as balanced_logarithm,
    balanced_transport as balanced_transport,
)
from dln_geometry.geometry.points import (
    Collapsed as Collapsed,
    EndToEnd as EndToEnd,
    Network as Network,
    balance as balance,
    balanced_dimension as balanced_dimension,
    balanced_factors as balanced_factors,
    effective_rank as effective_rank,
    end_to_end as end_to_end,
    gauge_action as gauge_action,
    is_balanced as is_balanced,
    moments as moments,
    random_balanced as random_balanced,
)
from dln_geometry.geometry.submersion import (
    horizontal as horizontal,
    horizontal_frame as horizontal_frame,
    horizontal_lift as horizontal_lift,
    integrability as integrability,
    lift as lift,
    pushforward as pushforward,
    second_fundamental_form as second_fundamental_form,
    tangent as tangent,
    vertical as vertical,
    vertical_frame as vertical_frame,
)
from dln_geometry.geometry.unbalanced import (
    gauge_eigenvalues as gauge_eigenvalues,
    lambda_balanced as lambda_balanced,
    leaf_log_volume_density as leaf_log_volume_density,
    leaf_metric as leaf_metric,
    orbit_log_volume as orbit_log_volume,
    with_moments as with_moments,
)
from dln_geometry.thermodynamics import (
    mean_field_flow as mean_field_flow,
)
from dln_geometry.version import __version__ as __version__
