r"""The metric in the roots of the singular values, and its derivative in them.

A matrix of rank r is ``X = U f(K) V^T`` with K symmetric and ``f(K) = K^N``. Where the frames turn
oppositely, ``U' = U w`` and ``V' = -V w``, in the eigenframe of K

``g(X', X') = sum_ij K'_ij^2 / F_ij + w_ij^2 / C_ij + sum_j x_j^2 (|U'_j|^2 + |V'_j|^2)``,

the last sum over the moves out of the range and corange, and with the eigenvalues x of K

``F_ij = (s_i + s_j) / ((x_i + x_j) D_ij)``, ``C_ij = D_ij / ((s_i + s_j) (x_i + x_j))``,
``D_ij = (s_i - s_j)/(x_i - x_j)``, ``s = f(x)``.

F lies between 1/N and 1, and both are smooth where one x passes through zero.

At great depth all x are near 1, and their differences lose digits. There the coordinates are
``x = N (s^{1/N} - 1)``, ``f(x) = (1 + x/N)^N`` and the metric is multiplied by N. The formulas stay
the same with the roots ``s^{1/N} = 1 + x/N`` in the place of x in sums and squares. At infinite
depth ``x = log s``, and the roots are 1. See `RootCoordinate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import (
    MOST_TERMS,
    Differences,
    log_kernel_of_log,
    log_second_difference,
    small_eigh,
    triples,
)
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import Depth

# Coordinates of greater depths are relative to 1; up to this depth they lose about a digit.
_DEEP = 32.0


@dataclass(frozen=True)
class RootCoordinate:
    """The coordinate x of singular values: their roots, or ``N (s^{1/N} - 1)`` at great depth."""

    depth: Depth

    @property
    def deep(self) -> bool:
        """Whether coordinates are relative to 1, and the metric is multiplied by N."""
        return self.depth > _DEEP

    @property
    def slope(self) -> float:
        """Derivative of the roots by the coordinate."""
        return self.depth.inverse if self.deep else 1.0

    def of(self, s: Tensor) -> Tensor:
        """Return the coordinates of singular values."""
        if not self.deep or self.depth.infinite:
            return self.depth.root(s)
        return self.depth * torch.expm1(s.log() / self.depth)

    def roots(self, x: Tensor) -> Tensor:
        """Return ``s^{1/N}`` of coordinates x, and ``1`` at infinite depth."""
        return 1.0 + self.slope * x if self.deep else x

    def powers(self, x: Tensor) -> Tensor:
        """Return singular values of coordinates x; 0 where the root is negative."""
        if self.depth.infinite:
            return x.exp()
        if self.deep:
            return torch.exp(self.depth * torch.log1p((self.slope * x).clamp_min(-1.0)))
        return self.depth.power(x.clamp_min(0.0))

    def matrix_roots(self, k: Tensor) -> Tensor:
        """Return the roots of a symmetric matrix of coordinates."""
        one = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
        return one + self.slope * k if self.deep else k

    def scaled(self, k: Tensor, scale: Tensor) -> Tensor:
        """Return the matrix of coordinates of scaled matrices, `scale` of shape (..., 1)."""
        x = self.of(scale)
        moved = k * self.roots(x).unsqueeze(-1)
        return moved + torch.diag_embed(x.expand(k.shape[:-1])) if self.deep else moved


@dataclass(frozen=True)
class Rooted:
    """Matrices ``U f(K) V^T``, in any gauge: one rotation may turn U, K and V.

    K, of shape (..., r, r), holds coordinates; a root is negative after a geodesic passed through
    zero.
    """

    u: Tensor
    k: Tensor
    v: Tensor

    @classmethod
    def of(cls, p: EndToEnd) -> Rooted:
        """Return the roots of a point."""
        return cls(p.u, torch.diag_embed(RootCoordinate(p.depth).of(p.s)), p.vh.mT)

    def map(self, f: Callable[[Tensor], Tensor]) -> Rooted:
        """Return the roots with f applied to U, K and V."""
        return Rooted(f(self.u), f(self.k), f(self.v))

    def point(self, like: EndToEnd) -> EndToEnd:
        """Return the end-to-end matrices, of the depth and dtype of another point."""
        x, basis = small_eigh(self.k)
        x, basis = x.flip(-1), basis.flip(-1)
        s = RootCoordinate(like.depth).powers(x)
        return like.replace(u=self.u @ basis, s=s, vh=(self.v @ basis).mT, check=False).to(
            like.dtype
        )


class Roots(Differences):
    """Divided differences of ``f(x)`` at the eigenvalues of K, and the cometric made of them.

    `Differences` of ``sqrt(s)``: their p is s, and their l is x, up to a constant. The eigenvalues,
    (..., r), ascend; the root of the first may be negative.
    """

    depth: Depth

    def __init__(self, values: Tensor, depth: Depth) -> None:
        self.coordinate = RootCoordinate(depth)
        super().__init__(values, depth, self.coordinate.deep)
        self.values = values
        self.roots = self.coordinate.roots(values)

    @cached_property
    def x(self) -> Tensor:
        """Logarithms of ``sqrt(s)``; those of tiny in place of negative values."""
        if self.depth.infinite:
            return 0.5 * self.values
        tiny = torch.finfo(self.values.dtype).tiny ** (1.0 / self.depth)
        if self.coordinate.deep:
            return (
                0.5
                * self.depth
                * torch.log1p((self.coordinate.slope * self.values).clamp_min(tiny - 1.0))
            )
        return 0.5 * self.depth * self.values.clamp_min(tiny).log()

    @cached_property
    def _roots(self) -> Tensor:
        return self.values

    @cached_property
    def _summed(self) -> bool:
        # Powers stay in range: the largest value is about 1.
        return self.depth.is_integer() and 2 <= self.depth <= MOST_TERMS

    def inner(self, g: Tensor, h: Tensor) -> Tensor:
        """Return ``sum_j f[x_i, x_k, x_j] g_ij h_kj``, shape (..., r, r) in (i, k)."""
        if self._summed:
            return self._sum_over_columns(g, h)
        batch = self.values.shape[:-1]
        if self._sliced and math.prod(batch) > 1:
            # One point at a time: the differences of all do not fit into memory.
            g, h = (x.flatten(x.ndim - 2 - len(batch), -3) for x in (g, h))
            points = [Roots(x, self.depth) for x in self.values.flatten(0, -2)]
            parts = [p.inner(g[..., i, :, :], h[..., i, :, :]) for i, p in enumerate(points)]
            return torch.stack(parts, -3).unflatten(-3, batch)
        return (self._second * (g.unsqueeze(-2) * h.unsqueeze(-3))).sum(-1)

    @cached_property
    def powers(self) -> Tensor:
        """Singular values ``s = f(x)``, continued smoothly to negative x."""
        if self.depth.infinite:
            return self.values.exp()
        if self._summed:
            return self.values**self.depth
        if self.coordinate.deep:
            # Not from the roots, the differences of which from 1 have lost digits.
            powers = torch.exp(2.0 * self.x)
            return torch.where(self.roots > 0, powers, -(self.roots.abs() ** self.depth))
        return self.values.sign() * self.values.abs() ** self.depth

    @cached_property
    def kernel(self) -> Tensor:
        """``D_ij``, shape (..., r, r)."""
        if self._summed:
            return self._homogeneous[-1]
        between = torch.exp(log_kernel_of_log(self.x, self.depth, self.normalized))
        if not self._crossed:
            return between
        # Differences of values of opposite signs do not cancel.
        x, s = self.values, self.powers
        rise, run = (y.unsqueeze(-1) - y[..., :1].unsqueeze(-2) for y in (s, x))
        across = rise / run
        unit = self.depth * self.coordinate.slope
        across[..., 0, 0] = unit * self.roots[..., 0].abs() ** (self.depth - 1.0)
        across = torch.where((self.roots[..., :1] > 0).unsqueeze(-1), between[..., :, :1], across)
        between[..., :, :1] = across
        between[..., :1, :] = across.mT
        return between

    @cached_property
    def _crossed(self) -> bool:
        return not self.depth.infinite and bool((self.roots[..., 0] <= 0).any())

    @cached_property
    def _second(self) -> Tensor:
        """``D_ikj``, shape (..., r, r, r), evaluated at ordered indices."""
        i, k, j, place = triples(self.values.shape[-1], True)
        x, log_kernel = 2.0 * self.x, self.kernel.log()
        log_second = log_second_difference(x[..., i], x[..., k], x[..., j], self.depth)
        log_second = log_second + log_kernel[..., i, k] + log_kernel[..., k, j]
        log_second = log_second + log_kernel[..., i, j]
        log_second = log_second if self.normalized else log_second - self.depth.log
        second = torch.exp(log_second)[..., place]
        return self._across(second) if self._crossed else second

    def _across(self, second: Tensor) -> Tensor:
        """Replace entries with the index of a negative value, by recursion from the largest."""
        x, d = self.values, self.kernel
        r = x.shape[-1]
        larger = torch.maximum(x.unsqueeze(-1), x.unsqueeze(-2)) - x[..., :1].unsqueeze(-1)
        lesser = torch.minimum(
            *torch.meshgrid(*(2 * [torch.arange(r, device="cpu")]), indexing="ij")
        )
        table = (d - d[..., 0, :][..., lesser.to(x.device)]) / torch.where(larger > 0, larger, 1.0)
        negative = (self.roots[..., :1] <= 0).unsqueeze(-1)
        for part in (second[..., 0, :, :], second[..., :, 0, :], second[..., :, :, 0]):
            part.copy_(torch.where(negative, table, part))
        return second

    @cached_property
    def sums(self) -> Tensor:
        """Sums of the roots, ``x_i + x_j``; 2 at infinite depth."""
        return self.roots.unsqueeze(-1) + self.roots.unsqueeze(-2)

    @cached_property
    def power_sums(self) -> Tensor:
        """``s_i + s_j``."""
        return self.powers.unsqueeze(-1) + self.powers.unsqueeze(-2)

    @cached_property
    def stretch(self) -> Tensor:
        """``F_ij``: the cometric of moves of K."""
        stretch = self.power_sums / (self.sums * self.kernel)
        # The diagonal is known, even where the powers underflow.
        stretch.diagonal(dim1=-2, dim2=-1).fill_(1.0 if self.normalized else self.depth.inverse)
        return stretch

    @cached_property
    def turn(self) -> Tensor:
        """``C_ij``: the cometric of opposite turns of the frames; 0 on the diagonal."""
        turn = self.kernel / (self.power_sums * self.sums)
        turn.diagonal(dim1=-2, dim2=-1).zero_()
        return turn

    def slope(self, p: Tensor, m: Tensor) -> Tensor:
        """Return the derivative in K of ``1/2 sum (F_ij p_ij^2 + C_ij m_ij^2)``, (..., r, r).

        ``sum_i F[x_j, x_k; x_i] p_ij p_ik`` and the same for C, their differences written by those
        of f; accurate where ``x_j >= x_k``, and symmetric.
        """
        d, sums, total = self.kernel, self.sums, self.power_sums
        inverse, alpha = 1.0 / (sums * d), 1.0 / (total * sums)
        for part in (inverse, alpha):
            # The largest powers of the smallest value may underflow; they cancel on the diagonal.
            part[..., 0, 0] = 0.0
        pf, mc = p * self.stretch, m * self.turn
        quotient = p * inverse * sums
        second = self.inner(torch.stack([-quotient, m * alpha]), torch.stack([pf, m]))
        slope = second.sum(0) + d * ((p * inverse) @ p.mT - (m / total.clamp_min(1e-300)) @ mc.mT)
        if not self.depth.infinite:
            # The roots in the sums move too.
            moved = (p * inverse) @ (pf * d).mT + (m * alpha) @ (m * d / sums).mT
            slope = slope - self.coordinate.slope * moved
        lower = slope.tril(-1)
        return lower + lower.mT + torch.diag_embed(slope.diagonal(dim1=-2, dim2=-1))
