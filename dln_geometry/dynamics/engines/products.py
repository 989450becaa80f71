"""The engine on three matrices by products alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dln_geometry.dynamics.engines.collapsed import CollapsedEngine
from dln_geometry.dynamics.engines.terms import minus, minus_product, squares
from dln_geometry.dynamics.losses import Loss, contract
from dln_geometry.geometry.kernel import geometric_sum
from dln_geometry.geometry.points import Collapsed, EndToEnd, chain_svd
from dln_geometry.support import real_product


class ProductEngine(CollapsedEngine):
    """Three matrices ``X = L M R^T`` at integer depth above 2: no decomposition at all.

    ``dL = -G R M^T``, ``dR = -G^T L M``, ``dM = -sum_{q=0}^{N-3} C^{N-3-q} K D^q`` with
    ``C = L^T L``, ``D = R^T R``: the last layer, the first and what lies between, in one gauge.
    """

    def __init__(self, loss: Loss, start: Collapsed, watch: bool = False) -> None:
        (m, n), r = start.shape, start.rank
        super().__init__(loss, start, watch, ((m, r), (r, r), (n, r)))
        self.terms = int(self.depth) - 2

    def shares(self) -> Sequence[float]:
        return (1.0, float(self.terms), 1.0)

    def rows(self) -> Tensor:
        return self.join(self.start.L, self.start.M, self.start.R)

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        left, middle, right = self.views(y)
        d_left, d_middle, d_right = self.views(out)
        top = left @ middle
        value, g_right, g_left = contract(self.loss, top, right)
        if self.terms > 1:
            k, c, d = self.gram((left, g_right), (left, left), (right, right))
            total = geometric_sum(c, k, d, self.terms)
        else:
            total = k = self.gram((left, g_right))
        minus(d_middle, total)
        minus_product(d_left, g_right, middle.mH)
        minus(d_right, g_left)
        squared = None
        if self.watch:
            squared = self.total(squares(d_left) + squares(g_left))
            squared = squared + real_product(k, total).sum((-2, -1))
        return self.finished(y, out, value, squared, (g_right, top))

    def pair(self, y: Tensor) -> Collapsed:
        left, middle, right = self.split(y)
        # M = f(C) O with O orthogonal; the pair takes O over to R.
        u, _, vh = torch.linalg.svd(middle)
        return self.start.replace(L=left, R=right @ (u @ vh).mH, check=False)

    def singular_values(self, y: Tensor) -> Tensor:
        left = self.split(y)[0]
        c = torch.linalg.eigvalsh(left.mH @ left).clamp_min(0.0)
        return c.flip(-1) ** (0.5 * self.depth)

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        left, middle, right = self.split(y)
        c = torch.linalg.matrix_power(left.mH @ left, self.terms)
        d = torch.linalg.matrix_power(right.mH @ right, self.terms)
        norm = torch.linalg.matrix_norm
        gap, size = (
            torch.maximum(norm(middle @ middle.mH - c), norm(middle.mH @ middle - d)),
            norm(c),
        )
        return gap / torch.where(size > 0, size, 1.0)

    def decomposed(self, y: Tensor) -> EndToEnd:
        left, middle, right = self.split(y)
        u, s, vh = chain_svd((right.mH, middle, left), keep=True)
        return EndToEnd(u, s, vh, self.depth, check=False)

    def rows_of(self, point: EndToEnd) -> Tensor:
        pair = Collapsed.of(point)
        root = torch.diag_embed(point.s ** (1.0 - 2.0 / self.depth)).to(pair.L.dtype)
        return self.join(pair.L, root, pair.R)
