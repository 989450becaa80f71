"""Losses of the end-to-end matrix, each one half of a plain sum of squares, and their protocol."""

from __future__ import annotations

from dln_geometry.dynamics.losses.callables import from_callable
from dln_geometry.dynamics.losses.completion import Completion
from dln_geometry.dynamics.losses.dense import Quadratic, Regression, Sensing
from dln_geometry.dynamics.losses.protocol import Loss, as_dense, contract, evaluate, prepared

__all__ = [
    "Completion",
    "Loss",
    "Quadratic",
    "Regression",
    "Sensing",
    "as_dense",
    "contract",
    "evaluate",
    "from_callable",
    "prepared",
]
