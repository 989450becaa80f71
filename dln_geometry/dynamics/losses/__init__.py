"""Losses of the end-to-end matrix, most of them half a plain sum of squares, and their protocol.

Open `loss` first: `Loss` is what a flow asks for, `DataLoss` the base of the losses on data. A new
loss has ``value`` and ``gradient``; one on data subclasses `DataLoss` (see `dense`).
"""

from __future__ import annotations

from dln_geometry.dynamics.losses.callables import from_callable
from dln_geometry.dynamics.losses.completion import Completion
from dln_geometry.dynamics.losses.dense import Quadratic, Regression, Sensing
from dln_geometry.dynamics.losses.elementwise import ElementwiseLoss, Huber, LpNorm
from dln_geometry.dynamics.losses.fingerprint import fingerprint
from dln_geometry.dynamics.losses.links import LinkLoss, Logistic, Poisson
from dln_geometry.dynamics.losses.loss import (
    Loss,
    as_dense,
    as_text,
    contract,
    evaluate,
    narrowed_loss,
    prepared,
)
from dln_geometry.dynamics.losses.spread import ranks_of

__all__ = [
    "Completion",
    "ElementwiseLoss",
    "Huber",
    "LinkLoss",
    "Logistic",
    "Loss",
    "LpNorm",
    "Poisson",
    "Quadratic",
    "Regression",
    "Sensing",
    "as_dense",
    "as_text",
    "contract",
    "evaluate",
    "fingerprint",
    "from_callable",
    "narrowed_loss",
    "prepared",
    "ranks_of",
]
