"""The depth metric on end-to-end matrices: first and second order, volumes, and product steps.

Open `cometric` first: the metric, its inverse and its volume. `blocks` holds tangent vectors in the
frames of a point and the derivatives of the cometric in these, `autograd` the same for torch,
`connection` the Christoffel term and Hessians, `entropy` the volume of the fibres, `subspace` the
small space in which a geodesic stays, `product_step` the retraction by layers.
"""

from __future__ import annotations

from dln_geometry.geometry.metric.autograd import cometric_of_matrix
from dln_geometry.geometry.metric.blocks import (
    Blocks,
    apply,
    apply_kernel,
    blocks_of,
    combine_blocks,
    pair_blocks,
    pull,
    push,
    push_beyond,
    squared_length,
    tangent_matrix,
)
from dln_geometry.geometry.metric.cometric import (
    cometric,
    cometric_sqrt,
    inner,
    log_volume_density,
    metric,
    tangent_argument,
    tangent_arguments,
)
from dln_geometry.geometry.metric.connection import (
    connection,
    connection_blocks,
    hessian_blocks,
    riemannian_hessian,
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
from dln_geometry.geometry.metric.kernel_moves import kernel_model
from dln_geometry.geometry.metric.product_step import ProductFrame, layers_of_step, thin_svd
from dln_geometry.geometry.metric.subspace import Box
from dln_geometry.geometry.metric.unit_size import doubled, in_range, of_unit_size

__all__ = [
    "Blocks",
    "Box",
    "ProductFrame",
    "apply",
    "apply_kernel",
    "blocks_of",
    "combine_blocks",
    "cometric",
    "cometric_of_matrix",
    "cometric_sqrt",
    "connection",
    "connection_blocks",
    "doubled",
    "entropy",
    "entropy_gradient",
    "entropy_pull",
    "entropy_slope",
    "free_energy",
    "hessian_blocks",
    "hidden_excess",
    "in_range",
    "inner",
    "kernel_model",
    "layers_of_step",
    "log_stiefel_volume",
    "log_volume_density",
    "metric",
    "of_unit_size",
    "pair_blocks",
    "pull",
    "push",
    "push_beyond",
    "riemannian_hessian",
    "squared_length",
    "tangent_argument",
    "tangent_arguments",
    "tangent_matrix",
    "thin_svd",
]
