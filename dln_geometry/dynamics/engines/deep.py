"""Engines for depths so large that layers no longer resolve X, and for infinite depth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.dynamics.engines.base import CollapsedEngine, minus_product, observables
from dln_geometry.dynamics.losses import Loss, contract
from dln_geometry.geometry.kernel import log_kernel_of_log
from dln_geometry.geometry.point import Collapsed, EndToEnd


class PairEngine(CollapsedEngine):
    """Two matrices of the depth-2 network, ``X = L R^T``, ``L^T L = R^T R = Q diag(s) Q^T``.

    The flow of depth N is that of depth 2 for the preconditioned gradient ``A_2^{-1} A_N(G)``:
    ``dL = -G R Q w Q^T - L Q ( ((a_ij/(s_i + s_j) - w_j)/s_i) o Q^T K Q ) Q^T``, the same for R
    with the transposes, ``w = s^{1-2/N}``. No N-th root of a singular value is ever held, which
    at large N would be 1 up to rounding.
    """

    def __init__(self, loss: Loss, start: Collapsed, *, watch: bool = False) -> None:
        (m, n), r = start.shape, start.rank
        super().__init__(loss, start, ((m, r), (n, r)), watch)

    def rows(self) -> Tensor:
        point = self.start.point()
        pair = Collapsed.of(EndToEnd(point.u, point.s, point.vh, 2.0, False))
        return self.join(pair.L, pair.R)

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        left, right = self.views(y)
        d_left, d_right = self.views(out)
        value, g_right, g_left = contract(self.loss, left, right)
        s, q = torch.linalg.eigh(left.mT @ left)
        s = s.clamp_min(torch.finfo(s.dtype).tiny)
        x = s.log()
        w = torch.exp((1.0 - 2.0 / self.depth) * x)
        log_a = log_kernel_of_log(x, self.depth, False)
        b = torch.exp(log_a) / (s.unsqueeze(-1) + s.unsqueeze(-2))
        inside = (b - w.unsqueeze(-2)) / s.unsqueeze(-1)
        k = q.mT @ (left.mT @ g_right) @ q
        outer = (q * w.unsqueeze(-2)) @ q.mT
        minus_product(d_left, g_right, outer)
        minus_product(d_right, g_left, outer)
        d_left.sub_(left @ (q @ (inside * k) @ q.mT))
        d_right.sub_(right @ (q @ (inside * k.mT) @ q.mT))
        if not self.watch:
            return observables(value, None)
        squared = -(g_right * d_left).sum((-2, -1)) - (g_left * d_right).sum((-2, -1))
        return observables(value, squared)

    def _depth_two(self, y: Tensor) -> Collapsed:
        left, right = self.split(y)
        return Collapsed(left.reshape(-1, *self.shapes[0]), right.reshape(-1, *self.shapes[1]), 2.0)

    def _pair(self, y: Tensor) -> Collapsed:
        point = self._depth_two(y).point()
        return Collapsed.of(EndToEnd(point.u, point.s, point.vh, self.depth, False))

    def singular_values(self, y: Tensor) -> Tensor:
        return self._depth_two(y).singular_values()

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        return self._depth_two(y).defect()

    def rebalanced(self, y: Tensor) -> Tensor:
        pair = Collapsed.of(self._depth_two(y).point())
        return self.join(pair.L, pair.R)


class CoreEngine(CollapsedEngine):
    """Infinite depth: the row and column spaces of X stand still, an r x r core moves.

    ``X = U S V^T`` with U, V frozen and ``dS = -P ( a o P^T U^T G V Q ) Q^T``,
    ``S = P diag(s) Q^T``, `a` the logarithmic mean of ``s_i^2`` and ``s_j^2``.
    """

    def __init__(self, loss: Loss, start: Collapsed, *, watch: bool = False) -> None:
        r = start.rank
        super().__init__(loss, start, ((r, r),), watch)
        point = start.point()
        self.u, self.s, self.v = point.u, point.s, point.vh.mT

    def rows(self) -> Tensor:
        return self.join(torch.diag_embed(self.s))

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        (core,), (d_core,) = self.views(y), self.views(out)
        value, g_right, _ = contract(self.loss, self.u @ core, self.v)
        p, s, qh = torch.linalg.svd(core)
        kernel = torch.exp(log_kernel_of_log(s.log(), math.inf, True))
        k = p.mT @ (self.u.mT @ g_right) @ qh.mT
        moved = kernel * k
        minus_product(d_core, p @ moved, qh)
        return observables(value, (moved * k).sum((-2, -1)) if self.watch else None)

    def _pair(self, y: Tensor) -> Collapsed:
        p, s, qh = torch.linalg.svd(y.view(-1, *self.shapes[0]))
        u, v = (w.reshape(-1, *w.shape[-2:]) for w in (self.u, self.v))
        return Collapsed.of(EndToEnd(u @ p, s, qh @ v.mT, math.inf, True))

    def singular_values(self, y: Tensor) -> Tensor:
        return torch.linalg.svdvals(y.view(-1, *self.shapes[0]))

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        # There is no invariant that could be violated.
        return y.new_zeros(y.shape[0])

    def rebalanced(self, y: Tensor) -> Tensor:
        return y
