"""What the engines of the gradient flow share: the state as rows of numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import Loss
from dln_geometry.geometry.points import Collapsed

LOSS, GRADIENT = 0, 1


class Engine(ABC):
    """A way to hold the state of the flow as rows of numbers."""

    sizes: tuple[int, ...]
    depth: float

    @abstractmethod
    def rows(self) -> Tensor:
        """Return the start, shape (B, n)."""

    @abstractmethod
    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """Write the velocity into `out`; return the loss and, if watched, |grad| as columns."""

    @abstractmethod
    def singular_values(self, y: Tensor) -> Tensor:
        """Return the singular values of X of rows (b, n), shape (b, r), descending."""

    @abstractmethod
    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        """Return the relative violation of the invariants of rows with their columns, (b,)."""

    @abstractmethod
    def point(self, y: Tensor) -> Any:
        """Return the points of rows (b, n), batched."""

    @abstractmethod
    def rebalanced(self, y: Tensor) -> Tensor:
        """Return rows with the invariants restored and the end-to-end matrix kept."""


class Blocks:
    """Rows of numbers as matrices."""

    def __init__(self, shapes: Sequence[tuple[int, int]], batch: Sequence[int]) -> None:
        self.shapes, self.batch = tuple(shapes), tuple(batch)
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


class CollapsedEngine(Blocks, Engine):
    """What the engines on two or three matrices share."""

    def __init__(
        self, loss: Loss, start: Collapsed, shapes: Sequence[tuple[int, int]], watch: bool
    ) -> None:
        super().__init__(shapes, start.L.shape[:-2])
        self.loss, self.start, self.depth, self.watch = loss, start, start.depth, watch

    @abstractmethod
    def _pair(self, y: Tensor) -> Collapsed:
        """Return the two matrices of rows (b, n)."""

    def singular_values(self, y: Tensor) -> Tensor:
        return self._pair(y).singular_values()

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        return self._pair(y).defect()

    def point(self, y: Tensor) -> Any:
        return self._pair(y)
