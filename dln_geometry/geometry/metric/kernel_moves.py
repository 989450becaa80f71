r"""The kernel of a point that moves, to second order: for derivatives of the metric in the point.

With ``L = l(X X^T)`` and ``L' = l(X^T X)`` (see `Differences`) the cometric within the rank is the
function ``p[L, L']`` of two matrices, and so are its inverse and its square root phi. Moves b and
b' of both change ``phi(G)_ij`` by

``phi[ik;j] b_ik G_kj + G_ik phi[i;kj] b'_kj`` and, to second order,
``phi[ikm;j] b_ik b_km G_mj + phi[ik;mj] b_ik G_km b'_mj + G_ik phi[i;kmj] b'_km b'_mj``,

divided differences in either argument. Those of p[L, L'] do not tell the arguments apart; those of
the inverse and of the root follow by Leibniz' rule. A last column of the tables stands for the
directions outside of range and corange, where l is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import (
    log_kernel_of_pairs,
    second_difference,
    third_difference,
)
from dln_geometry.geometry.metric.blocks import Frames, apply_kernel
from dln_geometry.geometry.points import Nearby, nearly_equal, separate, smooth
from dln_geometry.support import Depth, as_double


def _sum(what: str, table: Tensor, *parts: Tensor) -> Tensor:
    """Return the sum of a product as `torch.einsum`, of a real table and real or complex parts."""
    return torch.einsum(what, table.to(parts[-1].dtype), *parts)


# Ranks up to which second derivatives use tables even if all singular values are separate.
_MOST = 32


def kernel_power(
    x: Tensor, g: Tensor, frames: Frames, depth: Depth, normalized: bool, power: float
) -> Tensor:
    """Return `apply_kernel` of power 1, 1/2 or -1, with its derivatives in x and g.

    `frames` is the decomposition of x, of positive singular values; the derivative is the one
    along the matrices of their rank. Twice differentiable, whatever values are equal.
    """
    u, s, vh = frames
    plain = u.detach(), s.detach(), vh.detach()
    value = apply_kernel(plain, g.detach(), depth, normalized, power)
    models = [kernel_model(depth, normalized, power, order) for order in (1, 2)]
    return smooth((value,), models, (x, g), plain)[0]


def kernel_model(
    depth: Depth, normalized: bool, power: float, order: int
) -> Callable[..., tuple[Tensor, ...]]:
    """Return the model of `apply_kernel` to first or second order in the matrix; see `smooth`."""

    def from_frames(u: Tensor, s: Tensor, vh: Tensor, g: Tensor) -> tuple[Tensor]:
        return (apply_kernel((u, s, vh), g, depth, normalized, power),)

    def model(x: Tensor, g: Tensor, frames: Frames) -> tuple[Tensor, ...]:
        r = frames[1].shape[-1]
        if (
            order == 2
            and r > _MOST
            and int(nearly_equal(frames[1].double()).sum((-2, -1)).max()) == r
        ):
            # The tables take r^4 numbers.
            return separate(from_frames, "the cometric")(x, g, frames)
        dtype, g = g.dtype, as_double(g)
        u, s, vh = (as_double(part) for part in frames)
        near = Nearby.of(x, (u, s, vh))
        left, right, scale = near.left, near.right, s[..., :1]
        frozen = depth.infinite
        tables = KernelTables.of((s / scale).log(), depth, normalized, power, order)
        b, c = moves_of_roots(near.move, s / scale, tables[0])
        phi, gv = tables[1], g @ right
        core = left.mH @ gv
        moved = (left @ phi.apply(core, b, c)) @ right.mH
        if left.shape[-2] > r and not frozen:
            moved = moved + ((gv - left @ core) @ phi.outside(c)) @ right.mH
        if right.shape[-2] > r and not frozen:
            moved = moved + left @ (phi.outside(b) @ (left.mH @ g - core @ right.mH))
        return ((moved * scale.unsqueeze(-1) ** (power * depth.exponent)).to(dtype),)

    return model


def moves_of_roots(move: Tensor, s: Tensor, plain: KernelTables) -> tuple[Tensor, Tensor]:
    """Return the moves of ``l(X X^T)`` and ``l(X^T X)`` where ``S + move`` is the core of X."""
    a, found = plain.values[..., : s.shape[-1]], []
    for e in (move, move.mH):
        square = e * s.unsqueeze(-2)
        square = square + square.mH
        b = square / a
        if plain.second is not None:
            bent = _sum("...ikj,...ik,...kj->...ij", plain.first[..., : s.shape[-1]], b, b)
            b = (square + e @ e.mH - bent) / a
        found.append(b)
    return found[0], found[1]


class KernelTables(NamedTuple):
    """Divided differences at ``x = log s``; those of second order are None to first order."""

    values: Tensor  # phi_ij, (..., r, r + 1)
    first: Tensor  # phi[ik;j], (..., r, r, r + 1)
    second: Tensor | None  # phi[ikm;j], (..., r, r, r, r + 1)
    mixed: Tensor | None  # phi[ik;mj], (..., r, r, r, r)

    @classmethod
    def of(
        cls, x: Tensor, depth: Depth, normalized: bool, power: float, order: int
    ) -> tuple[KernelTables, KernelTables]:
        """Return the tables of the cometric, and of its power 1, 1/2 or -1."""

        def placed(values: Tensor, axis: int, axes: int) -> Tensor:
            ones = (1,) * axes
            own = values.shape[-1]
            return values.reshape(*x.shape[:-1], *ones[:axis], own, *ones[axis + 1 :])

        with_zero = torch.cat((x, torch.full_like(x[..., :1], -math.inf)), -1)
        a = torch.exp(
            log_kernel_of_pairs(x.unsqueeze(-1), with_zero.unsqueeze(-2), depth, normalized)
        )
        nodes = [*(placed(x, k, 3) for k in range(2)), placed(with_zero, 2, 3)]
        plain = cls(a, second_difference(nodes, depth, normalized), None, None)
        if order == 2:
            nodes = [*(placed(x, k, 4) for k in range(3)), placed(with_zero, 3, 4)]
            third = third_difference(nodes, depth, normalized)
            plain = plain._replace(second=third, mixed=third[..., :-1])
        if power == 1.0:
            return plain, plain
        return plain, plain._root() if power == 0.5 else plain._inverse()

    def _root(self) -> KernelTables:
        """Return the tables of the square root f: Leibniz' rule for ``f f``."""
        f = self.values.sqrt()
        t = self.first / (f.unsqueeze(-2) + f.unsqueeze(-3))
        if self.second is None or self.mixed is None:
            return KernelTables(f, t, None, None)
        ends = f[..., :, None, None, :] + f[..., None, None, :, :]
        second = (self.second - t.unsqueeze(-2) * t.unsqueeze(-4)) / ends
        inner, both = f[..., :-1], self._products(t[..., :-1], t[..., :-1])
        ends = inner[..., :, None, :, None] + inner[..., None, :, None, :]
        return KernelTables(f, t, second, (self.mixed - both) / ends)

    def _inverse(self) -> KernelTables:
        """Return the tables of the inverse f: Leibniz' rule for ``a f = 1``."""
        # At infinite depth nothing outside has a finite length, and nothing is asked there.
        f = torch.where(self.values > 0, 1.0 / self.values, 0.0)
        t = -self.first * f.unsqueeze(-2) * f.unsqueeze(-3)
        if self.second is None or self.mixed is None:
            return KernelTables(f, t, None, None)
        rest = self.first.unsqueeze(-2) * t.unsqueeze(-4)
        second = -f[..., :, None, None, :] * (rest + self.second * f[..., None, None, :, :])
        inner, rest = f[..., :-1], self._products(self.first[..., :-1], t[..., :-1])
        rest = rest + self.mixed * inner[..., None, :, None, :]
        return KernelTables(f, t, second, -inner[..., :, None, :, None] * rest)

    @staticmethod
    def _products(one: Tensor, two: Tensor) -> Tensor:
        """Return ``one[i;mj] two[ik;j] + one[ik;m] two[k;mj]``."""
        first = _sum("...mji,...ikj->...ikmj", one, two)
        return first + _sum("...ikm,...mjk->...ikmj", one, two)

    def apply(self, g: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Return ``phi(G)`` within the rank, both of its arguments moved."""
        r = g.shape[-1]
        t = self.first[..., :r]
        total = self.values[..., :r] * g + _sum("...ikj,...ik,...kj->...ij", t, b, g)
        total = total + _sum("...jki,...ik,...kj->...ij", t, g, c)
        if self.second is None or self.mixed is None:
            return total
        q = self.second[..., :r]
        total = total + _sum("...ikmj,...ik,...km,...mj->...ij", q, b, b, g)
        total = total + _sum("...ikmj,...ik,...km,...mj->...ij", self.mixed, b, g, c)
        return total + _sum("...jmki,...ik,...km,...mj->...ij", q, g, c, c)

    def outside(self, b: Tensor) -> Tensor:
        """Return the matrix ``phi(L, 0)``, its argument moved, shape (..., r, r)."""
        total = torch.diag_embed(self.values[..., -1]) + self.first[..., -1] * b
        if self.second is None:
            return total
        return total + _sum("...ikm,...ik,...km->...im", self.second[..., -1], b, b)
