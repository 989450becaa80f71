"""Layers with given moments: networks that are not balanced.

Open `construction` first. `chains` makes layers of scalar modes, `existence` says which moments
have layers, `fitting` solves for layers where no scalar modes serve. `leaves` holds the metric and
the volumes of layers with given moments.
"""

from __future__ import annotations

from dln_geometry.geometry.unbalanced.construction import lambda_balanced, with_moments
from dln_geometry.geometry.unbalanced.leaves import (
    gauge_eigenvalues,
    leaf_log_volume_density,
    leaf_metric,
    orbit_log_volume,
)

__all__ = [
    "gauge_eigenvalues",
    "lambda_balanced",
    "leaf_log_volume_density",
    "leaf_metric",
    "orbit_log_volume",
    "with_moments",
]
