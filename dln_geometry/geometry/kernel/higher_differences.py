r"""Divided differences of second and third order, zeros among the nodes or not.

A move Y of the point changes ``l(X X^T)`` by ``(Y_ik s_k + s_i Y_ki) / a_ik``, and that changes the
cometric by ``p[l_i, l_k, l_j]``. The ratio ``p[l_i, l_k, l_j] / p[l_i, l_k]`` has the size
``s^{-2/N}`` while both may overflow; times the larger value of i and k, a factor that Y brings, it
overflows only where the derivative does. Ratios are those of the metric divided by N, from
logarithms of positive s, tensors or numpy arrays (whose warnings the caller silences).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.geometry.kernel.depth_kernel import log_kernel_of_log, log_kernel_of_pairs
from dln_geometry.support import Array, Depth, epsilon, least, namespace, on_device

# Up to this integer depth differences are summed term by term: all terms are positive.
MOST_TERMS = 16
# Logarithmic width of the nodes below which the series is taken: above, the difference loses some
# bits; below, a term of the series is at most a quarter of the one before.
_NEAR = 0.5


def log_second_difference(xi: Array, xj: Array, xk: Array, depth: Depth) -> Array:
    r"""Return ``log(-g[p_i, p_j, p_k])`` of ``g(p) = N p^{1/N}`` from ``x = log p``, finite.

    The three logarithms broadcast. With the middle value y as unit and u, w the logarithmic gaps
    above and below it, it is ``y^{1/N-2} (F(-w) - F(u)) / (e^u - e^{-w})``,
    ``F(t) = N (e^{t/N} - 1) / (e^t - 1)``; for N < 2 with ``F - N``, which does not cancel as N
    tends to 1. Where the values are close, the difference of F is that of its power series.
    """
    xp, a = namespace(xi), depth.inverse
    low, high = xp.minimum(xi, xj), xp.maximum(xi, xj)
    top, bottom = xp.maximum(high, xk), xp.minimum(low, xk)
    middle = xp.maximum(low, xp.minimum(high, xk))
    up, down = top - middle, middle - bottom
    near = up + down < _NEAR
    u, w = xp.where(near, up, 0.0), xp.where(near, down, 0.0)
    # Over 1 - e^{-(u + w)}, which is u + w at equal values.
    width = u + w + least(xi)
    step = _fall_nearby(u, -w, depth) * (width / -xp.expm1(-width))
    if on_device(xi) or not near.all():
        u, w = xp.where(near, 1.0, up), xp.where(near, 1.0, down)
        rest = _rest(depth)
        if a > 0.5:
            fall = float(depth) * (_ratio(u, rest) - xp.exp(-a * w) * _ratio(w, rest))
        else:
            fall = _chord(w, depth) - xp.exp(rest * u) * _chord(u, depth)
        step = xp.where(near, step, fall / -xp.expm1(-(u + w)))
    return (a - 2.0) * middle - up + xp.log(step)


def _rest(depth: Depth) -> float:
    """Return ``1/N - 1``, without cancellation as N tends to 1."""
    return -1.0 if depth.infinite else (1.0 - depth) / depth


def _ratio(t: Array, rate: float) -> Array:
    """Return ``(1 - e^{rate t}) / (1 - e^{-t})`` for t >= 0, -rate at 0."""
    xp = namespace(t)
    t = t + least(t)
    return xp.expm1(rate * t) / xp.expm1(-t)


def _growth(t: Array, depth: Depth) -> Array:
    """Return ``N (e^{t/N} - 1)``; t at infinite depth."""
    return t if depth.infinite else namespace(t).expm1(depth.inverse * t) * float(depth)


def _chord(t: Array, depth: Depth) -> Array:
    """Return ``N (1 - e^{-t/N}) / (1 - e^{-t})`` for t >= 0, 1 at 0."""
    t = -(t + least(t))
    return _growth(t, depth) / namespace(t).expm1(t)


def _fall_nearby(u: Array, v: Array, depth: Depth) -> Array:
    """Return ``(F(v) - F(u)) / (u - v)`` next to zero, by Horner's rule in both."""
    first, *others = _falls(depth, epsilon(u))
    slope, total = u * 0.0 + first, u * 0.0 + first
    for c in others:
        slope *= u
        slope += c
        total *= v
        total += slope
    return total


@cache
def _falls(depth: Depth, eps: float) -> list[float]:
    """Return the Taylor coefficients of ``N - F`` (or ``-F``) at ``t^k``, the last k = 1."""
    # The next poles are at +-2 pi i.
    terms = 2 + math.ceil(math.log(eps) / math.log(_NEAR / (2.0 * math.pi)))
    a, found = depth.inverse, []
    for k in range(terms):
        power = -math.expm1(-(k + 1) * math.log1p(depth - 1.0)) if a > 0.5 else -(a ** (k + 1))
        # N a^{k+1} is 1 or 0 at infinite depth.
        value = depth * power if a > 0.0 else -float(k == 0)
        value /= math.factorial(k + 1)
        found.append(value - sum(c / math.factorial(k - j + 1) for j, c in enumerate(found)))
    return found[:0:-1]


def ratios(
    x: Array, depth: Depth, log_kernel: Array | None = None, log_weight: Array | None = None
) -> Array:
    """Return ``p[l_i, l_k, l_j] / p[l_i, l_k]``, shape (..., r, r, r), from ``x = log s``.

    `log_kernel` is that of A/N, if at hand; `log_weight` is added, shape (..., r, r) in (i, k).
    """
    xp = namespace(x)
    if log_kernel is None:
        log_kernel = log_kernel_of_log(x, depth, True)
    if depth.is_integer() and 2 <= depth <= MOST_TERMS:
        largest = xp.amax(x, axis=-1, keepdims=True)[..., None]
        lead = (2.0 - 4.0 / depth) * largest - 2.0 * depth.log - log_kernel
        lead = lead if log_weight is None else lead + log_weight
        return xp.exp(lead)[..., None] * _sum_over_layers(x - largest[..., 0], depth.layers)
    i, k, j, place = triples(x.shape[-1], xp is torch)
    y = 2.0 * x
    log_second = log_second_difference(y[..., i], y[..., k], y[..., j], depth)[..., place]
    log_second = log_second + log_kernel[..., None, :, :] + log_kernel[..., :, None, :]
    return xp.exp(log_second if log_weight is None else log_second + log_weight[..., None])


def slice_of_ratios(x: Array, i: int, depth: Depth, log_weight: Array | None = None) -> Array:
    """Return the slice i of `ratios`, shape (..., r, r); of `log_weight` the row i, (..., r)."""
    y, xi = 2.0 * x, x[..., i, None]
    log_second = log_second_difference(2.0 * xi[..., None], y[..., :, None], y[..., None, :], depth)
    row = log_kernel_of_pairs(xi, x, depth, True)
    log_second = log_second + log_kernel_of_log(x, depth, True) + row[..., None, :]
    log_second = log_second if log_weight is None else log_second + log_weight[..., None]
    return namespace(x).exp(log_second)


def mixed_ratios(x: Array, depth: Depth, log_weight: Array | None = None) -> Array:
    """Return ``p[l_i, l_k, 0] / p[l_i, l_k]``, symmetric, shape (..., r, r), times a factor."""
    xp, inverse = namespace(x), depth.inverse
    rows, columns = x[..., :, None], x[..., None, :]
    slope = inverse * _ratio(2.0 * xp.abs(rows - columns), _rest(depth))
    shift = -2.0 * inverse * xp.maximum(rows, columns)
    return slope * xp.exp(shift if log_weight is None else shift + log_weight)


def outer_ratios(x: Array, depth: Depth, log_weight: Array | None = None) -> Array:
    """Return ``p[0, l_k, l_j] / p[0, l_k]``, shape (..., r, r) in (k, j); finite at every depth.

    The exponential of `log_weight`, if given, replaces its factor ``p[l_k, l_j]``.
    """
    xp, rows = namespace(x), x[..., :, None]
    if log_weight is None:
        log_weight = log_kernel_of_log(x, depth, True)
    gap = x[..., None, :] - rows
    size = xp.abs(gap)
    # The larger of (0, gap), as a sum: torch and numpy name the maximum with a number differently.
    rise = 0.5 * (gap + size)
    factor = xp.exp(log_weight - 2.0 * rows - (2.0 * depth.inverse) * rise)
    return _ratio(2.0 * size, _rest(depth)) * factor


def _sum_over_layers(x: Array, depth: int) -> Array:
    """Return ``N^2 p[l_i, l_k, l_j]``, (..., r, r, r): complete homogeneous in ``s^{2/N}``."""
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


def second_difference(nodes: Sequence[Tensor], depth: Depth, normalized: bool) -> Tensor:
    """Return ``p[l_1, l_2, l_3]`` at three broadcast tensors of ``log s``.

    ``-inf`` stands for a zero. Nodes that are all zero, or all but one at infinite depth, give 0.
    """
    x = torch.stack(torch.broadcast_tensors(*nodes), -1).sort(-1, descending=True).values
    return _sorted_second_difference(x, depth, normalized)


def _sorted_second_difference(x: Tensor, depth: Depth, normalized: bool) -> Tensor:
    """Return `second_difference` at ``log s`` of shape (..., 3), descending."""
    zeros = torch.isneginf(x).sum(-1)
    y1, y2, y3 = torch.where(torch.isneginf(x), 0.0, x).unbind(-1)
    log_second = log_second_difference(2.0 * y1, 2.0 * y2, 2.0 * y3, depth)
    for one, two in ((y1, y2), (y2, y3), (y1, y3)):
        log_second = log_second + log_kernel_of_pairs(one, two, depth, True)
    scale = 1.0 if normalized else depth**2
    value = scale * torch.exp(log_second)
    if not on_device(x) and not bool((zeros > 0).any()):
        return value
    if depth.infinite:
        return torch.where(zeros > 0, 0.0, value)
    # With m zeros, p(l)/l^m is a power of l: its divided difference at the others.
    power, order = 2.0 * depth.inverse, depth - 1.0
    gap = power * (y1 - y2)
    apart = gap > 0
    gap = torch.where(apart, gap, 1.0)
    slope = torch.where(apart, torch.expm1(-order * gap) / torch.expm1(-gap), order)
    two_zeros = depth.unit(normalized) ** -2.0 * torch.exp((order - 1.0) * power * y1)
    value = torch.where(zeros == 1, two_zeros * slope, value)
    return torch.where(zeros > 2, 0.0, torch.where(zeros == 2, two_zeros, value))


def third_difference(nodes: Sequence[Tensor], depth: Depth, normalized: bool) -> Tensor:
    """Return ``p[l_1, l_2, l_3, l_4]`` at four broadcast tensors of ``log s``.

    By the recursion over the outer two nodes where they are apart; where all four are close, by
    the Taylor series about their middle, ``sum_k binom(N, k+3) c^{N-3} h_k`` with h the complete
    homogeneous polynomials of ``l/c - 1``. ``-inf`` stands for a zero; three or more give 0.
    """
    x = torch.stack(torch.broadcast_tensors(*nodes), -1).sort(-1, descending=True).values
    zeros = torch.isneginf(x).sum(-1)
    top, bottom = x[..., 0], x[..., 3]
    near = 2.0 * (top - bottom) < _NEAR
    apart = ~near & (zeros < 3)
    scale = 1.0 if normalized else float(depth)
    safe = torch.where(apart.unsqueeze(-1), x, x.new_tensor([0.0, -1.0, -2.0, -3.0]))
    step = _sorted_second_difference(safe[..., :3], depth, normalized)
    step = step - _sorted_second_difference(safe[..., 1:], depth, normalized)
    first, last, power = safe[..., 0], safe[..., 3], 2.0 * depth.inverse
    # l_1 - l_4.
    length = torch.exp(power * first) * -_growth(2.0 * (last - first), depth) / scale
    close = scale**3 * _nearby(torch.where(near.unsqueeze(-1), x, 0.0), depth)
    value = torch.where(near, close, step / length)
    return torch.where(zeros < 3, value, 0.0)


def _nearby(x: Tensor, depth: Depth) -> Tensor:
    """Return the third difference of close nodes, the metric divided by N, by its series."""
    centre = 0.5 * (x[..., :1] + x[..., 3:])
    # N (l/c - 1).
    d = _growth(2.0 * (x - centre), depth)
    terms = 3 + math.ceil(math.log(torch.finfo(x.dtype).eps) / math.log(0.5 * _NEAR))
    inverse = depth.inverse
    # binom(N, 3) / N^3, and on to binom(N, j + 3) / N^{j+3}.
    coefficient = (1.0 - inverse) * (1.0 - 2.0 * inverse) / 6.0
    parts = [torch.ones_like(d[..., 0]) for _ in range(4)]
    total = coefficient * parts[3]
    for j in range(1, terms):
        coefficient *= (1.0 - (j + 2) * inverse) / (j + 3)
        # At integer depths p(l) is a polynomial.
        if coefficient == 0.0:
            break
        parts[0] = parts[0] * d[..., 0]
        for i in range(1, 4):
            parts[i] = parts[i - 1] + d[..., i] * parts[i]
        total = total + coefficient * parts[3]
    return torch.exp((2.0 - 6.0 * inverse) * centre[..., 0]) * total
