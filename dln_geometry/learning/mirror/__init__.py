"""Mirror symmetries: stability, collapse, constraints by weight decay, removal."""

from __future__ import annotations

from dln_geometry.learning.mirror.evaluation import NotFiniteError, as_scalar, value_and_gradient
from dln_geometry.learning.mirror.mirrors import Mirror
from dln_geometry.learning.mirror.reflection import Reflection

__all__ = [
    "Mirror",
    "NotFiniteError",
    "Reflection",
    "as_scalar",
    "value_and_gradient",
]
