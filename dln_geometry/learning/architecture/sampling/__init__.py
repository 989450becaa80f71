"""Flat directions of large modules, counted on a few units of every axis.

- `axes`: the directions that are probed, with their orthonormal coordinates;
- `spans`: the span of the generators of groups, which is never made as a matrix;
- `probes`: what the gradients of the outputs say of both;
- `switching`: parameters at which units with a kink are on for some inputs only.
"""

from __future__ import annotations

from dln_geometry.learning.architecture.sampling.axes import SampledAxes
from dln_geometry.learning.architecture.sampling.probes import Probes, probed
from dln_geometry.learning.architecture.sampling.spans import GroupSpan
from dln_geometry.learning.architecture.sampling.switching import switching_point

__all__ = ["GroupSpan", "Probes", "SampledAxes", "probed", "switching_point"]
