"""Gauge mirrors of a deep linear network: dead hidden directions, and what keeps them dead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.closed_forms.layers import partial_products
from dln_geometry.support import as_covector, as_factors

__all__ = ["collapse_thresholds", "dead_directions"]


def collapse_thresholds(factors: Sequence[Any], gradient: Any) -> Tensor:
    """Return the weight decay above which a dead direction of each hidden layer stays dead.

    ``sigma_max( (W_N..W_{p+2})^T E'(X) (W_{p-1}..W_1)^T )``. The reflection of a hidden direction n
    is a symmetry of every loss of X; on its fixed set, ``n^T W_p = 0`` and ``W_{p+1} n = 0``, the
    direction carries nothing. To second order ``n a^T`` in ``W_p`` and ``b n^T`` in ``W_{p+1}``
    change the loss with the penalty ``(gamma/2) sum |W|^2`` by
    ``<b, M a> + (gamma/2) (|a|^2 + |b|^2)``, M the matrix above: stable iff gamma exceeds its norm,
    and then rank is lost for good.

    Parameters
    ----------
    factors : sequence of array_like
        Layers ``(W_1, ..., W_N)``.
    gradient : array_like, shape (..., d_N, d_0)
        ``E'(X)``, the Euclidean gradient of the loss at ``X = W_N ... W_1``, without decay.

    Returns
    -------
    Tensor, shape (..., N - 1)
        One threshold per hidden layer; empty at depth 1.

    Raises
    ------
    TypeError, ValueError
        If the layers do not chain, or the gradient has the wrong shape.

    References
    ----------
    Ziyin, arXiv 2309.16932 (mirror symmetries); the thresholds are derived here.

    Examples
    --------
    >>> collapse_thresholds(([[2.0], [0.0]], [[3.0, 0.0]]), [[-0.5]])
    tensor([0.5000])
    """
    layers = as_factors(factors)
    shape = (layers[-1].shape[-2], layers[0].shape[-1])
    g = as_covector(gradient, layers[0], shape, "gradient")
    before, behind = partial_products(layers)
    values = []
    for p in range(len(layers) - 1):
        a, b = before[p], behind[p + 1]
        m = g if b is None else b.mT @ g
        values.append(torch.linalg.matrix_norm(m if a is None else m @ a.mT, ord=2))
    batch = torch.broadcast_shapes(g.shape[:-2], layers[0].shape[:-2])
    return torch.stack([v.expand(batch) for v in values], -1) if values else g.new_zeros(*batch, 0)


def dead_directions(factors: Sequence[Any], layer: int, *, rtol: float | None = None) -> Tensor:
    """Return an orthonormal basis of the dead directions n of a hidden layer, shape (d_p, k).

    ``n^T W_p = 0`` and ``W_{p+1} n = 0``, relative to the size of the two layers.

    Parameters
    ----------
    factors : sequence of array_like
        Layers ``(W_1, ..., W_N)``, no leading dimensions.
    layer : int
        p, from 1 to N - 1.
    rtol : float, optional
        Default ``d_p`` machine epsilons.

    Raises
    ------
    TypeError, ValueError
        If the layers do not chain or have leading dimensions, or there is no such hidden layer.

    Examples
    --------
    >>> dead_directions(([[2.0], [0.0]], [[3.0, 0.0]]), 1).abs()
    tensor([[0.],
            [1.]])
    """
    layers = as_factors(factors)
    if isinstance(layer, bool) or not isinstance(layer, int) or not 1 <= layer < len(layers):
        raise ValueError(f"layer must be an integer from 1 to {len(layers) - 1}, got {layer!r}")
    if layers[0].ndim != 2:
        raise ValueError(
            f"factors must have no leading dimensions, got {tuple(layers[0].shape[:-2])}: "
            "the number of dead directions may vary"
        )
    both = torch.cat([layers[layer - 1], layers[layer].mT], -1)
    d = both.shape[0]
    if rtol is None:
        rtol = d * torch.finfo(both.dtype).eps
    # A square decomposition of d_p vectors: its last columns are what nothing reaches.
    u, s, _ = torch.linalg.svd(torch.cat([both, both.new_zeros(d, d)], -1), full_matrices=False)
    return u[:, s <= rtol * s[0]]
