"""Derivatives of matrix powers: divided differences of ``c^e``, and sums of products of powers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.kernel.higher_differences import (
    log_second_difference,
    second_difference,
)
from dln_geometry.support import Depth, on_device

STRIP = 64
"""Rows of a strip of a large table of pairs."""


def power_divided_difference(c: Tensor, exponent: float) -> Tensor:
    """Return ``f[c_k, c_l]`` of ``f(c) = c^e`` for the eigenvalues ``c >= 0``, shape (..., r, r).

    ``sinh(e t/2)/sinh(t/2) exp((e-1)/2 (x_k + x_l))`` with ``x = log c``, ``t = x_k - x_l``; the
    derivative on the diagonal. 0 for two zeros, whatever the exponent. Of one large matrix half is
    computed, in strips that stay in the cache.
    """
    if exponent == 0.0:
        return torch.zeros_like(c.unsqueeze(-1) + c.unsqueeze(-2))
    if exponent == 1.0:
        return torch.ones_like(c.unsqueeze(-1) + c.unsqueeze(-2))
    x = c.log()
    slope = torch.exp((exponent - 1.0) * x)
    if c.ndim > 1 or len(c) < 2 * STRIP or on_device(c):
        return _differences_of_pairs(x, slope, x, slope, exponent)
    out = c.new_empty(len(c), len(c))
    for start in range(0, len(c), STRIP):
        own, rest = slice(start, start + STRIP), slice(start, None)
        strip = _differences_of_pairs(x[own], slope[own], x[rest], slope[rest], exponent)
        out[own, rest], out[rest, own] = strip, strip.mT
    return out


def _differences_of_pairs(
    x: Tensor, slope: Tensor, y: Tensor, other: Tensor, exponent: float
) -> Tensor:
    """Return the divided differences between ``e^x`` and ``e^y``, given ``e^{(exponent-1) x}``."""
    gap = (x.unsqueeze(-1) - y.unsqueeze(-2)).abs()
    # NaN for two zeros.
    apart = gap > 0
    # (e^{ex} - e^{ey})/(e^x - e^y) from the larger argument: both expm1 have one sign.
    ratio = torch.where(apart, torch.expm1(-exponent * gap) / torch.expm1(-gap), exponent)
    # The slope at the larger argument.
    choose = torch.maximum if exponent > 1.0 else torch.minimum
    value = ratio * choose(slope.unsqueeze(-1), other.unsqueeze(-2))
    if exponent > 1.0:
        return value
    zeros = torch.isneginf(x).unsqueeze(-1) & torch.isneginf(y).unsqueeze(-2)
    return value.masked_fill(zeros, 0.0)


def power_second_difference(c: Tensor, exponent: float) -> Tensor:
    """Return ``f[c_i, c_k, c_j]`` of ``f(c) = c^e`` for c > 0, shape (..., r, r, r)."""
    if exponent in (0.0, 1.0):
        return torch.zeros_like(
            c[..., :, None, None] + c[..., None, :, None] * c[..., None, None, :]
        )
    size, x = abs(exponent), c.log()
    nodes = x[..., :, None, None], x[..., None, :, None], x[..., None, None, :]
    if size > 1.0:
        second = second_difference([0.5 * size * y for y in nodes], Depth(size), False)
    elif size == 1.0:
        second = torch.zeros_like(nodes[0] + nodes[1] + nodes[2])
    else:
        second = -size * torch.exp(log_second_difference(*nodes, Depth(1.0 / size)))
    if exponent > 0.0:
        return second
    # Leibniz' rule for c^{-e} c^e = 1.
    first, f = power_divided_difference(c, size), c**size
    inverse = power_divided_difference(c, exponent)
    rest = first.unsqueeze(-1) * inverse.unsqueeze(-3) + second / f[..., None, None, :]
    return -rest / f[..., :, None, None]


def geometric_sum(left: Tensor, middle: Tensor, right: Tensor, terms: int) -> Tensor:
    """Return ``sum_{q=0}^{n-1} left^{n-1-q} middle right^q`` by doubling: O(log n) products."""
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


def _turned(q: Tensor, weights: Tensor, a: Tensor) -> Tensor:
    """Return ``Q (weights o Q^T a Q) Q^T``."""
    return q @ (weights * (q.mH @ a @ q)) @ q.mH


class MatrixPower(torch.autograd.Function):
    """``C^e`` of positive definite C, with a derivative that is exact at equal eigenvalues too."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, exponent: float) -> Tensor:
        values, q = torch.linalg.eigh(c)
        ctx.save_for_backward(values.clamp_min(0.0), q)
        ctx.exponent = exponent
        return (q * (values.clamp_min(0.0) ** exponent).unsqueeze(-2)) @ q.mH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        values, q = ctx.saved_tensors
        return _turned(q, power_divided_difference(values, ctx.exponent), grads[0]), None


class MatrixPowerSlope(torch.autograd.Function):
    """The derivative ``Df(C)[a]`` of ``f(C) = C^e`` along any `a`, differentiable as the power."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, a: Tensor, exponent: float) -> Tensor:
        values, q = torch.linalg.eigh(c)
        ctx.save_for_backward(values.clamp_min(0.0), q, a)
        ctx.exponent = exponent
        return _turned(q, power_divided_difference(values.clamp_min(0.0), exponent), a)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        values, q, a = ctx.saved_tensors
        g, inside = q.mH @ grads[0] @ q, q.mH @ a @ q
        second = power_second_difference(values, ctx.exponent).to(g.dtype)
        slope = torch.einsum("...ikj,...ik,...ij->...kj", second, inside.conj(), g)
        slope = slope + torch.einsum("...ikj,...kj,...ij->...ik", second, inside.conj(), g)
        first = power_divided_difference(values, ctx.exponent)
        return q @ slope @ q.mH, q @ (first * g) @ q.mH, None
