"""The equation of motion of gradient descent on the layers, order by order.

How the moments and the rotations of the hidden layers move, and the modified loss that gradient
descent follows to first order. The layers need not be balanced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points import layer_moments, product
from dln_geometry.learning.closed_forms.layers import Layers, Loss, cross, layer_gradients
from dln_geometry.learning.functional import with_exact_derivatives
from dln_geometry.support import as_count, as_factors, as_positive


def imbalance_rate(loss: Loss, factors: Sequence[Any], lr: float) -> tuple[Tensor, ...]:
    """Return ``lr K_p``: the rate at which gradient descent leaves the balanced manifold.

    ``G_p' = lr K_p`` to leading order in the learning rate, K the moments of the gradients;
    gradient flow keeps the moments.

    Parameters
    ----------
    loss : callable
        ``loss(X)``, a scalar tensor, of the end-to-end matrix, without weight decay.
    factors : sequence of array_like
        Layers ``(W_1, ..., W_N)``.
    lr : float
        Learning rate.

    Examples
    --------
    >>> dln.learning.closed_forms.imbalance_rate(lambda x: x.sum(), ([[2.0]], [[3.0]]), 0.1)
    (tensor([[-0.5000]]),)
    """
    layers, lr = as_factors(factors), as_positive(lr, "lr")
    return tuple(lr * k for k in layer_moments(layer_gradients(loss, layers)))


def moment_motion(
    loss: Loss, factors: Sequence[Any], order: int, *, weight_decay: float = 0.0
) -> list[tuple[Tensor, ...]]:
    """Return the velocity of the moments under each order of the equation of motion.

    The equation of motion of gradient descent is ``W' = F_0 + lr F_1 + lr^2 F_2 + ...``, with
    ``F_0 = -(D + k W)`` and ``F_i = -xi_{i-1}``. The moments move by
    ``DG[F_0] = -2 k G``, ``DG[F_1] = -k^2 G + K``,
    ``DG[F_2] = -(2/3) k^3 G + k K - (1/2) DK[F_0]``, K the moments of the gradients D. The result
    is ``[DG[F_0], ..., DG[F_{order+1}]]``, each with a matrix of shape (d_p, d_p) per hidden layer.

    `order` is -1, 0 or 1, and `weight_decay` is k. Other parameters as in `imbalance_rate`.

    Examples
    --------
    >>> from dln_geometry.learning import closed_forms
    >>> closed_forms.moment_motion(lambda x: x.sum(), ([[2.0]], [[3.0]]), 0, weight_decay=0.5)
    [(tensor([[-5.]]),), (tensor([[-6.2500]]),)]
    """
    layers, k = as_factors(factors), as_positive(weight_decay, "weight_decay", zero=True)
    if as_count(order, "order", -1) > 1:
        raise ValueError(f"order must be at most 1, got {order}")
    g = layer_moments(layers)
    motion = [tuple(-2 * k * x for x in g)]
    if order < 0:
        return motion
    d, slope = _gradients_along_flow(with_exact_derivatives(loss), layers, k)
    # K is quadratic in the gradients: DK[F_0] is z + z^T with the third of these.
    pairs = list(zip(g, layer_moments(d), cross(d, slope), strict=True))
    motion.append(tuple(-(k**2) * x + y for x, y, _ in pairs))
    if order == 1:
        motion.append(tuple(-2 / 3 * k**3 * x + k * y - 0.5 * (z + z.mT) for x, y, z in pairs))
    return motion


def rotation_rate(
    loss: Loss, factors: Sequence[Any], lr: float, *, weight_decay: float = 0.0
) -> tuple[Tensor, ...]:
    """Return the rotation charge of gradient descent, ``1/2 (M_p - M_p^T)``, to leading order.

    ``M_p = W_{p+1}^T W_{p+1}' - W_p' W_p^T``. Rotations of a hidden layer are a symmetry of loss
    and kinetic energy, and their charge vanishes in the flows of the loss and the modified loss:
    gradient descent breaks them first at the square of the learning rate,
    ``(lr^2 / 12) (Z_p - Z_p^T)``, ``Z_p = U_p D_p^T - D_{p+1}^T U_{p+1}``, ``U = H D`` with the
    gradient D and the Hessian H of loss and weight decay.

    Parameters as in `imbalance_rate`, with weight decay k. The result is one antisymmetric matrix
    of shape (d_p, d_p) per hidden layer.

    Examples
    --------
    >>> dln.learning.closed_forms.rotation_rate(lambda x: x.sum(), ([[2.0]], [[3.0]]), 0.1)
    (tensor([[0.]]),)
    """
    layers, lr = as_factors(factors), as_positive(lr, "lr")
    k = as_positive(weight_decay, "weight_decay", zero=True)
    d, slope = _gradients_along_flow(with_exact_derivatives(loss), layers, k)
    g = tuple(x + k * w for x, w in zip(d, layers, strict=True))
    # The derivative of g along -g is ``slope - k g = -U``, and ``cross(g, u)`` is -Z.
    u = tuple(-s + k * x for s, x in zip(slope, g, strict=True))
    return tuple(lr**2 / 12 * (z.mT - z) for z in cross(g, u))


def modified_end_to_end_loss(
    loss: Loss, factors: Sequence[Any], lr: float, *, weight_decay: float = 0.0
) -> Tensor:
    """Return the modified loss of gradient descent on the layers, ``E + (lr/4) <E', A_W E'>``.

    ``A_W(Z) = sum_p (W_N..W_{p+1})(W_N..W_{p+1})^T Z (W_{p-1}..W_1)^T (W_{p-1}..W_1)``. On the
    balanced manifold it is the cometric, and the correction ``(lr/4) |grad E|^2`` in the metric
    g^N: gradient descent prefers points where E is flat *for a network of this depth*.

    With weight decay k the loss is ``E + (k/2) sum |W_p|^2``, and the correction
    ``(lr/4) (<E', A_W E'> + 2 k N <E', X> + k^2 sum |W_p|^2)``.

    Parameters as in `imbalance_rate`; the result is differentiable in the layers.

    References
    ----------
    Menon, arXiv 2411.09004 (metric); Barrett & Dherin, arXiv 2009.11162 (modified loss).

    Examples
    --------
    >>> from dln_geometry.learning import closed_forms
    >>> closed_forms.modified_end_to_end_loss(lambda x: x.sum(), ([[2.0]], [[3.0]]), 0.4)
    tensor(7.3000)
    """
    layers, lr = as_factors(factors), as_positive(lr, "lr")
    k = as_positive(weight_decay, "weight_decay", zero=True)
    gradients = layer_gradients(loss, layers)
    value = loss(product(layers)) + lr / 4 * sum(d.square().sum() for d in gradients)
    if k:
        size = sum(w.square().sum() for w in layers)
        # <D_p, W_p> = <E', X> for every layer: the last one has no partial product behind it.
        overlap = len(layers) * (gradients[-1] * layers[-1]).sum()
        value = value + k / 2 * size + lr / 4 * (2 * k * overlap + k**2 * size)
    return value


def _gradients_along_flow(loss: Loss, layers: Layers, k: float) -> tuple[Layers, Layers]:
    """Return the gradients D and their derivative along ``F_0 = -(D + k W)``."""
    d = layer_gradients(loss, layers)
    flow = tuple(-(x + k * w) for x, w in zip(d, layers, strict=True))
    return d, torch.func.jvp(lambda *w: layer_gradients(loss, w), layers, flow)[1]
