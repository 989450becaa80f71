"""kernel."""

from __future__ import annotations

from dln_geometry.geometry.kernel.depth_kernel import (
    depth_kernel,
    geometric_sum,
    langevin_function,
    log_depth_kernel,
    log_kernel_of_log,
    log_kernel_of_pairs,
    log_kernel_slope,
    log_mixed_kernel,
    power_divided_difference,
)
from dln_geometry.geometry.kernel.differences import Differences
from dln_geometry.geometry.kernel.second_difference import log_second_difference
from dln_geometry.geometry.kernel.second_differences import (
    MOST_TERMS,
    mixed_ratios,
    outer_ratios,
    ratios,
    slice_of_ratios,
    triples,
)
from dln_geometry.geometry.kernel.third_differences import second_difference, third_difference

__all__ = [
    "MOST_TERMS",
    "Differences",
    "depth_kernel",
    "geometric_sum",
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
    "ratios",
    "second_difference",
    "slice_of_ratios",
    "third_difference",
    "triples",
]
