"""The loss that gradient descent of the layers follows, in the metric of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dln_geometry.geometry.points import product
from dln_geometry.learning.closed_forms.layers import layer_gradients
from dln_geometry.support import as_factors, as_positive

__all__ = ["modified_end_to_end_loss"]


def modified_end_to_end_loss(
    loss: Callable[[Tensor], Tensor],
    factors: Sequence[Any],
    lr: float,
    *,
    weight_decay: float = 0.0,
) -> Tensor:
    """Return the modified loss of gradient descent on the layers, ``E + (lr/4) <E', A_W E'>``.

    ``A_W(Z) = sum_p (W_N..W_{p+1})(W_N..W_{p+1})^T Z (W_{p-1}..W_1)^T (W_{p-1}..W_1)``. On the
    balanced manifold it is the cometric, and the correction ``(lr/4) |grad E|^2`` in the metric
    g^N: gradient descent prefers points where E is flat *for a network of this depth*.

    With weight decay k the loss is ``E + (k/2) sum |W_p|^2``, and the correction
    ``(lr/4) (<E', A_W E'> + 2 k N <E', X> + k^2 sum |W_p|^2)``.

    Parameters
    ----------
    loss : callable
        ``loss(X)``, a scalar tensor, of the end-to-end matrix, without weight decay.
    factors : sequence of array_like
        Layers ``(W_1, ..., W_N)``, balanced or not.
    lr, weight_decay : float
        Learning rate, and k.

    Returns
    -------
    Tensor, shape ()
        Differentiable in the layers.

    Raises
    ------
    TypeError, ValueError
        If the layers do not chain, or a number is out of range.

    References
    ----------
    Menon, arXiv 2411.09004 (metric); Barrett & Dherin, arXiv 2009.11162 (modified loss).

    Examples
    --------
    >>> modified_end_to_end_loss(lambda x: x.sum(), ([[2.0]], [[3.0]]), 0.4)
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
