"""Decay of symmetric parameters under weight decay, by order of the equation of motion."""

from __future__ import annotations

import math

from torch import Tensor

from dln_geometry.learning.functional import Tensors, as_finite, as_like, dot
from dln_geometry.support import as_count, as_positive


def translation_rate(lr: float, weight_decay: float, order: int | None = None) -> float:
    """Return the rate at which a translation-invariant parameter decays, ``c' = -rate c``.

    The loss does not depend on c; a step multiplies it by ``1 - lr k``. The equation of motion of
    an order gives ``k + lr k^2/2 + ... + lr^(order + 1) k^(order + 2) / (order + 2)``; all orders
    together ``-log(1 - lr k) / lr``, exact at the iterates (Miyagawa, arXiv 2210.15898).

    Parameters
    ----------
    lr, weight_decay : float
        Learning rate, and k; ``lr k < 1``, beyond which the parameter jumps across zero.
    order : int, optional
        Order of the equation of motion, -1 for gradient flow; `None` is all orders.

    Examples
    --------
    >>> [round(dln.learning.translation_rate(0.5, 0.4, order), 5) for order in (-1, 0, 1, None)]
    [0.4, 0.44, 0.44533, 0.44629]
    """
    lr, k = as_positive(lr, "lr"), as_positive(weight_decay, "weight_decay", zero=True)
    if lr * k >= 1:
        raise ValueError(
            f"lr * weight_decay must be below 1, where an equation of motion exists, got {lr * k:g}"
        )
    if order is None:
        return -math.log1p(-lr * k) / lr
    return sum(lr ** (a - 1) * k**a / a for a in range(1, as_count(order, "order", -1) + 3))


def scale_velocity(
    params: Tensors, gradient: Tensors, lr: float, weight_decay: float, order: int
) -> Tensor:
    """Return ``(r^2)'`` of scale-invariant parameters, ``r^2 = |q|^2``, a scalar tensor.

    Gradient flow (order -1) gives ``-2 k r^2``, the equation of motion of order 0
    ``-(2k + lr k^2) r^2 + lr |g|^2``: a step along the gradient, a tangent of the sphere, leads
    outwards (Miyagawa, arXiv 2210.15898; Tanaka & Kunin, arXiv 2105.02716). Other parameters as in
    `translation_rate`.

    Parameters
    ----------
    params, gradient : dict of str to Tensor
        The parameters whose common scale the loss does not depend on, and its gradient g by them,
        without weight decay; a gradient not orthogonal to the parameters is refused.
    order : int
        -1 or 0.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> import torch
    >>> q, g = {"q": torch.tensor([3.0, 0.0])}, {"q": torch.tensor([0.0, 2.0])}
    >>> learning.scale_velocity(q, g, 0.1, 0.5, -1), learning.scale_velocity(q, g, 0.1, 0.5, 0)
    (tensor(-9.), tensor(-8.8250))
    """
    q = as_finite(params)
    g = as_like(gradient, q, "gradient", finite=True)
    lr, k = as_positive(lr, "lr"), as_positive(weight_decay, "weight_decay", zero=True)
    if as_count(order, "order", -1) > 0:
        raise ValueError(f"order must be -1 or 0, got {order}")
    r2, g2, overlap = dot(q, q), dot(g, g), dot(q, g)
    product, most = float(overlap.detach()), float((r2 * g2).detach().sqrt())
    # Rounding makes the cosine far smaller than this.
    if abs(product) > 1e-3 * most:
        raise ValueError(
            "gradient must be orthogonal to the parameters of a scale-invariant loss, got the "
            f"cosine {product / most if most else math.inf:.2g}"
        )
    return -2 * k * r2 if order == -1 else -(2 * k + lr * k**2) * r2 + lr * g2
