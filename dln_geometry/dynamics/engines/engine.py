"""What an engine is, and the engines on two or three matrices at finite depth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import Loss, contract
from dln_geometry.geometry.kernel import geometric_sum, power_divided_difference
from dln_geometry.geometry.points import Collapsed, EndToEnd, chain_svd
from dln_geometry.support import Depth

LOSS, GRADIENT = 0, 1


class Engine(ABC):
    """A way to hold the state of B flows as rows of numbers (B, n).

    A row holds matrices of the given `shapes` (a, b) one after the other; `batch` are the leading
    dimensions of the flows, B in all.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int]], batch: Sequence[int], depth: float
    ) -> None:
        self.shapes, self.batch, self.depth = tuple(shapes), tuple(batch), Depth(depth)
        self.sizes = tuple(a * b for a, b in self.shapes)
        ends = list(accumulate(self.sizes))
        self._views = [
            (end - a * b, end, (*self.batch, a, b))
            for end, (a, b) in zip(ends, self.shapes, strict=True)
        ]

    def views(self, y: Tensor) -> list[Tensor]:
        """Return views of all rows `y`, (*batch, a, b) each, as losses know them."""
        return [y[:, start:end].view(shape) for start, end, shape in self._views]

    def split(self, y: Tensor) -> list[Tensor]:
        """Return views of any rows `y` (b, n), (b, a, b) each."""
        return [y[:, start:end].view(-1, *shape[-2:]) for start, end, shape in self._views]

    def join(self, *matrices: Tensor) -> Tensor:
        """Return rows (B, n) from matrices."""
        return torch.cat([w.reshape(-1, w.shape[-2] * w.shape[-1]) for w in matrices], dim=1)

    @abstractmethod
    def rows(self) -> Tensor:
        """Return the start, shape (B, n)."""

    @abstractmethod
    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """Write the velocity into `out`; return columns: the loss and, if watched, |grad|."""

    @abstractmethod
    def singular_values(self, y: Tensor) -> Tensor:
        """Return the singular values of X of rows (b, n), shape (b, r), descending."""

    @abstractmethod
    def point(self, y: Tensor) -> Any:
        """Return the points of rows (b, n), batched."""

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        """Return the relative violation of the invariants of rows (b, n), 0 if there are none."""
        return y.new_zeros(y.shape[0])

    def rebalanced(self, y: Tensor) -> Tensor:
        """Return rows with X kept and the invariants restored, where they must vanish."""
        return y


def minus_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Write ``-a b`` into a view of the state."""
    if out.ndim == 2:
        torch.addmm(out, a, b, beta=0, alpha=-1, out=out)
    else:
        out.copy_(torch.matmul(a, b).neg_())


def finite_eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return `eigh`, with NaN for matrices that are not finite: a trial step that is rejected."""
    finite = torch.isfinite(a).all(-1).all(-1)
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    values, vectors = torch.linalg.eigh(torch.where(finite[..., None, None], a, eye))
    return torch.where(finite[..., None], values, torch.nan), vectors


def squares(a: Tensor) -> Tensor:
    """Return the squared Frobenius norm."""
    return a.square().sum((-2, -1))


def observables(value: Tensor, squared_gradient: Tensor | None) -> Tensor:
    """Return the loss, and the norm of the gradient if it is watched, shape (B, 1) or (B, 2)."""
    if squared_gradient is None:
        return value.reshape(-1, 1)
    norm = squared_gradient.clamp_min(0.0).sqrt()
    return torch.stack((value.reshape(-1), norm.reshape(-1)), dim=-1)


class CollapsedEngine(Engine):
    """A balanced network as two matrices, those of a `Collapsed`, or as other `shapes`."""

    def __init__(
        self,
        loss: Loss,
        start: Collapsed,
        *,
        shapes: Sequence[tuple[int, int]] | None = None,
        watch: bool = False,
    ) -> None:
        (m, n), r = start.shape, start.rank
        super().__init__(shapes or ((m, r), (n, r)), start.batch_shape, start.depth)
        self.loss, self.start, self.watch = loss, start, watch

    def rows(self) -> Tensor:
        return self.join(self.start.L, self.start.R)

    def pair(self, y: Tensor) -> Collapsed:
        """Return the two matrices of rows (b, n)."""
        left, right = self.split(y)
        return self.start.replace(L=left, R=right)

    def singular_values(self, y: Tensor) -> Tensor:
        return self.pair(y).singular_values

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        return self.pair(y).defect()

    def point(self, y: Tensor) -> Any:
        return self.pair(y)

    def rebalanced(self, y: Tensor) -> Tensor:
        pair = Collapsed.of(self.pair(y).point())
        return self.join(pair.L, pair.R)


class SpectralEngine(CollapsedEngine):
    """Two matrices and the eigenvalues of ``C = L^T L = Q diag(c) Q^T``: any finite depth above 1.

    With ``f(c) = c^{(N-2)/2}`` and all in the eigenbasis, ``K = Q^T L^T G R Q``:
    ``dL Q = -G (R Q) f``, ``dR Q = -G^T (L Q) f + R Q x``, ``x_kl = f[c_k, c_l] (K - K^T)_kl``.
    """

    def __init__(self, loss: Loss, start: Collapsed, *, watch: bool = False) -> None:
        super().__init__(loss, start, watch=watch)
        self.exponent = 0.5 * (self.depth - 2.0)

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
        super().__init__(loss, start, shapes=((m, r), (r, r), (n, r)), watch=watch)
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

    def pair(self, y: Tensor) -> Collapsed:
        left, middle, right = self.split(y)
        # M = f(C) O with O orthogonal; the pair takes O over to R.
        u, _, vh = torch.linalg.svd(middle)
        return self.start.replace(L=left, R=right @ (u @ vh).mT)

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
        pair = Collapsed.of(EndToEnd(u, s, vh, self.depth))
        root = torch.diag_embed(s ** (1.0 - 2.0 / self.depth))
        return self.join(pair.L, root, pair.R)


def _weighted(weights: Tensor, entries: Tensor) -> Tensor:
    """Return the product entry by entry; zero modes have infinite weights at depths below 2."""
    return torch.where(entries == 0, 0.0, weights * entries)


def _negative_power(c: Tensor, exponent: float) -> Tensor:
    """Return ``c^e`` for e < 0 with 0 for zero modes, which contribute nothing to X."""
    return torch.where(c > 0, c**exponent, 0.0)
