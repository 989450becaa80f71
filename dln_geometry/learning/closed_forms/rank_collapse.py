"""Conserved functions, and dead hidden directions: when weight decay takes rank away for good."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from dln_geometry.support import (
    as_covector,
    as_factors,
    as_positive,
    as_width_sequence,
    broadcast_shapes,
)


def collapse_thresholds(factors: Sequence[Any], gradient: Any) -> Tensor:
    """Return the weight decay above which dead directions stay dead, shape (..., N - 1).

    One threshold per hidden layer; empty at depth 1:
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

    References
    ----------
    Ziyin, arXiv 2309.16932 (mirror symmetries); the thresholds are derived here.

    Examples
    --------
    >>> dln.learning.closed_forms.collapse_thresholds(([[2.0], [0.0]], [[3.0, 0.0]]), [[-0.5]])
    tensor([0.5000])
    """
    layers = as_factors(factors)
    shape = (layers[-1].shape[-2], layers[0].shape[-1])
    g = as_covector(gradient, layers[0], shape, "gradient")
    products = list(accumulate(layers, lambda x, w: w @ x))
    values = []
    for p in range(len(layers) - 2, -1, -1):
        values.append(torch.linalg.matrix_norm(g @ products[p - 1].mT if p else g, ord=2))
        g = layers[p + 1].mT @ g
    values.reverse()
    batch = broadcast_shapes(g.shape[:-2], layers[0].shape[:-2])
    return torch.stack([v.expand(batch) for v in values], -1) if values else g.new_zeros(*batch, 0)


def dead_directions(factors: Sequence[Any], layer: int, *, rtol: float | None = None) -> Tensor:
    """Return an orthonormal basis of the dead directions n of a hidden layer, shape (d_p, k).

    ``n^T W_p = 0`` and ``W_{p+1} n = 0`` up to `rtol` (by default ``d_p`` machine epsilons),
    relative to the size of the two layers. `layer` is p, from 1 to N - 1; the layers must have no
    leading dimensions.

    Examples
    --------
    >>> dln.learning.closed_forms.dead_directions(([[2.0], [0.0]], [[3.0, 0.0]]), 1).abs()
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
    eps = torch.finfo(both.dtype).eps
    rtol = d * eps if rtol is None else as_positive(rtol, "rtol", zero=True)
    # Zero columns make the decomposition square: its last columns span the complement.
    u, s, _ = torch.linalg.svd(torch.cat([both, both.new_zeros(d, d)], -1), full_matrices=False)
    return u[:, s <= rtol * s[0]]


def conserved_functions(widths: Sequence[int]) -> int:
    """Return the number of independent functions that the flow of every loss of X conserves.

    ``sum_p q_p (2 d_p + 1 - q_p) / 2``, ``q_p = min(d_p, d_{p-1} + d_{p+1})``, over the hidden
    layers, at generic points: the number of independent entries of the moments, symmetric matrices
    of size ``d_p`` and rank at most ``d_{p-1} + d_{p+1}``. Nothing else is conserved (a theorem for
    two layers; for more, the tests compare with the Lie algebra of the gradient fields), except
    where X is a number: then all losses have the same curves, and all functions but one are
    conserved.

    `widths` are ``(d_0, ..., d_N)``.

    References
    ----------
    Marcotte, Gribonval, Peyré, arXiv 2307.00144 (two layers).

    Examples
    --------
    >>> from dln_geometry.learning import closed_forms
    >>> [closed_forms.conserved_functions(widths) for widths in ((3, 2, 4), (1, 4, 1), (2, 3))]
    [3, 7, 0]
    >>> closed_forms.conserved_functions((1, 2, 2, 1))  # 6 moments and one more
    7
    """
    d = as_width_sequence(widths)
    if d[0] == d[-1] == 1:
        return sum(after * before for before, after in pairwise(d)) - 1
    ranks = [min(d[p], d[p - 1] + d[p + 1]) for p in range(1, len(d) - 1)]
    return sum(q * (2 * width + 1 - q) // 2 for q, width in zip(ranks, d[1:], strict=False))
