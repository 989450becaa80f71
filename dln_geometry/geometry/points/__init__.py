"""Points as values: matrices, collapsed networks and networks of layers.

`EndToEnd` is a matrix as its singular value decomposition, `Collapsed` a balanced network of any
depth as two matrices, `Network` a tuple of layers with its frames. Open `end_to_end` first;
`layers` holds the algebra of chains of matrices, `gauges` makes balanced layers from frames,
`balanced` holds the public functions of factors. A new kind of point subclasses `Batch` and names
its tensors.
"""

from __future__ import annotations

from dln_geometry.geometry.points.balanced import (
    balance,
    balanced_dimension,
    balanced_factors,
    end_to_end,
    gauge_action,
    is_balanced,
    moments,
    orthonormalized,
    polar,
    random_balanced,
)
from dln_geometry.geometry.points.batch import as_row, described, indexed
from dln_geometry.geometry.points.collapsed import Collapsed
from dln_geometry.geometry.points.effective_rank import effective_rank
from dln_geometry.geometry.points.end_to_end import EndToEnd, as_point, point_of_values
from dln_geometry.geometry.points.gauges import balanced_chain, chain_from_frames, haar_stiefel
from dln_geometry.geometry.points.layers import (
    at_unit_size,
    balanced_frames,
    by_power_of_two,
    chain_svd,
    common_exponent,
    exponent_of,
    is_ordinary,
    layer_moments,
    moment_size,
    over_units,
    product,
)
from dln_geometry.geometry.points.network import Network, balanced_network
from dln_geometry.geometry.points.real_forms import (
    complex_form,
    complex_point,
    quaternion_form,
    real_form,
    real_point,
)
from dln_geometry.geometry.points.smooth import (
    Nearby,
    last_derivatives,
    nearly_equal,
    only_finite,
    separate,
    smooth,
)

__all__ = [
    "Collapsed",
    "EndToEnd",
    "Nearby",
    "Network",
    "as_point",
    "as_row",
    "at_unit_size",
    "balance",
    "balanced_chain",
    "balanced_dimension",
    "balanced_factors",
    "balanced_frames",
    "balanced_network",
    "by_power_of_two",
    "chain_from_frames",
    "chain_svd",
    "common_exponent",
    "complex_form",
    "complex_point",
    "described",
    "effective_rank",
    "end_to_end",
    "exponent_of",
    "gauge_action",
    "haar_stiefel",
    "indexed",
    "is_balanced",
    "is_ordinary",
    "last_derivatives",
    "layer_moments",
    "moment_size",
    "moments",
    "nearly_equal",
    "only_finite",
    "orthonormalized",
    "over_units",
    "point_of_values",
    "polar",
    "product",
    "quaternion_form",
    "random_balanced",
    "real_form",
    "real_point",
    "separate",
    "smooth",
]
