"""metric."""

from __future__ import annotations

from dln_geometry.geometry.metric.autograd import apply_kernel, cometric_of_matrix
from dln_geometry.geometry.metric.cometric import (
    cometric,
    cometric_sqrt,
    inner,
    log_volume_density,
    metric,
)
from dln_geometry.geometry.metric.connection import (
    connection,
    connection_blocks,
    hessian_blocks,
    riemannian_hessian,
    tangent_argument,
)
from dln_geometry.geometry.metric.entropy import (
    entropy,
    entropy_gradient,
    entropy_pull,
    entropy_slope,
    free_energy,
    hidden_excess,
    log_stiefel_volume,
)
from dln_geometry.geometry.metric.product_step import ProductFrame, layers_of_step, thin_svd
from dln_geometry.geometry.metric.subspace import Box
from dln_geometry.geometry.metric.variation import (
    Blocks,
    apply,
    blocks_of,
    combine,
    pull,
    push,
    push_beyond,
    squared_length,
    tangent_matrix,
)

__all__ = [
    "Blocks",
    "Box",
    "ProductFrame",
    "apply",
    "apply_kernel",
    "blocks_of",
    "combine",
    "cometric",
    "cometric_of_matrix",
    "cometric_sqrt",
    "connection",
    "connection_blocks",
    "entropy",
    "entropy_gradient",
    "entropy_pull",
    "entropy_slope",
    "free_energy",
    "hessian_blocks",
    "hidden_excess",
    "inner",
    "layers_of_step",
    "log_stiefel_volume",
    "log_volume_density",
    "metric",
    "pull",
    "push",
    "push_beyond",
    "riemannian_hessian",
    "squared_length",
    "tangent_argument",
    "tangent_matrix",
    "thin_svd",
]
