r"""The one law of charges: what a step with momentum makes of a charge.

A step of SGD, with the gradient g of a batch, the buffer v, learning rate lr, momentum b and weight
decay k (``s = 1 - dampening``, 1 in the first step of a buffer), is

``d = g + k q``,  ``v+ = b v + s d``,  ``q+ = q - lr u``,
``u = v+``; with Nesterov's momentum ``u = d + b v+ = (1 + b) v+ - b v``; without momentum
``u = d``.

Let B be bilinear with ``B(q, g) = B(g, q) = 0``: that is a symmetry of the loss of the batch. For
scale ``B(x, y) = <x, y>``, for the gauge of ``W_2 W_1`` the matrix ``y_1 x_1^T - x_2^T y_2``. With
the charge ``C = B(q, q)`` and ``R = B(q, v)`` the symmetry gives

``P = B(q, v+) = b R + s k C``,  ``U = B(q, u) = P``, or Nesterov's ``s k C + b P``,

and the step itself

``C+ = C - lr (U + U') + lr^2 B(u, u)``,  ``U' = B(u, q)``,  ``R+ = B(q+, v+) = P - lr B(u, v+)``.

A linear charge ``C = <q, n>`` of a translation has the same P and U with ``R = <v, n>``, and
``C+ = C - lr U``, ``R+ = P``. On the right stand the buffers alone: neither gradients nor
parameters. The functions take any values that can be added and multiplied by numbers: tensors,
matrices, numbers, or rows of coefficients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

Value = TypeVar("Value", Tensor, np.ndarray, float)


def pushes(decay: Value, momenta: Value, momentum: float, nesterov: bool) -> tuple[Value, Value]:
    """Return ``P = B(q, v+)`` and ``U = B(q, u)`` from ``decay = s k C`` and ``momenta = R``."""
    p = momentum * momenta + decay
    return p, decay + momentum * p if nesterov else p


def charge_after(charge: Value, push: Value, transposed: Value, squares: Value, lr: Any) -> Value:
    """Return ``C+`` from U, U' and ``squares = lr B(u, u)``."""
    return charge - lr * (push + transposed - squares)


def nesterov_direction(before: Tensor | None, after: Tensor, momentum: float) -> Tensor:
    """Return ``u = (1 + b) v+ - b v`` of one tensor; in the first step there is no v."""
    u = (1 + momentum) * after
    return u if before is None else u - momentum * before


def nesterov_products(
    dd: Value, dv: Value, vv: Value, momentum: float, transpose: Callable[[Value], Value]
) -> tuple[Value, Value]:
    """Return ``B(u, u)`` and ``B(u, v+)`` from ``B(d, d)``, ``B(d, v+)`` and ``B(v+, v+)``."""
    uv = dv + momentum * vv
    return dd + momentum * (dv + transpose(uv)), uv
