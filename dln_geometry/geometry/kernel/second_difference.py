r"""The second divided difference of ``N p^{1/N}``: the heart of every derivative of the metric.

Of three positive numbers ``p = e^x``, given by their logarithms and equal or not: nothing cancels.
"""

from __future__ import annotations

import math
from functools import cache

from dln_geometry.support import Array, epsilon, least, namespace

__all__ = ["log_second_difference"]


def log_second_difference(xi: Array, xj: Array, xk: Array, depth: float) -> Array:
    r"""Return ``log(-g[p_i, p_j, p_k])`` of ``g(p) = N p^{1/N}`` from ``x = log p``, finite.

    The second divided difference, of ``log p`` at infinite depth; tensors or numpy arrays, which
    broadcast (of numpy, floating-point warnings are the caller's to silence). With the middle
    value y as unit and u, w the logarithmic gaps above and below it, it is
    ``y^{1/N-2} (F(-w) - F(u)) / (e^u - e^{-w})``, ``F(t) = N (e^{t/N} - 1) / (e^t - 1)``; for N < 2
    with ``F - N``, which does not cancel as N tends to 1. Where the values are close, the
    difference of F is that of its power series.
    """
    xp, a = namespace(xi), 1.0 / depth
    low, high = xp.minimum(xi, xj), xp.maximum(xi, xj)
    top, bottom = xp.maximum(high, xk), xp.minimum(low, xk)
    middle = xp.maximum(low, xp.minimum(high, xk))
    up, down = top - middle, middle - bottom
    near = up + down < _NEAR

    u, w = xp.where(near, up, 0.0), xp.where(near, down, 0.0)
    # Over 1 - e^{-(u + w)}, which is u + w at equal values.
    width = u + w + least(xi)
    step = _fall_nearby(u, -w, depth) * (width / -xp.expm1(-width))
    if not near.all():
        u, w = xp.where(near, 1.0, up), xp.where(near, 1.0, down)
        rest = (1.0 - depth) / depth if a > 0.0 else -1.0
        if a > 0.5:
            fall = depth * (_ratio(u, rest) - xp.exp(-a * w) * _ratio(w, rest))
        else:
            fall = _slope(w, a) - xp.exp(rest * u) * _slope(u, a)
        step = xp.where(near, step, fall / -xp.expm1(-(u + w)))
    return (a - 2.0) * middle - up + xp.log(step)


def _ratio(t: Array, rate: float) -> Array:
    """Return ``(1 - e^{rate t}) / (1 - e^{-t})`` for t >= 0, -rate at 0."""
    xp = namespace(t)
    t = t + least(t)
    return xp.expm1(rate * t) / xp.expm1(-t)


def _slope(t: Array, a: float) -> Array:
    """Return ``(1 - e^{-at}) / (a (1 - e^{-t}))`` for t >= 0, 1 at 0."""
    if a > 0.0:
        return _ratio(t, -a) / a
    t = t + least(t)
    return -t / namespace(t).expm1(-t)


def _fall_nearby(u: Array, v: Array, depth: float) -> Array:
    """Return ``(F(v) - F(u)) / (u - v)`` next to zero, by Horner's rule in both."""
    first, *rest = _falls(depth, epsilon(u))
    slope, total = u * 0.0 + first, u * 0.0 + first
    for c in rest:
        slope *= u
        slope += c
        total *= v
        total += slope
    return total


@cache
def _falls(depth: float, eps: float) -> list[float]:
    """Return the Taylor coefficients of ``N - F`` (or ``-F``) at ``t^k``, the last k = 1."""
    # The next poles are at +-2 pi i.
    terms = 2 + math.ceil(math.log(eps) / math.log(_NEAR / (2.0 * math.pi)))
    a, found = 1.0 / depth, []
    for k in range(terms):
        power = -math.expm1(-(k + 1) * math.log1p(depth - 1.0)) if a > 0.5 else -(a ** (k + 1))
        # N a^{k+1} is 1 or 0 at infinite depth.
        value = depth * power if a > 0.0 else -float(k == 0)
        value /= math.factorial(k + 1)
        found.append(value - sum(c / math.factorial(k - j + 1) for j, c in enumerate(found)))
    return found[:0:-1]


# Logarithmic width of the nodes below which the series is taken: above, the difference loses some
# bits; below, a term of the series is a twelfth of the one before.
_NEAR = 0.5
