"""The divided differences at the singular values of one point, each computed once, on demand.

The directions outside the range and corange have ``l = 0``. So have zeros among the singular
values; a move along the matrices of one rank has no entry between two of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from dln_geometry.geometry.kernel.depth_kernel import log_kernel_of_log
from dln_geometry.geometry.kernel.higher_differences import (
    MOST_TERMS,
    mixed_ratios,
    outer_ratios,
    ratios,
    slice_of_ratios,
)
from dln_geometry.support import Depth, as_depth, on_device

# Above this number of entries the tensor of second differences is made slice by slice.
_MOST_ENTRIES = 1 << 23


class Differences:
    """Divided differences of ``p(l)`` at singular values in any order, shape (..., r).

    Zeros are allowed. Below, "larger" is the larger one of ``s_i`` and ``s_k``.
    """

    def __init__(self, s: Tensor, depth: float, normalized: bool) -> None:
        self.s, self.normalized = s, normalized
        self.depth: Depth = as_depth(depth)
        # l = s^{2/N} / unit.
        self.unit = 1.0 / self.depth.unit(normalized)

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
        return self._outer_power(self.depth.exponent)

    @cached_property
    def mixed_slopes(self) -> Tensor:
        """``s_k p[l_i, l_k, 0] / p[l_i, l_k]``, shape (..., r, r) in (k, i)."""
        return self._mixed * self._shares.mH

    @cached_property
    def outer_slopes(self) -> Tensor:
        """``s_k p[0, l_k, l_j] / p[0, l_k]``, shape (..., r, r) in (k, j); 0 where l_k = 0."""
        x = self._positive
        weight = x.unsqueeze(-1) + log_kernel_of_log(x, self.depth, True)
        table = self._scale * outer_ratios(x, self.depth, weight)
        return self._against_zeros(table) if self._holed else table

    @cached_property
    def turning(self) -> Tensor:
        """``s_k p[l_k, 0, 0] / p[l_k, 0]``, shape (..., r): ``1/s_k`` times the kernel."""
        value = self._outer_power(1.0 - 2.0 * self.depth.inverse)
        return torch.where(self._zero, 0.0, value) if self._holed else value

    def _outer_power(self, exponent: float) -> Tensor:
        return torch.zeros_like(self.s) if self.depth.infinite else self.unit * self.s**exponent

    def push(self, y: Tensor, g: Tensor) -> Tensor:
        """Return ``sum_k p[l_i, l_k, l_j] b_ik g_kj``, ``b_ik = (y_ik s_k + s_i y_ki) / a_ik``.

        Shape (..., r, r) in (i, j).
        """
        turn = y * (self.s.unsqueeze(-2) if self._summed else self._shares)
        turn = turn + turn.mH
        if self._summed:
            turn = turn * self._inverse_kernel
            total, power = torch.zeros_like(turn @ g), g
            for q in range(self.depth.layers - 1):
                total = total + (self._homogeneous[-2 - q] * turn) @ power
                power = power * self._roots.unsqueeze(-2)
            return self.unit**2 * total
        turn, g = turn.unsqueeze(-1), g.unsqueeze(-3)
        if not self._sliced:
            return (self._ratios * (turn * g)).sum(-2)
        rows = [(row * (turn[..., at, :, :] * g)).sum(-2) for at, row in self._slices()]
        return torch.cat(rows, -2)

    def pull(self, g: Tensor, h: Tensor) -> Tensor:
        """Return the gradient in y of ``<h, push(y, g)>``.

        ``s_k / a_ik sum_j p[l_i, l_k, l_j] (g_ij h_kj + h_ij g_kj)``, shape (..., r, r) in (i, k);
        of complex matrices the second factors are conjugate.
        """
        if self._summed:
            total = self.unit**2 * self._inverse_kernel * self._sum_over_columns(g, h)
            return (total + total.mH) * self.s.unsqueeze(-2)
        g, h = g.unsqueeze(-2), h.conj().unsqueeze(-3)
        if not self._sliced:
            total = (self._ratios * (g * h)).sum(-1)
        else:
            rows = [(row * (g[..., at, :, :] * h)).sum(-1) for at, row in self._slices()]
            total = torch.cat(rows, -2)
        return (total + total.mH) * self._shares

    def _sum_over_columns(self, g: Tensor, h: Tensor) -> Tensor:
        """Return ``sum_j c_ikj g_ij h_kj``, c the polynomial of degree N - 2, term by term."""
        total, power = torch.zeros_like(g @ h.mH), g
        for b in range(self.depth.layers - 1):
            total = total + self._homogeneous[-2 - b] * (power @ h.mH)
            power = power * self._roots.unsqueeze(-2)
        return total

    @cached_property
    def _summed(self) -> bool:
        """Whether differences are sums over the layers, all terms in the range of numbers."""
        if not (self.depth.is_integer() and 2 <= self.depth <= MOST_TERMS):
            return False
        return not is_extreme(self.s)

    @property
    def _sliced(self) -> bool:
        return self.s.numel() * self.s.shape[-1] ** 2 > _MOST_ENTRIES

    @property
    def _scale(self) -> float:
        """The factor of the ratios against those of the metric divided by N."""
        return 1.0 if self.normalized else self.depth

    @cached_property
    def _roots(self) -> Tensor:
        return self.s ** (2.0 / self.depth)

    @cached_property
    def _homogeneous(self) -> list[Tensor]:
        """Complete homogeneous polynomials of degree 0..N-1 in pairs of ``s^{2/N}``."""
        row, column = self._roots.unsqueeze(-1), self._roots.unsqueeze(-2)
        power = torch.ones_like(column)
        terms = [torch.ones_like(row * column)]
        for _ in range(self.depth.layers - 1):
            power = power * column
            terms.append(row * terms[-1] + power)
        return terms

    @cached_property
    def _inverse_kernel(self) -> Tensor:
        return torch.where(self.kernel > 0, 1.0 / self.kernel, 0.0)

    @cached_property
    def _zero(self) -> Tensor:
        return self.s == 0

    @cached_property
    def _holed(self) -> bool:
        return on_device(self.s) or bool(self._zero.any())

    @cached_property
    def _positive(self) -> Tensor:
        """Logarithms of the singular values, 0 for a zero."""
        return torch.where(self._zero, 0.0, self.x) if self._holed else self.x

    @cached_property
    def _shares(self) -> Tensor:
        """``s_k / larger``, shape (..., r, r); 0 for two zeros."""
        rows, columns = self.s.unsqueeze(-1), self.s.unsqueeze(-2)
        larger = torch.maximum(rows, columns)
        return columns / (torch.where(larger > 0, larger, 1.0) if self._holed else larger)

    @cached_property
    def _log_larger(self) -> Tensor:
        """Logarithms of the larger value, shape (..., r, r)."""
        x = self._positive
        return torch.maximum(x.unsqueeze(-1), x.unsqueeze(-2))

    @cached_property
    def _mixed(self) -> Tensor:
        """``larger p[l_i, l_k, 0] / p[l_i, l_k]``, symmetric, shape (..., r, r)."""
        table = self._scale * mixed_ratios(self._positive, self.depth, self._log_larger)
        if not self._holed:
            return table
        table = self._against_zeros(table)
        return torch.where(self._zero.unsqueeze(-1), table.mH, table)

    def _against_zeros(self, table: Tensor) -> Tensor:
        """Fill the columns of zeros with their limits, and the rows of zeros with 0."""
        table = torch.where(self._zero.unsqueeze(-2), self.turning.unsqueeze(-1), table)
        return torch.where(self._zero.unsqueeze(-1), 0.0, table)

    @cached_property
    def _ratios(self) -> Tensor:
        """``larger p[l_i, l_k, l_j] / p[l_i, l_k]``, (..., r, r, r); 0 if l_i = l_k = 0."""
        x, weight = self._positive, self._log_larger
        return self._filled(ratios(x, self.depth, log_weight=weight), slice(None))

    def _slices(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield every first index i with its part of `_ratios`, made one at a time."""
        for i in range(self.s.shape[-1]):
            weight = self._log_larger[..., i, :]
            table = slice_of_ratios(self._positive, i, self.depth, weight).unsqueeze(-3)
            yield slice(i, i + 1), self._filled(table, slice(i, i + 1))

    def _filled(self, table: Tensor, at: slice) -> Tensor:
        """Scale a part of the ratios, and fill in the limits of triples with zeros."""
        table = self._scale * table
        if not self._holed:
            return table
        zero, outer = self._zero, self.outer_slopes
        table = torch.where(zero[..., None, None, :], self._mixed[..., at, :, None], table)
        table = torch.where(zero[..., None, :, None], outer[..., at, None, :], table)
        return torch.where(zero[..., at, None, None], outer.unsqueeze(-3), table)


def is_extreme(s: Tensor, order: float = 2.0) -> bool:
    """Tell whether powers of singular values of this order, or their ratios, leave the range."""
    bound = torch.finfo(s.dtype).tiny ** (0.8 / order)
    return bool(((s < bound) & (s > 0) | (s > 1.0 / bound)).any())
