"""Engines on the matrix itself and on all factors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dln_geometry.dynamics.engines.engine import Engine
from dln_geometry.dynamics.engines.terms import (
    minus,
    minus_product,
    observables,
    squares,
    turned_back,
)
from dln_geometry.dynamics.losses import Loss, contract, evaluate
from dln_geometry.geometry.points import (
    EndToEnd,
    Network,
    balance,
    chain_svd,
    layer_moments,
    product,
)


class PlainEngine(Engine):
    """Depth 1: ``dX/dt = -E'(X)``."""

    def __init__(self, loss: Loss, start: Tensor, watch: bool = False) -> None:
        shapes = [(start.shape[-2], start.shape[-1])]
        super().__init__(shapes, start.shape[:-2], 1, start.is_complex())
        self.loss, self.start, self.watch = loss, start, watch

    def numbers_of_matrix(self) -> int:
        return self.shapes[0][0] * self.shapes[0][1]

    def rows(self) -> Tensor:
        return self.join(self.start)

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        (x,), (d_x,) = self.views(y), self.views(out)
        value, g = evaluate(self.loss, x)
        minus(d_x, g)
        self.decayed(y, out)
        return observables(value, self.total(squares(d_x)) if self.watch else None)

    def singular_values(self, y: Tensor) -> Tensor:
        return torch.linalg.svdvals(self.split(y)[0])

    def point(self, y: Tensor) -> EndToEnd:
        return EndToEnd.of(self.split(y)[0], 1)


class FactorEngine(Engine):
    """All factors; `defect` looks the start up by the last column of `field`, the sample index."""

    columns = ("sample",)

    def __init__(self, start: Sequence[Tensor]) -> None:
        shapes = [(w.shape[-2], w.shape[-1]) for w in start]
        super().__init__(shapes, start[0].shape[:-2], len(start), start[0].is_complex())
        self.start = tuple(start)
        count = start[0].shape[:-2].numel()
        self.sample = torch.arange(count, device=start[0].device).to(start[0].real.dtype)[:, None]

    def rows(self) -> Tensor:
        return self.join(*self.start)

    def numbers_of_matrix(self) -> int:
        return self.shapes[-1][0] * self.shapes[0][1]

    def repeated(self, count: int) -> Engine:
        wide = super().repeated(count)
        assert isinstance(wide, FactorEngine)
        wide.sample = self.sample.repeat(count, 1)
        return wide

    def singular_values(self, y: Tensor) -> Tensor:
        return chain_svd(self.split(y))[1]

    def point(self, y: Tensor) -> Network:
        return Network.from_layers(self.split(y))


class LayeredEngine(FactorEngine):
    """All factors: ``dW_p = -(W_N .. W_{p+1})^T G (W_{p-1} .. W_1)^T``, whatever their moments."""

    def __init__(self, loss: Loss, start: Sequence[Tensor], watch: bool = False) -> None:
        super().__init__(start)
        self.loss, self.watch = loss, watch
        self.moments = [g.reshape(-1, *g.shape[-2:]) for g in layer_moments(self.start)]

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        layers, velocities = self.views(y), self.views(out)
        # below[k] = W_{k+2} ... W_2: the layers from the second on.
        below = [layers[1]]
        for w in layers[2:-1]:
            below.append(w @ below[-1])
        left = layers[-1] @ below[-1] if len(layers) > 2 else layers[-1]
        value, back, g_left = contract(self.loss, left, layers[0].mH)
        velocities[0].copy_(g_left.mH).neg_()
        for p in range(len(layers) - 1, 1, -1):
            minus_product(velocities[p], back, below[p - 2].mH)
            back = layers[p].mH @ back
        minus(velocities[1], back)
        self.decayed(y, out)
        seen = observables(value, out.square().sum(-1) if self.watch else None)
        clock = () if self.decay is None else (t.to(seen.dtype).reshape(-1, 1),)
        return torch.cat((seen, self.sample, *clock), dim=1)

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        """Return the largest drift of a moment relative to its two layers.

        Decay shrinks the moments by ``e^{-2kt}``.
        """
        layers, samples = self.split(y), obs[:, 1 + self.watch].long()
        shrunk = y.new_ones(())
        if self.decay is not None:
            shrunk = torch.exp(-2.0 * self.decay[samples] * obs[:, 2 + self.watch])
            shrunk = shrunk[:, None, None]
        drift = y.new_zeros(y.shape[0])
        for (before, after), g, start in zip(
            pairwise(layers), layer_moments(layers), self.moments, strict=True
        ):
            size = squares(before) + squares(after)
            gap = torch.linalg.matrix_norm(g - shrunk * start[samples])
            drift = torch.maximum(drift, gap / torch.where(size > 0, size, 1.0))
        return drift


class ThinEngine(LayeredEngine):
    """A balanced network as its layers between hidden frames that stand still: widths r.

    Balanced layers are ``Q_p Lam Q_{p-1}^T`` and move within the spans of the hidden frames of the
    start: ``w_p = Q_p^T W_p Q_{p-1}`` follows the flow of the layers, at the cost of rank r.
    """

    reads = ("frames",)

    def __init__(self, loss: Loss, start: Network, watch: bool = False) -> None:
        hidden = start.balanced_parts()[0][1:-1]
        self.frames = [q.reshape(-1, *q.shape[-2:]) for q in hidden]
        inner = [w @ q for w, q in zip(start[1:], hidden, strict=True)]
        outer = zip([start[0], *inner[:-1]], hidden, strict=True)
        super().__init__(loss, [*(q.mH @ w for w, q in outer), inner[-1]], watch)

    def singular_values(self, y: Tensor) -> Tensor:
        # From one layer: the product would lose small ones to rounding.
        return torch.linalg.svdvals(self.split(y)[0]) ** float(self.depth)

    def point(self, y: Tensor) -> Network:
        layers = self.split(y)
        layers[:-1] = [q @ w for w, q in zip(layers[:-1], self.frames, strict=True)]
        layers[1:] = [w @ q.mH for w, q in zip(layers[1:], self.frames, strict=True)]
        return Network.from_layers(layers)

    def rebalanced(self, y: Tensor) -> Tensor:
        return self.join(*balance(self.split(y)))

    @property
    def keeps_side(self) -> bool:
        return not self.is_complex and all(a == b for a, b in self.shapes)

    def restored(self, y: Tensor, y_new: Tensor) -> Tensor:
        outside = self.outside

        def change(rows: Tensor) -> Tensor:
            rows = self.rebalanced(rows)
            if outside is None:
                return rows
            *others, last = self.split(rows)
            turned = self.join(*others, turned_back(last))
            return torch.where(outside(rows).unsqueeze(-1), turned, rows)

        return self.finite(change, y, y_new)


class MomentEngine(FactorEngine):
    """All factors, ``dW_k = 2 (G_k W_k - W_k G_{k-1})`` with the loss ``1/2 sum |G_p|^2``."""

    def __init__(self, start: Sequence[Tensor]) -> None:
        super().__init__(start)
        self.product = product([w.reshape(-1, *w.shape[-2:]) for w in start])

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        layers, velocity = self.split(y), self.split(out)
        out.zero_()
        loss = y.new_zeros(len(y))
        for k, (before, after) in enumerate(pairwise(layers)):
            g = after.mH @ after - before @ before.mH
            velocity[k].add_(g @ before, alpha=2.0)
            velocity[k + 1].sub_(after @ g, alpha=2.0)
            loss = loss + 0.5 * squares(g)
        return torch.cat((loss.unsqueeze(-1), self.sample), dim=1)

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        """Return the drift of X relative to its norm."""
        start = self.product[obs[:, 1].long()]
        size = torch.linalg.matrix_norm(start)
        drift = torch.linalg.matrix_norm(product(self.split(y)) - start)
        return drift / torch.where(size > 0, size, 1.0)
