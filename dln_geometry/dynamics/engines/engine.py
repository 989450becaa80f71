"""The base classes of engines, and the engine on three matrices by products alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from dln_geometry.dynamics.dense import READERS
from dln_geometry.dynamics.losses import Loss, contract
from dln_geometry.geometry.kernel import geometric_sum
from dln_geometry.geometry.points import Collapsed, EndToEnd, chain_svd
from dln_geometry.support import Depth

LOSS, GRADIENT = 0, 1
Shapes = Sequence[tuple[int, int]]
Pairing = tuple[Tensor, Tensor]


class Engine(ABC):
    """A way to hold the state of B flows as rows of numbers (B, n).

    A row holds matrices of the given `shapes` (a, b) one after the other; `batch` are the leading
    dimensions of the flows, B in all.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    """Attributes, besides the shapes, that `point` and `singular_values` read."""

    def __init_subclass__(cls) -> None:
        READERS[cls.__name__] = cls

    @classmethod
    def blank(
        cls,
        shapes: Shapes,
        batch: Sequence[int],
        depth: float,
        widths: tuple[int, ...] | None,
        parts: dict[str, Any],
    ) -> Self:
        """Return an engine without a loss, which reads rows alone."""
        engine = object.__new__(cls)
        Engine.__init__(engine, shapes, batch, depth)
        engine.widths = widths
        vars(engine).update(parts)
        return engine

    def picked(self, flat: Tensor, batch: tuple[int, ...]) -> Self:
        """Return a blank engine that reads some rows alone, those of a batch of this shape."""

        def picked(part: Any) -> Any:
            if isinstance(part, list):  # frames of all samples
                return [x[flat.to(x.device)] for x in part]
            if not isinstance(part, Tensor):
                return part
            own = part.shape[-2:]
            return part.reshape(-1, *own)[flat.to(part.device)].reshape(*batch, *own)

        parts = {name: picked(getattr(self, name)) for name in self.reads}
        return self.blank(self.shapes, batch, self.depth, self.widths, parts)

    def __init__(self, shapes: Shapes, batch: Sequence[int], depth: float) -> None:
        self.shapes, self.batch, self.depth = tuple(shapes), tuple(batch), Depth(depth)
        self.widths: tuple[int, ...] | None = None
        """Widths (d_0, ..., d_N) of the layers that stand for the points of a run on layers."""
        self.sizes = tuple(a * b for a, b in self.shapes)
        places = zip(accumulate(self.sizes), self.sizes, self.shapes, strict=True)
        self._views = [(end - size, end, (*self.batch, *shape)) for end, size, shape in places]
        self.decay: Tensor | None = None  # (B,): the factor k of the decay, or none

    def shares(self) -> Sequence[float]:
        """Return how many layers each block of the state is a product of."""
        return (1.0,) * len(self.sizes)

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

    def decayed(self, y: Tensor, out: Tensor) -> None:
        """Add ``-k W_p`` to the velocity of every layer, if there is a decay."""
        if self.decay is not None:
            for (start, end, _), share in zip(self._views, self.shares(), strict=True):
                out[:, start:end].addcmul_(y[:, start:end], self.decay[:, None], value=-share)

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


def squares(a: Tensor) -> Tensor:
    """Return the squared Frobenius norm."""
    return a.square().sum((-2, -1))


def observables(value: Tensor, squared: Tensor | None = None) -> Tensor:
    """Return the columns of `field`; `squared` is the squared norm of the gradient, if watched."""
    if squared is None:
        return value.reshape(-1, 1)
    norm = squared.clamp_min(0.0).sqrt()
    return torch.stack((value.reshape(-1), norm.reshape(-1)), dim=-1)


class CollapsedEngine(Engine):
    """A balanced network as two matrices, those of a `Collapsed`, or as other `shapes`."""

    reads = ("start",)

    def __init__(self, loss: Loss, start: Collapsed, watch: bool, shapes: Shapes = ()) -> None:
        (m, n), r = start.shape, start.rank
        super().__init__(shapes or ((m, r), (n, r)), start.batch_shape, start.depth)
        self.loss, self.start, self.watch = loss, start, watch

    def rows(self) -> Tensor:
        return self.join(self.start.L, self.start.R)

    def finished(
        self, y: Tensor, out: Tensor, value: Tensor, squared: Tensor | None, pairing: Pairing
    ) -> Tensor:
        """Add the decay to the velocity, and return the columns of `field`.

        `squared` is ``|grad E|^2``, if watched; `pairing` two matrices whose inner product is
        ``<E'(X), X>``. With ``P = sum |W_p|^2 / 2`` the decay makes it
        ``|grad E|^2 + 2 k N <E', X> + 2 k^2 P``.
        """
        self.decayed(y, out)
        if self.decay is None or squared is None:
            return observables(value, squared)
        a, b = pairing
        k = self.decay.view(squared.shape)
        slope = self.depth.unit(True) * (a * b).sum((-2, -1))
        size = self.norm_squared(y).view(squared.shape)
        return observables(value, squared + 2.0 * k * slope + k.square() * size)

    def norm_squared(self, y: Tensor) -> Tensor:
        """Return ``sum |W_p|^2`` of rows (b, n), shape (b,)."""
        return self.depth * squares(self.split(y)[0])

    def pair(self, y: Tensor) -> Collapsed:
        """Return the two matrices of rows (b, n)."""
        left, right = self.split(y)
        return self.start.replace(L=left, R=right, check=False)

    def singular_values(self, y: Tensor) -> Tensor:
        return self.pair(y).singular_values

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        return self.pair(y).defect()

    def point(self, y: Tensor) -> Any:
        return self.pair(y)

    def rebalanced(self, y: Tensor) -> Tensor:
        pair = Collapsed.of(self.pair(y).point())
        return self.join(pair.L, pair.R)


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
        total = k = left.mT @ g_right
        if self.terms > 1:
            total = geometric_sum(left.mT @ left, k, right.mT @ right, self.terms)
        torch.neg(total, out=d_middle)
        minus_product(d_left, g_right, middle.mT)
        torch.neg(g_left, out=d_right)
        squared = None
        if self.watch:
            squared = squares(d_left) + squares(g_left) + (k * total).sum((-2, -1))
        return self.finished(y, out, value, squared, (g_right, top))

    def pair(self, y: Tensor) -> Collapsed:
        left, middle, right = self.split(y)
        # M = f(C) O with O orthogonal; the pair takes O over to R.
        u, _, vh = torch.linalg.svd(middle)
        return self.start.replace(L=left, R=right @ (u @ vh).mT, check=False)

    def singular_values(self, y: Tensor) -> Tensor:
        left = self.split(y)[0]
        c = torch.linalg.eigvalsh(left.mT @ left).clamp_min(0.0)
        return c.flip(-1) ** (0.5 * self.depth)

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        left, middle, right = self.split(y)
        c = torch.linalg.matrix_power(left.mT @ left, self.terms)
        d = torch.linalg.matrix_power(right.mT @ right, self.terms)
        norm = torch.linalg.matrix_norm
        gap, size = (
            torch.maximum(norm(middle @ middle.mT - c), norm(middle.mT @ middle - d)),
            norm(c),
        )
        return gap / torch.where(size > 0, size, 1.0)

    def rebalanced(self, y: Tensor) -> Tensor:
        left, middle, right = self.split(y)
        u, s, vh = chain_svd((right.mT, middle, left), keep=True)
        pair = Collapsed.of(EndToEnd(u, s, vh, self.depth, check=False))
        root = torch.diag_embed(s ** (1.0 - 2.0 / self.depth))
        return self.join(pair.L, root, pair.R)
