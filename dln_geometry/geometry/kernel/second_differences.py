r"""Ratios of second to first divided differences of ``p(l)``: all that turns when a point moves.

With ``p = s^2``, ``l = N s^{2/N}`` (``log s^2`` at infinite depth) the metric's kernel is
``a_ij = p[l_i, l_j]``, divided by N. A move Y of the point changes ``l(X X^T)`` by
``(Y_ik s_k + s_i Y_ki) / a_ik``, and that changes the cometric by ``p[l_i, l_k, l_j]``. The ratio
``p[l_i, l_k, l_j] / p[l_i, l_k]`` is of the size ``s^{-2/N}`` where both may be out of the range of
numbers; times the larger value of i and k, a factor that Y brings, it is in range wherever the
derivative is. All are made from logarithms of positive s, tensors or numpy arrays (of these,
floating-point warnings are the caller's to silence); those against zeros are limits.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch

from dln_geometry.geometry.kernel.depth_kernel import log_kernel_of_log, log_kernel_of_pairs
from dln_geometry.geometry.kernel.second_difference import log_second_difference
from dln_geometry.support import Array, least, namespace

__all__ = ["MOST_TERMS", "mixed_ratios", "outer_ratios", "ratios", "slice_of_ratios", "triples"]

MOST_TERMS = 16
"""Up to this integer depth differences are summed term by term: all terms are positive."""


def ratios(
    x: Array, depth: float, log_kernel: Array | None = None, log_weight: Array | None = None
) -> Array:
    """Return ``p[l_i, l_k, l_j] / p[l_i, l_k]``, shape (..., r, r, r), from ``x = log s``.

    Parameters
    ----------
    x : Tensor or ndarray, shape (..., r)
    depth : float
    log_kernel : Tensor or ndarray, shape (..., r, r), optional
        Logarithms of the kernel divided by N, if at hand.
    log_weight : Tensor or ndarray, shape (..., r, r) in (i, k), optional
        Logarithms of factors.
    """
    xp = namespace(x)
    if log_kernel is None:
        log_kernel = log_kernel_of_log(x, depth, True)
    if depth.is_integer() and 2 <= depth <= MOST_TERMS:
        largest = xp.amax(x, axis=-1, keepdims=True)[..., None]
        lead = (2.0 - 4.0 / depth) * largest - 2.0 * math.log(depth) - log_kernel
        lead = lead if log_weight is None else lead + log_weight
        return xp.exp(lead)[..., None] * _sum(x - largest[..., 0], int(depth))
    i, k, j, place = triples(x.shape[-1], xp is torch)
    y = 2.0 * x
    log_second = log_second_difference(y[..., i], y[..., k], y[..., j], depth)[..., place]
    log_second = log_second + log_kernel[..., None, :, :] + log_kernel[..., :, None, :]
    if log_weight is not None:
        log_second = log_second + log_weight[..., :, :, None]
    return xp.exp(log_second)


def slice_of_ratios(x: Array, i: int, depth: float, log_weight: Array | None = None) -> Array:
    """Return the slice i of `ratios`, shape (..., r, r); of `log_weight` the row i, (..., r)."""
    y, xi = 2.0 * x, x[..., i, None]
    log_second = log_second_difference(2.0 * xi[..., None], y[..., :, None], y[..., None, :], depth)
    rows = log_kernel_of_log(x, depth, True)
    row = log_kernel_of_pairs(xi, x, depth, True)
    log_second = log_second + rows + row[..., None, :]
    if log_weight is not None:
        log_second = log_second + log_weight[..., :, None]
    return namespace(x).exp(log_second)


def mixed_ratios(x: Array, depth: float, log_weight: Array | None = None) -> Array:
    """Return ``p[l_i, l_k, 0] / p[l_i, l_k]``, symmetric, shape (..., r, r), times a factor."""
    xp, inverse = namespace(x), 1.0 / depth
    rows, columns = x[..., :, None], x[..., None, :]
    larger = xp.maximum(rows, columns)
    slope = inverse * _slope(rows - columns, depth)
    shift = -2.0 * inverse * larger
    return slope * xp.exp(shift if log_weight is None else shift + log_weight)


def outer_ratios(x: Array, depth: float, log_weight: Array | None = None) -> Array:
    """Return ``p[0, l_k, l_j] / p[0, l_k]``, shape (..., r, r) in (k, j); finite at every depth.

    Parameters
    ----------
    x : Tensor or ndarray, shape (..., r)
    depth : float
    log_weight : Tensor or ndarray, optional
        Logarithms of what to multiply by instead of ``p[l_k, l_j]``, which is a factor.
    """
    xp, rows = namespace(x), x[..., :, None]
    if log_weight is None:
        log_weight = log_kernel_of_log(x, depth, True)
    gap = x[..., None, :] - rows
    # The larger of (0, gap) as a sum, of which numpy and torch take numbers.
    rise = 0.5 * (gap + xp.abs(gap))
    return _slope(gap, depth) * xp.exp(log_weight - 2.0 * rows - (2.0 / depth) * rise)


def _slope(gap: Array, depth: float) -> Array:
    """Return ``(1 - e^{-(1-1/N)t}) / (1 - e^{-t})``, t twice the size of a gap; its limit at 0."""
    xp = namespace(gap)
    rest = -1.0 if math.isinf(depth) else (1.0 - depth) / depth
    t = 2.0 * xp.abs(gap) + least(gap)
    return xp.expm1(rest * t) / xp.expm1(-t)


def _sum(x: Array, depth: int) -> Array:
    """Return ``p[l_i, l_k, l_j]`` as the sum over layers that it is, without its factor 1/N^2.

    Shape (..., r, r, r): the complete homogeneous polynomial of degree N - 2 in ``s^{2/N}``.
    """
    xp = namespace(x)
    y = xp.exp((2.0 / depth) * x)
    power, pair = xp.ones_like(y), xp.ones_like(y[..., :, None] * y[..., None, :])
    total = xp.ones_like(pair[..., :, :, None] * y[..., None, None, :])
    for _ in range(depth - 2):
        power = power * y
        pair = y[..., :, None] * pair + power[..., None, :]
        total = y[..., :, None, None] * total + pair[..., None, :, :]
    return total


@cache
def triples(r: int, tensors: bool) -> tuple[Any, Any, Any, Any]:
    """Return all ``i <= k <= j``, and the place of every triple; tensors or numpy arrays."""
    every = np.indices((r, r, r))
    i, k, j = np.sort(every.reshape(3, -1), axis=0)
    code = (i * r + k) * r + j
    _, first, place = np.unique(code, return_index=True, return_inverse=True)
    parts = [i[first], k[first], j[first], place.reshape(r, r, r)]
    i, k, j, place = (torch.from_numpy(part) if tensors else part for part in parts)
    return i, k, j, place
