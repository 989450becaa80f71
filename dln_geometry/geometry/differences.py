r"""Divided differences behind the metric: what its first and second variations are made of.

With ``p = s^2`` and ``l = N s^{2/N}`` (without the N if the metric is not divided by N,
``log s^2`` at infinite depth), the depth kernel is the divided difference ``a_ij = p[l_i, l_j]``.
Its variations are those of higher order, ``p[l_i, l_j, l_k]``: symmetric in the indices, positive,
and finite at equal singular values. The values outside the range and corange have ``l = 0``.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from dln_geometry.geometry.derivative import log_second_difference
from dln_geometry.geometry.kernel import log_kernel_of_log, log_kernel_of_pairs

__all__ = ["Differences", "power_slope"]

# Up to this integer depth a second difference is summed term by term, as products of matrices.
_MOST_TERMS = 16
# Above this number of entries the tensor of second differences is made slice by slice.
_MOST_ENTRIES = 1 << 23


class Differences:
    """Divided differences of ``p(l)`` at the singular values, made when asked for.

    Parameters
    ----------
    s : Tensor, shape (..., r)
        Positive singular values, in any order.
    depth : float
    normalized : bool
    """

    def __init__(self, s: Tensor, depth: float, normalized: bool) -> None:
        self.s = s
        self.depth = depth
        self.normalized = normalized
        # l = s^{2/N} / unit.
        self.unit = 1.0 / depth if normalized and math.isfinite(depth) else 1.0

    @cached_property
    def x(self) -> Tensor:
        """Logarithms of the singular values."""
        return self.s.log()

    @cached_property
    def kernel(self) -> Tensor:
        """The depth kernel ``a_ij = p[l_i, l_j]``, shape (..., r, r)."""
        if self._summed:
            return self.unit * self._homogeneous[-1]
        return torch.exp(log_kernel_of_log(self.x, self.depth, self.normalized))

    @cached_property
    def mixed(self) -> Tensor:
        """The kernel against a zero, ``p[l_i, 0]``, shape (..., r); 0 at infinite depth."""
        if math.isinf(self.depth):
            return torch.zeros_like(self.s)
        return self.unit * self.s ** (2.0 - 2.0 / self.depth)

    @cached_property
    def mixed_second(self) -> Tensor:
        """``p[l_i, l_j, 0]``, shape (..., r, r)."""
        if math.isinf(self.depth):
            return torch.zeros_like(self.kernel)
        return self.unit**2 * power_slope(2.0 / self.depth * self.x, self.depth - 1.0)

    @cached_property
    def turning(self) -> Tensor:
        """``s_i p[l_i, 0, 0] / p[l_i, 0]``, shape (..., r): ``1/s_i`` times the kernel."""
        if math.isinf(self.depth):
            return torch.zeros_like(self.s)
        return self.mixed / self.s

    @cached_property
    def bending(self) -> Tensor:
        """``s_i / p[l_i, 0]``, shape (..., r): what turns a move outwards into one of l."""
        if math.isinf(self.depth):
            return torch.zeros_like(self.s)
        return self.s ** (2.0 / self.depth - 1.0) / self.unit

    def inner(self, g: Tensor, h: Tensor) -> Tensor:
        """Return ``sum_j p[l_i, l_k, l_j] g_ij h_kj``, shape (..., r, r) in (i, k)."""
        if self._summed:
            total, power = torch.zeros_like(g @ h.mT), g
            for b in range(int(self.depth) - 1):
                total = total + self._homogeneous[-2 - b] * (power @ h.mT)
                power = power * self._roots.unsqueeze(-2)
            return self.unit**2 * total
        if not self._sliced:
            pairs = g.unsqueeze(-2) * h.unsqueeze(-3)
            return (self._second * pairs).sum(-1)
        rows = [(self._second_of(i) * (g[..., i, None, :] * h)).sum(-1) for i in range(g.shape[-2])]
        return torch.stack(rows, -2)

    def outer(self, b: Tensor, g: Tensor) -> Tensor:
        """Return ``sum_k p[l_i, l_k, l_j] b_ik g_kj``, shape (..., r, r) in (i, j)."""
        if self._summed:
            total, power = torch.zeros_like(b @ g), g
            for q in range(int(self.depth) - 1):
                total = total + (self._homogeneous[-2 - q] * b) @ power
                power = power * self._roots.unsqueeze(-2)
            return self.unit**2 * total
        if not self._sliced:
            return (self._second * (b.unsqueeze(-1) * g.unsqueeze(-3))).sum(-2)
        rows = [(self._second_of(i) * (b[..., i, :, None] * g)).sum(-2) for i in range(b.shape[-2])]
        return torch.stack(rows, -2)

    @property
    def _summed(self) -> bool:
        return self.depth.is_integer() and self.depth <= _MOST_TERMS

    @property
    def _sliced(self) -> bool:
        return self.s.numel() * self.s.shape[-1] ** 2 > _MOST_ENTRIES

    @cached_property
    def _roots(self) -> Tensor:
        return self.s ** (2.0 / self.depth)

    @cached_property
    def _homogeneous(self) -> list[Tensor]:
        """Complete homogeneous polynomials of degree 0..N-1 in pairs of ``s^{2/N}``."""
        row, column = self._roots.unsqueeze(-1), self._roots.unsqueeze(-2)
        power = torch.ones_like(column)
        terms = [torch.ones_like(row * column)]
        for _ in range(int(self.depth) - 1):
            power = power * column
            terms.append(row * terms[-1] + power)
        return terms

    @cached_property
    def _second(self) -> Tensor:
        """``p[l_i, l_k, l_j]``, shape (..., r, r, r)."""
        x = self.x
        return self.second_of_logs(
            x[..., :, None, None], x[..., None, :, None], x[..., None, None, :]
        )

    def _second_of(self, i: int) -> Tensor:
        x = self.x
        return self.second_of_logs(x[..., i, None, None], x[..., :, None], x[..., None, :])

    def second_of_logs(self, xi: Tensor, xk: Tensor, xj: Tensor) -> Tensor:
        """Return the second difference at ``s = e^x``, entry by entry: the arguments broadcast."""
        log_second = log_second_difference(2.0 * xi, 2.0 * xk, 2.0 * xj, self.depth)
        for one, two in ((xi, xk), (xk, xj), (xi, xj)):
            log_second = log_second + log_kernel_of_pairs(one, two, self.depth, self.normalized)
        if not self.normalized:
            log_second = log_second - math.log(self.depth)
        return torch.exp(log_second)


def power_slope(y: Tensor, exponent: float) -> Tensor:
    """Return the divided differences of ``l^e`` at pairs of ``l = e^y``, shape (..., r, r)."""
    row, column = y.unsqueeze(-1), y.unsqueeze(-2)
    gap = (row - column).abs()
    apart = gap > 0
    gap = torch.where(apart, gap, 1.0)
    ratio = torch.where(apart, torch.expm1(-exponent * gap) / torch.expm1(-gap), exponent)
    return torch.exp((exponent - 1.0) * torch.maximum(row, column)) * ratio
