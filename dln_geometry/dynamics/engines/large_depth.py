"""Engines for depths so large that layers no longer resolve X, and for infinite depth."""

from __future__ import annotations

import torch
from torch import Tensor

from dln_geometry.dynamics.engines.engine import (
    CollapsedEngine,
    Engine,
    finite_eigh,
    minus_product,
    observables,
)
from dln_geometry.dynamics.losses import Loss, contract
from dln_geometry.geometry.kernel import log_kernel_of_log
from dln_geometry.geometry.points import Collapsed, EndToEnd, as_point


class PairEngine(CollapsedEngine):
    """Two matrices of the depth-2 network, ``X = L R^T``, ``L^T L = R^T R = Q diag(s) Q^T``.

    The flow of depth N is that of depth 2 for the preconditioned gradient ``A_2^{-1} A_N(G)``:
    ``dL = -G R Q w Q^T - L Q ( ((a_ij/(s_i + s_j) - w_j)/s_i) o Q^T K Q ) Q^T``, the same for R
    with the transposes, ``w = s^{1-2/N}``. No N-th root of a singular value is ever held, which
    at large N would be 1 up to rounding.
    """

    def __init__(self, loss: Loss, start: Collapsed | EndToEnd, *, watch: bool = False) -> None:
        self.given = start
        p = as_point(start)
        pair = Collapsed.of(EndToEnd(p.u, p.s, p.vh, 2.0))
        super().__init__(loss, pair, watch=watch)
        self.depth = start.depth

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        left, right = self.views(y)
        d_left, d_right = self.views(out)
        value, g_right, g_left = contract(self.loss, left, right)
        s, q = finite_eigh(left.mT @ left)
        # Eigenvalues below the rounding of the largest are unknown: do not divide by them.
        s = torch.maximum(s, torch.finfo(s.dtype).eps * s[..., -1:])
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

    def point(self, y: Tensor) -> Collapsed | EndToEnd:
        # A point of the start's own view: the N-th roots of the other one lose digits.
        p = self.pair(y).point()
        point = EndToEnd(p.u, p.s, p.vh, self.depth, self.given.normalized)
        return point if isinstance(self.given, EndToEnd) else Collapsed.of(point)


class CoreEngine(CollapsedEngine):
    """Infinite depth: the row and column spaces of X stand still, an r x r core moves.

    ``X = U S V^T`` with U, V frozen and ``dS = -P ( a o P^T U^T G V Q ) Q^T``,
    ``S = P diag(s) Q^T``, `a` the logarithmic mean of ``s_i^2`` and ``s_j^2``.
    """

    def __init__(self, loss: Loss, start: Collapsed, *, watch: bool = False) -> None:
        super().__init__(loss, start, shapes=[(start.rank, start.rank)], watch=watch)
        point = start.point()
        self.u, self.s, self.v = point.u, point.s, point.vh.mT

    def rows(self) -> Tensor:
        return self.join(torch.diag_embed(self.s))

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        (core,), (d_core,) = self.views(y), self.views(out)
        value, g_right, _ = contract(self.loss, self.u @ core, self.v)
        # A NaN makes the integrator reject the trial step; the decomposition would raise.
        finite = torch.isfinite(core).all(-1).all(-1)[..., None, None]
        p, s, qh = torch.linalg.svd(torch.where(finite, core, 0.0))
        p = torch.where(finite, p, torch.nan)
        kernel = torch.exp(log_kernel_of_log(s.log(), self.depth, True))
        k = p.mT @ (self.u.mT @ g_right) @ qh.mT
        moved = kernel * k
        minus_product(d_core, p @ moved, qh)
        return observables(value, (moved * k).sum((-2, -1)) if self.watch else None)

    def pair(self, y: Tensor) -> Collapsed:
        p, s, qh = torch.linalg.svd(y.view(-1, *self.shapes[0]))
        u, v = (w.reshape(-1, *w.shape[-2:]) for w in (self.u, self.v))
        return Collapsed.of(EndToEnd(u @ p, s, qh @ v.mT, self.depth))

    def singular_values(self, y: Tensor) -> Tensor:
        return torch.linalg.svdvals(y.view(-1, *self.shapes[0]))

    # The core has no invariants.
    defect, rebalanced = Engine.defect, Engine.rebalanced
