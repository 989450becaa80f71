"""Engines on two or three matrices for finite depth above 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dln_geometry.dynamics.engines.engine import (
    CollapsedEngine,
    finite_eigh,
    minus_product,
    observables,
    squares,
)
from dln_geometry.dynamics.losses import Loss, contract
from dln_geometry.geometry.kernel import geometric_sum, power_divided_difference
from dln_geometry.geometry.points import Collapsed, EndToEnd, chain_svd


class SpectralEngine(CollapsedEngine):
    """Two matrices and the eigenvalues of ``C = L^T L = Q diag(c) Q^T``: any finite depth above 1.

    With ``f(c) = c^{(N-2)/2}`` and all in the eigenbasis, ``K = Q^T L^T G R Q``:
    ``dL Q = -G (R Q) f``, ``dR Q = -G^T (L Q) f + R Q x``, ``x_kl = f[c_k, c_l] (K - K^T)_kl``.
    """

    def __init__(self, loss: Loss, start: Collapsed, *, watch: bool = False) -> None:
        (m, n), r = start.shape, start.rank
        super().__init__(loss, start, ((m, r), (n, r)), watch)
        self.exponent = 0.5 * (self.depth - 2.0)

    def rows(self) -> Tensor:
        return self.join(self.start.L, self.start.R)

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        left, right = self.views(y)
        d_left, d_right = self.views(out)
        if self.exponent == 0.0:
            value, g_right, g_left = contract(self.loss, left, right)
            torch.neg(g_right, out=d_left)
            torch.neg(g_left, out=d_right)
            squared = squares(g_right) + squares(g_left) if self.watch else None
            return observables(value, squared)
        c, q = finite_eigh(left.mT @ left)
        c = c.clamp_min(0.0)
        f = c**self.exponent if self.exponent > 0 else _negative_power(c, self.exponent)
        f = f.unsqueeze(-2)
        left, right = left @ q, right @ q
        value, g_right, g_left = contract(self.loss, left * f, right)
        k = left.mT @ g_right
        gauge = _weighted(power_divided_difference(c, self.exponent), k - k.mT)
        minus_product(d_left, g_right * f, q.mT)
        minus_product(d_right, g_left - right @ gauge, q.mT)
        if not self.watch:
            return observables(value, None)
        inside = _weighted(power_divided_difference(c, 2.0 * self.exponent), k.square())
        squared = squares(d_left) + squares(g_left) + inside.sum((-2, -1))
        return observables(value, squared)

    def _pair(self, y: Tensor) -> Collapsed:
        left, right = self.split(y)
        return Collapsed(left, right, self.depth, self.start.normalized)

    def rebalanced(self, y: Tensor) -> Tensor:
        pair = Collapsed.of(self._pair(y).point())
        return self.join(pair.L, pair.R)


class EvenEngine(SpectralEngine):
    """The same two matrices at even depth by products alone: ``f(C) = C^k``, ``k = (N-2)/2``.

    The gauge term is the geometric sum ``x = sum_{q<k} C^{k-1-q} (K - K^T) C^q``. It is
    antisymmetric, so that each doubling of it is one product. The norm of the gradient would
    cost as much again and is not reported.
    """

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        left, right = self.views(y)
        d_left, d_right = self.views(out)
        powers = _binary_powers(left.mT @ left, int(self.exponent))
        middle = powers[-1]
        value, g_right, g_left = contract(self.loss, left @ middle, right)
        k = left.mT @ g_right
        gauge = _antisymmetric_sum(k - k.mT, powers, int(self.exponent))
        minus_product(d_left, g_right, middle)
        torch.sub(right @ gauge, g_left, out=d_right)
        return observables(value, None)


def _binary_powers(c: Tensor, k: int) -> list[Tensor]:
    """Return C and the powers met on the binary way to ``C^k``, the last one C^k."""
    powers = [c]
    for bit in bin(k)[3:]:
        powers.append(powers[-1] @ powers[-1])
        if bit == "1":
            powers.append(c @ powers[-1])
    return powers


def _antisymmetric_sum(delta: Tensor, powers: Sequence[Tensor], k: int) -> Tensor:
    """Return ``sum_{q<k} C^{k-1-q} delta C^q`` for antisymmetric `delta` along the same way."""
    total, stage = delta, 0
    for bit in bin(k)[3:]:
        half = powers[stage] @ total
        total = half - half.mT
        stage += 1
        if bit == "1":
            total = powers[0] @ total + delta @ powers[stage]
            stage += 1
    return total


class ProductEngine(CollapsedEngine):
    """Three matrices ``X = L M R^T`` at integer depth above 2: no decomposition at all.

    ``dL = -G R M^T``, ``dR = -G^T L M``, ``dM = -sum_{q=0}^{N-3} C^{N-3-q} K D^q`` with
    ``C = L^T L``, ``D = R^T R``: the last layer, the first and what lies between, in one gauge.
    """

    def __init__(self, loss: Loss, start: Collapsed, *, watch: bool = False) -> None:
        (m, n), r = start.shape, start.rank
        super().__init__(loss, start, ((m, r), (r, r), (n, r)), watch)
        self.terms = int(self.depth) - 2

    def rows(self) -> Tensor:
        return self.join(self.start.L, self.start.M, self.start.R)

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        left, middle, right = self.views(y)
        d_left, d_middle, d_right = self.views(out)
        value, g_right, g_left = contract(self.loss, left @ middle, right)
        k = left.mT @ g_right
        if self.terms == 1:
            total = k
        else:
            total = geometric_sum(left.mT @ left, k, right.mT @ right, self.terms)
        torch.neg(total, out=d_middle)
        minus_product(d_left, g_right, middle.mT)
        torch.neg(g_left, out=d_right)
        if not self.watch:
            return observables(value, None)
        squared = squares(d_left) + squares(g_left) + (k * total).sum((-2, -1))
        return observables(value, squared)

    def _pair(self, y: Tensor) -> Collapsed:
        left, middle, right = self.split(y)
        # M = f(C) O with O orthogonal; the pair takes O over to R.
        u, _, vh = torch.linalg.svd(middle)
        return Collapsed(left, right @ (u @ vh).mT, self.depth, self.start.normalized)

    def singular_values(self, y: Tensor) -> Tensor:
        left = self.split(y)[0]
        c = torch.linalg.eigvalsh(left.mT @ left).clamp_min(0.0)
        return c.flip(-1) ** (0.5 * self.depth)

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        left, middle, right = self.split(y)
        power = int(self.depth) - 2
        c = torch.linalg.matrix_power(left.mT @ left, power)
        d = torch.linalg.matrix_power(right.mT @ right, power)
        gap = torch.maximum(
            torch.linalg.matrix_norm(middle @ middle.mT - c),
            torch.linalg.matrix_norm(middle.mT @ middle - d),
        )
        norm = torch.linalg.matrix_norm(c)
        return gap / torch.where(norm > 0, norm, 1.0)

    def rebalanced(self, y: Tensor) -> Tensor:
        left, middle, right = self.split(y)
        u, s, vh = chain_svd((right.mT, middle, left), keep=True)
        pair = Collapsed.of(EndToEnd(u, s, vh, self.depth, False))
        root = torch.diag_embed(s ** (1.0 - 2.0 / self.depth))
        return self.join(pair.L, root, pair.R)


def _weighted(weights: Tensor, entries: Tensor) -> Tensor:
    """Return the product entry by entry; zero modes have infinite weights at depths below 2."""
    return torch.where(entries == 0, 0.0, weights * entries)


def _negative_power(c: Tensor, exponent: float) -> Tensor:
    """Return ``c^e`` for e < 0 with 0 for zero modes, which contribute nothing to X."""
    return torch.where(c > 0, c**exponent, 0.0)
