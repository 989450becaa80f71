"""The depth kernel and its slope, from logarithms of singular values.

``a_ij = sum_{p=1}^N s_i^{2(N-p)/N} s_j^{2(p-1)/N} = (s_i^2 - s_j^2)/(s_i^{2/N} - s_j^{2/N})``
holds the eigenvalues of the metric, the factors of the orbit volume, the variance of the noise and
the preconditioner of the gradient flow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.support import (
    Array,
    Depth,
    as_depth,
    as_float_tensor,
    as_normalized,
    is_differentiated,
    namespace,
)

# Depths up to which a sum over the layers costs less than two functions; eight sums below this are
# multiplied in single precision too. Pairs of a strip, which stay in the cache.
_MOST_LAYERS_SUMMED, _PAIRS_AT_ONCE = 64, 2**15


def log_depth_kernel(s: Any, depth: float, *, normalized: bool | None = None) -> Tensor:
    r"""Return the logarithm of the depth kernel of singular values.

    ``log a_ij = 2 (1 - 1/N) max(x_i, x_j) + log(expm1(-2t) / expm1(-2t/N))`` with ``x = log s`` and
    ``t = |x_i - x_j|``; the fraction is N at ``t = 0``, and derivatives near it come from the
    series of ``log(sinh t / sinh(t/N))``. At infinite depth the limit of ``a/N``, the logarithmic
    mean of ``s_i^2`` and ``s_j^2``.

    Parameters
    ----------
    s : array_like, shape (..., r)
        Singular values, non-negative, in any order.
    depth : float
        Real depth N >= 1, or ``math.inf``.
    normalized : bool, optional
        Divide by N. `None` divides at infinite depth only, `False` is refused there.

    Returns
    -------
    Tensor, shape (..., r, r)
        ``-inf`` where both values are zero and the depth is above 1; at infinite depth where one
        is.

    References
    ----------
    Arora, Cohen, Hazan 2018; Menon, arXiv 2411.09004; Cohen, Menon, Veraszto, arXiv 2210.12497
    (the limit of infinite depth).

    Examples
    --------
    >>> dln.log_depth_kernel(torch.tensor([3.0, 1.0]), 2).exp()
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

    Parameters and errors as in `log_depth_kernel`, its logarithm.

    Examples
    --------
    >>> dln.depth_kernel(torch.tensor([2.0, 2.0, 0.0]), 3)[0]
    tensor([7.5595, 7.5595, 2.5198])
    """
    return log_depth_kernel(s, depth, normalized=normalized).exp()


def log_kernel_of_log(x: Array, depth: Depth, normalized: bool) -> Array:
    """Return `log_depth_kernel` from ``x = log s`` (``-inf`` allowed), without checks."""
    return log_kernel_of_pairs(x[..., :, None], x[..., None, :], depth, normalized)


def log_kernel_of_pairs(xi: Array, xj: Array, depth: Depth, normalized: bool) -> Array:
    """Return log of the kernel of broadcast `xi` and `xj`; callers silence numpy's warnings."""
    xp, t = namespace(xi), xi - xj
    if depth == 1.0:
        return xp.zeros_like(t)
    log_kernel: Any
    if torch.is_grad_enabled() and getattr(t, "requires_grad", False):
        log_kernel = _differentiable_log_kernel(xi, xj, depth)
    else:
        # Values need no series: the ratio is right down to the last bit of a gap. Two zeros have
        # the gap NaN and take the other branch; there the second term is -inf.
        gap = xp.abs(t)
        log_kernel = xp.where(gap > 0, _log_ratio(gap, depth, xp), depth.log)
        log_kernel += depth.exponent * xp.maximum(xi, xj)
    if normalized and depth.log:
        log_kernel = log_kernel - depth.log
    return log_kernel


def _log_ratio(gap: Any, depth: Depth, xp: Any = torch) -> Any:
    """Return ``log( expm1(-2 gap) / expm1(-2 gap/N) )``, less ``log N`` at infinite depth."""
    if depth.infinite:
        return xp.log(-xp.expm1(-2 * gap) / (2 * gap))
    return xp.log(xp.expm1(-2 * gap) / xp.expm1((-2 / depth) * gap))


def _differentiable_log_kernel(xi: Any, xj: Any, depth: Depth) -> Tensor:
    """Return log of the kernel, not divided by N, with exact derivatives at equal values.

    Near them it is a power series in ``t = x_i - x_j``: derivatives of all orders are right.
    """
    # Next to a zero the gap is infinite; two zeros have no difference, and no ratio matters.
    t = torch.where(torch.isneginf(torch.minimum(xi, xj)), math.inf, xi - xj)
    near = t.abs() < _NEAR
    log_ratio = _log_ratio(torch.where(near, 1.0, t.abs()), depth)
    square = (2.0 * torch.where(near, t, 0.0)).square()
    coefficients = [c / (2 * k) for k, c in enumerate(_bernoulli(depth), start=1)]
    series = square * _horner(square, coefficients)
    close = depth.exponent * (0.5 * (xi + xj)) + series + depth.log
    return torch.where(near, close, depth.exponent * torch.maximum(xi, xj) + log_ratio)


def log_mixed_kernel(x: Array, depth: Depth, normalized: bool) -> Array:
    """Return log of the kernel between ``s = e^x`` and zero, ``s^{2-2/N}``: shape of `x`.

    For directions outside the range or corange of a point: ``-inf`` at infinite depth.
    """
    if depth == 1.0:
        return namespace(x).zeros_like(x)
    shift = math.inf if depth.infinite else depth.log if normalized else 0.0
    return depth.exponent * x - shift


def log_kernel_slope(s: Tensor, depth: Depth) -> Tensor:
    r"""Return ``d log a_ij / d s_i``, shape (..., r, r), finite at equal values.

    ``2 s_i/(s_i^2 - s_j^2) - (2/N) s_i^{2/N-1}/(s_i^{2/N} - s_j^{2/N})`` off the diagonal; on
    it the partial derivative in the first argument, ``(1 - 1/N)/s_i``. The poles at
    ``s_i = s_j`` cancel: with ``x = log s`` and ``t = x_i - x_j`` it is
    ``(2/s_i) [ b(2t) - b(2t/N)/N ]``, ``b(z) = 1/(1 - e^{-z}) - 1/z``, an entire
    combination. Where ``s_i = 0`` its limit is given: infinite for N > 2.
    """
    if depth == 1.0:
        return torch.zeros_like(s.unsqueeze(-1) + s.unsqueeze(-2))
    x, si, sj = s.log(), s.unsqueeze(-1), s.unsqueeze(-2)
    xi, xj = x.unsqueeze(-1), x.unsqueeze(-2)
    both = torch.isfinite(xi) & torch.isfinite(xj)
    t = torch.where(both, xi - xj, 0.0)
    inverse = depth.inverse
    near = t.abs() < _NEAR
    z = torch.where(near, 2.0 * t, 0.0)
    close = 0.5 * (1.0 - inverse) + z * _horner(z.square(), _bernoulli(depth))
    # Where s_i is far below s_j both terms tend to 0: subtracting 1/2 from each would lose digits.
    z = 2.0 * torch.where(near, 1.0, t)
    pole = 1.0 / z if depth.infinite else inverse * _logistic_pole(z * inverse)
    slope = 2.0 * torch.where(near, close, _logistic_pole(z) - pole)
    slope = slope / torch.where(si > 0, si, 1.0)
    # One value zero: from a_ij = max^{2-2/N} and from the expansion at s_i = 0.
    slope = torch.where((si > 0) & (sj == 0), depth.exponent / si, slope)
    if depth == 2.0:
        at_zero = 1.0 / sj
    else:
        at_zero = torch.where((sj > 0) & (depth < 2.0), 0.0, math.inf).to(slope.dtype)
    return torch.where(si == 0, at_zero, slope)


def _logistic_pole(z: Tensor) -> Tensor:
    """Return ``1/(1 - e^{-z})`` for z away from 0, without overflow on either side."""
    return torch.exp(-torch.relu(-z)) / -torch.expm1(-z.abs()) * torch.sign(z)


def langevin_function(z: Tensor) -> Tensor:
    """Return ``coth z - 1/z`` for z > 0, by its series where that cancels."""
    near = z < 0.4
    small, far = torch.where(near, z, 0.0), torch.where(near, 1.0, z)
    series = _horner(small.square(), _COTH) * small
    return torch.where(near, series, 1.0 / torch.tanh(far) - 1.0 / far)


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Evaluate a polynomial, constant term first, by Horner's rule."""
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def _bernoulli(depth: Depth) -> list[float]:
    """Return ``B_2k/(2k)! (1 - N^{-2k})``, k = 1..6, of ``b(z) - b(z/N)/N`` at ``z^{2k-1}``.

    Integrated, they are those of ``log(N sinh(z/2)/sinh(z/2N))``.
    """
    return [-b * math.expm1(-2 * k * math.log(depth)) for k, b in enumerate(_BERNOULLI, start=1)]


# Below |t| = 1/8 six terms leave a remainder under 1e-18; above, differences lose a digit.
_NEAR = 0.125
_BERNOULLI = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000)
# Coefficients of coth z - 1/z at z, z^3, ...: below z = 0.4 the next term is 4e-16.
_COTH = [1 / 3, -1 / 45, 2 / 945, -1 / 4725, 2 / 93555, -1382 / 638512875]
_COTH += [4 / 18243225, -3617 / 162820783125]


def sum_of_log_kernels(x: Tensor, depth: Depth) -> Tensor:
    """Return ``sum_{i<j} log a_ij`` of descending ``x = log s``, shape (...).

    At integer depths ``a_ij = s_i^{2-2/N} (1 + q + .. + q^{N-1})``, ``q = (s_j/s_i)^{2/N}``: sums
    and products, one logarithm for several pairs.
    """
    r = x.shape[-1]
    root = torch.exp((2.0 / depth) * x)
    # Inverses of denormal numbers leave the range.
    denormal = (root > 0) & (root < torch.finfo(x.dtype).tiny)
    summed = depth.is_integer() and 2 <= depth <= _MOST_LAYERS_SUMMED
    if not summed or is_differentiated(x) or bool(denormal.any()):
        i, j = torch.triu_indices(r, r, 1, device=x.device)
        return log_kernel_of_pairs(x[..., i], x[..., j], depth, depth.infinite).sum(-1)
    below = torch.arange(r - 1, 0, -1, dtype=x.dtype, device=x.device)
    total = depth.exponent * (below * x[..., :-1]).sum(-1)
    inverse = torch.where(root > 0, root, 1.0).reciprocal()
    rows = max(8, _PAIRS_AT_ONCE // r // 8 * 8)
    for start in range(0, r - 1, rows):
        stop = min(start + rows, r - 1)
        q = (inverse[..., start:stop, None] * root[..., None, start + 1 :]).triu()
        terms = _sum_of_powers(q, int(depth))
        if (stop - start) % 8 == 0:
            for _ in range(3):
                terms = terms[..., ::2, :] * terms[..., 1::2, :]
        total = total + terms.log().sum((-2, -1))
    return total


def _sum_of_powers(q: Tensor, count: int) -> Tensor:
    """Return ``1 + q + .. + q^{count-1}`` by doubling."""
    total, power = q, q
    bits = bin(count)[3:]
    for k, bit in enumerate(bits):
        total = 1.0 + q if k == 0 else torch.addcmul(total, total, power)
        if bit == "1":
            total = (total * q).add_(1.0)
        if k + 1 < len(bits):
            power = power.square()
            power = power * q if bit == "1" else power
    return total
