"""The depth kernel, the one function everything hangs on, and its derivatives.

``a_ij = sum_{p=1}^N s_i^{2(N-p)/N} s_j^{2(p-1)/N} = (s_i^2 - s_j^2)/(s_i^{2/N} - s_j^{2/N})``
holds the eigenvalues of the metric, the factors of the orbit volume, the variance of the noise
and the preconditioner of the gradient flow. All of it is evaluated in ``log s``, where nothing
cancels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.support import Array, as_depth, as_float_tensor, as_normalized, namespace

__all__ = [
    "depth_kernel",
    "geometric_sum",
    "langevin_function",
    "log_depth_kernel",
    "log_kernel_slope",
    "power_divided_difference",
]


def log_depth_kernel(s: Any, depth: float, *, normalized: bool | None = None) -> Tensor:
    r"""Return the logarithm of the depth kernel of singular values.

    ``log a_ij = 2 (1 - 1/N) max(x_i, x_j) + log(expm1(-2t) / expm1(-2t/N))`` with
    ``x = log s`` and ``t = |x_i - x_j|``; the fraction is N at ``t = 0``, and near it comes from
    the series of ``log(sinh t / sinh(t/N))``, so that derivatives are exact too. At infinite depth
    the limit of ``a/N``, the logarithmic mean of ``s_i^2`` and ``s_j^2``.

    Parameters
    ----------
    s : array_like, shape (..., r)
        Singular values, non-negative, in any order.
    depth : float
        Real depth N >= 1, or ``math.inf``.
    normalized : bool, optional
        Divide by N. `None` divides at infinite depth only.

    Returns
    -------
    Tensor, shape (..., r, r)
        Finite wherever a singular value is positive (at finite depth); ``-inf`` where both
        are zero and the depth is above 1.

    Raises
    ------
    ValueError
        If a singular value is negative or not finite, the depth is below 1, or
        ``normalized=False`` at infinite depth.

    References
    ----------
    Arora, Cohen, Hazan 2018; Menon, arXiv 2411.09004; Cohen, Menon, Veraszto, arXiv 2210.12497
    (the limit of infinite depth).

    Examples
    --------
    >>> log_depth_kernel(torch.tensor([3.0, 1.0]), 2).exp()
    tensor([[6., 4.],
            [4., 2.]])
    """
    depth = as_depth(depth)
    normalized = as_normalized(normalized, depth)
    s = as_float_tensor(s, "s")
    if s.ndim < 1:
        raise ValueError(f"s must have shape (..., r), got {tuple(s.shape)}")
    if bool((s.detach() < 0).any()):
        raise ValueError("s must be non-negative, got a negative singular value")
    return log_kernel_of_log(s.log(), depth, normalized)


def depth_kernel(s: Any, depth: float, *, normalized: bool | None = None) -> Tensor:
    """Return the depth kernel ``a_ij`` of singular values, shape (..., r, r).

    The exponential of `log_depth_kernel`: see there for parameters and errors.

    Examples
    --------
    >>> depth_kernel(torch.tensor([2.0, 2.0, 0.0]), 3)[0]
    tensor([7.5595, 7.5595, 2.5198])
    """
    return log_depth_kernel(s, depth, normalized=normalized).exp()


def log_kernel_of_log(x: Array, depth: float, normalized: bool) -> Array:
    """Return `log_depth_kernel` from ``x = log s`` (``-inf`` allowed), without checks."""
    return log_kernel_of_pairs(x[..., :, None], x[..., None, :], depth, normalized)


def log_kernel_of_pairs(xi: Array, xj: Array, depth: float, normalized: bool) -> Array:
    """Return log of the kernel entry by entry: `xi` and `xj` broadcast.

    Of numpy arrays, too: floating-point warnings are the caller's to silence.
    """
    xp = namespace(xi)
    t = xi - xj
    if depth == 1.0:
        return xp.zeros_like(t)
    at_equal = 0.0 if math.isinf(depth) else math.log(depth)
    log_kernel: Any
    if torch.is_grad_enabled() and getattr(t, "requires_grad", False):
        log_kernel = _differentiable_log_kernel(xi, xj, depth)
    else:
        # Without derivatives nothing cancels down to the last bit of a gap; two zeros have a gap
        # that is no number, and no ratio matters.
        gap = xp.abs(t)
        log_kernel = xp.where(gap > 0, _log_ratio(gap, depth), at_equal)
        log_kernel += _exponent(depth) * xp.maximum(xi, xj)
    if normalized and at_equal:
        log_kernel = log_kernel - at_equal
    return log_kernel


def _differentiable_log_kernel(xi: Any, xj: Any, depth: float) -> Tensor:
    """Return log of the kernel, not divided by N, with its derivatives right at equal values."""
    # Next to a zero the gap is infinite; two zeros have no difference, and no ratio matters.
    t = torch.where(torch.isneginf(torch.minimum(xi, xj)), math.inf, xi - xj)
    near = t.abs() < _NEAR
    log_ratio = _log_ratio(torch.where(near, 1.0, t.abs()), depth)
    close = _log_kernel_nearby(0.5 * (xi + xj), torch.where(near, t, 0.0), depth)
    return torch.where(near, close, _exponent(depth) * torch.maximum(xi, xj) + log_ratio)


def _exponent(depth: float) -> float:
    return 2.0 * (1.0 - 1.0 / depth)


def _log_ratio(gap: Array, depth: float) -> Array:
    """Return ``log( expm1(-2 gap) / expm1(-2 gap/N) )``, N times as much at infinite depth."""
    xp = namespace(gap)
    if math.isinf(depth):
        return xp.log(-xp.expm1(-2 * gap) / (2 * gap))
    return xp.log(xp.expm1(-2 * gap) / xp.expm1((-2 / depth) * gap))


def _log_kernel_nearby(middle: Tensor, t: Tensor, depth: float) -> Tensor:
    """Return log of the kernel of ``x = middle +- t/2`` for small t, as a series.

    Analytic in t: derivatives of all orders are right at equal values, and the first is not the
    difference of two poles next to them.
    """
    square = (2.0 * t).square()
    series = square * _series(square, [b / (2 * k) for k, b in _bernoulli(depth)])
    at_equal = 0.0 if math.isinf(depth) else math.log(depth)
    return _exponent(depth) * middle + series + at_equal


def log_mixed_kernel(x: Array, depth: float, normalized: bool) -> Array:
    """Return log of the kernel between ``s = e^x`` and zero: ``s^{2-2/N}``, shape of `x`.

    These are the directions outside the range or corange of the point.
    """
    xp = namespace(x)
    if depth == 1.0:
        return xp.zeros_like(x)
    if math.isinf(depth):
        return xp.full_like(x, -math.inf)
    shift = math.log(depth) if normalized else 0.0
    return _exponent(depth) * x - shift


def log_kernel_slope(s: Tensor, depth: float) -> Tensor:
    r"""Return ``d log a_ij / d s_i``, shape (..., r, r), finite at equal values.

    ``2 s_i/(s_i^2 - s_j^2) - (2/N) s_i^{2/N-1}/(s_i^{2/N} - s_j^{2/N})`` off the diagonal; on
    it the partial derivative in the first argument, ``(1 - 1/N)/s_i``. The poles at
    ``s_i = s_j`` cancel: with ``x = log s`` and ``t = x_i - x_j`` it is
    ``(2/s_i) [ b(2t) - b(2t/N)/N ]``, ``b(z) = 1/(1 - e^{-z}) - 1/z``, an entire
    combination. Where ``s_i = 0`` its limit is given: infinite for N > 2.
    """
    if depth == 1.0:
        return torch.zeros_like(s.unsqueeze(-1) + s.unsqueeze(-2))
    x = s.log()
    xi, xj = x.unsqueeze(-1), x.unsqueeze(-2)
    si, sj = s.unsqueeze(-1), s.unsqueeze(-2)
    both = torch.isfinite(xi) & torch.isfinite(xj)
    t = torch.where(both, xi - xj, 0.0)
    inverse = 1.0 / depth
    near = t.abs() < _NEAR
    z = torch.where(near, 2.0 * t, 0.0)
    close = 0.5 * (1.0 - inverse) + z * _series(z.square(), [b for _, b in _bernoulli(depth)])
    # Far below the other value the two terms tend to 0 and must not be taken as differences of
    # numbers near 1/2: there each is used as it stands.
    z = 2.0 * torch.where(near, 1.0, t)
    pole = 1.0 / z if math.isinf(depth) else inverse * _logistic_pole(z * inverse)
    slope = 2.0 * torch.where(near, close, _logistic_pole(z) - pole)
    slope = slope / torch.where(si > 0, si, 1.0)
    # One value zero: from a_ij = max^{2-2/N} and from the expansion at s_i = 0.
    slope = torch.where((si > 0) & (sj == 0), 2.0 * (1.0 - inverse) / si, slope)
    if depth > 2.0:
        at_zero = torch.full_like(slope, math.inf)
    elif depth == 2.0:
        at_zero = 1.0 / sj.expand_as(slope)
    else:
        at_zero = torch.where(sj > 0, 0.0, math.inf).expand_as(slope).to(slope.dtype)
    return torch.where(si == 0, at_zero, slope)


def _logistic_pole(z: Tensor) -> Tensor:
    """Return ``1/(1 - e^{-z})`` for z away from 0, without overflow on either side."""
    return torch.exp(-torch.relu(-z)) / -torch.expm1(-z.abs()) * torch.sign(z)


_COTH = (
    -3617 / 162820783125,
    4 / 18243225,
    -1382 / 638512875,
    2 / 93555,
    -1 / 4725,
    2 / 945,
    -1 / 45,
    1 / 3,
)
"""Coefficients of ``coth z - 1/z``, highest first: below z = 0.4 the next term is 4e-16."""


def langevin_function(z: Tensor) -> Tensor:
    """Return ``coth z - 1/z`` for z > 0, by its series where that cancels."""
    near = z < 0.4
    q = torch.where(near, z, 0.0).square()
    series = 0.0
    for c in _COTH:
        series = series * q + c
    far = torch.where(near, 1.0, z)
    return torch.where(near, series * z, 1.0 / torch.tanh(far) - 1.0 / far)


def _series(x: Tensor, coefficients: list[float]) -> Tensor:
    """Evaluate a polynomial, constant term first, by Horner's rule."""
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


# Below |t| = 1/8 six terms leave a remainder under 1e-18; above, differences lose a digit.
_NEAR = 0.125
_BERNOULLI = (
    1.0 / 12.0,
    -1.0 / 720.0,
    1.0 / 30240.0,
    -1.0 / 1209600.0,
    1.0 / 47900160.0,
    -691.0 / 1307674368000.0,
)


def _bernoulli(depth: float) -> list[tuple[int, float]]:
    """Return ``(k, B_2k/(2k)! (1 - N^{-2k}))``, k = 1..6.

    The Taylor coefficients of ``b(z) - b(z/N)/N`` at ``z^{2k-1}``; those of the logarithm of
    ``N sinh(z/2)/sinh(z/2N)`` follow by integration.
    """
    return [
        (k, -b * math.expm1(-2 * k * math.log(depth))) for k, b in enumerate(_BERNOULLI, start=1)
    ]


def power_divided_difference(c: Tensor, exponent: float) -> Tensor:
    """Return ``f[c_k, c_l]`` of ``f(c) = c^e`` for the eigenvalues ``c >= 0``, shape (..., r, r).

    ``e`` on a logarithmic scale: ``sinh(e t/2)/sinh(t/2) exp((e-1)/2 (x_k + x_l))`` with
    ``x = log c``, ``t = x_k - x_l``; the derivative on the diagonal. Pairs of two zeros give 0:
    nothing moves there.
    """
    if exponent == 0.0:
        return torch.zeros_like(c.unsqueeze(-1) + c.unsqueeze(-2))
    if exponent == 1.0:
        return torch.ones_like(c.unsqueeze(-1) + c.unsqueeze(-2))
    x = c.log()
    larger = torch.maximum(x.unsqueeze(-1), x.unsqueeze(-2))
    smaller = torch.minimum(x.unsqueeze(-1), x.unsqueeze(-2))
    apart = smaller < larger
    gap = torch.where(apart, larger - torch.where(apart, smaller, 0.0), 1.0)
    # (e^{ex} - e^{ey})/(e^x - e^y) from the larger argument: both expm1 have one sign.
    ratio = torch.expm1(-exponent * gap) / torch.expm1(-gap)
    value = torch.exp((exponent - 1.0) * larger) * torch.where(apart, ratio, exponent)
    return torch.where(torch.isneginf(larger), 0.0, value)


def geometric_sum(left: Tensor, middle: Tensor, right: Tensor, terms: int) -> Tensor:
    """Return ``sum_{q=0}^{n-1} left^{n-1-q} middle right^q`` by doubling.

    O(log n) matrix products; no term gives zero.
    """
    if terms == 0:
        return torch.zeros_like(middle)
    total, left_power, right_power = middle, left, right
    bits = bin(terms)[3:]
    for k, bit in enumerate(bits):
        more = k + 1 < len(bits)
        total = left_power @ total + total @ right_power
        if more:
            left_power = left_power @ left_power
        if more or bit == "1":
            right_power = right_power @ right_power
        if bit == "1":
            total = left @ total + middle @ right_power
            if more:
                left_power, right_power = left_power @ left, right_power @ right
    return total
