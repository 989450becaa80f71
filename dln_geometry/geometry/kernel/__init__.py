r"""The depth kernel and its divided differences: scalar functions of the singular values.

Let ``p = s^2`` and ``l = N s^{2/N}`` (``log s^2`` at infinite depth; without the factor N where the
metric is not divided by N). The kernel is the first divided difference of p as a function of l, and
the derivatives of the metric are the higher ones. They do not depend on the order of their nodes,
are positive, and finite where nodes are equal. All are computed from ``x = log s``, without
cancellation. With ``g(p) = N p^{1/N}`` (``log p``) for the inverse of ``p(l)``:

=========================================================  ===================================
``a_ij = p[l_i, l_j]``                                     `log_kernel_of_log`, of single pairs
                                                           `log_kernel_of_pairs`
``a_i0 = p[l_i, 0] = s_i^{2-2/N}``                         `log_mixed_kernel`
``d log a_ij / d s_i``                                     `log_kernel_slope`
``-g[p_i, p_j, p_k] = p[l_i, l_j, l_k]/(a_ij a_jk a_ik)``  `log_second_difference`
``p[l_i, l_k, l_j] / p[l_i, l_k]``                         `ratios`; `slice_of_ratios` for one i
``p[l_i, l_k, 0] / p[l_i, l_k]``                           `mixed_ratios`
``p[0, l_k, l_j] / p[0, l_k]``                             `outer_ratios`
``p[l_1, l_2, l_3]``, zeros among the nodes                `second_difference`
``p[l_1, l_2, l_3, l_4]``, the same                        `third_difference`
=========================================================  ===================================

`Differences` computes those of one point on demand. Open `depth_kernel` first;
`matrix_powers` holds the derivatives of powers of matrices, `jacobi` the decompositions of small
matrices for which the host does not wait.
"""

from __future__ import annotations

from dln_geometry.geometry.kernel.depth_kernel import (
    depth_kernel,
    langevin_function,
    log_depth_kernel,
    log_kernel_of_log,
    log_kernel_of_pairs,
    log_kernel_slope,
    log_mixed_kernel,
    sum_of_log_kernels,
)
from dln_geometry.geometry.kernel.differences import Differences, is_extreme
from dln_geometry.geometry.kernel.higher_differences import (
    MOST_TERMS,
    log_second_difference,
    mixed_ratios,
    outer_ratios,
    ratios,
    second_difference,
    slice_of_ratios,
    third_difference,
    triples,
)
from dln_geometry.geometry.kernel.jacobi import (
    jacobi_eigh,
    jacobi_svd,
    small_eigh,
    small_eigvalsh,
    small_svd,
    small_svdvals,
    waitless,
)
from dln_geometry.geometry.kernel.matrix_powers import (
    MatrixPower,
    MatrixPowerSlope,
    geometric_sum,
    power_divided_difference,
    power_second_difference,
)
from dln_geometry.geometry.kernel.quick import quick_product, quick_svd

__all__ = [
    "MOST_TERMS",
    "Differences",
    "MatrixPower",
    "MatrixPowerSlope",
    "depth_kernel",
    "geometric_sum",
    "is_extreme",
    "jacobi_eigh",
    "jacobi_svd",
    "langevin_function",
    "log_depth_kernel",
    "log_kernel_of_log",
    "log_kernel_of_pairs",
    "log_kernel_slope",
    "log_mixed_kernel",
    "log_second_difference",
    "mixed_ratios",
    "outer_ratios",
    "power_divided_difference",
    "power_second_difference",
    "quick_product",
    "quick_svd",
    "ratios",
    "second_difference",
    "slice_of_ratios",
    "small_eigh",
    "small_eigvalsh",
    "small_svd",
    "small_svdvals",
    "sum_of_log_kernels",
    "third_difference",
    "triples",
    "waitless",
]
