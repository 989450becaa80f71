"""Derivatives of matrix powers: divided differences of ``c^e``, and sums of products of powers."""

from __future__ import annotations

import torch
from torch import Tensor


def power_divided_difference(c: Tensor, exponent: float) -> Tensor:
    """Return ``f[c_k, c_l]`` of ``f(c) = c^e`` for the eigenvalues ``c >= 0``, shape (..., r, r).

    ``sinh(e t/2)/sinh(t/2) exp((e-1)/2 (x_k + x_l))`` with ``x = log c``, ``t = x_k - x_l``; the
    derivative on the diagonal. 0 for two zeros, whatever the exponent.
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
