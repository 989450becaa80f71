"""The base class of engines: rows of numbers, their velocity, its Jacobian, their invariants."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.dense import READERS
from dln_geometry.dynamics.engines.derivative import derivative_agrees, derivative_of
from dln_geometry.dynamics.engines.terms import complex_view
from dln_geometry.dynamics.losses import (
    Completion,
    Huber,
    LpNorm,
    Quadratic,
    Regression,
    Sensing,
    narrowed_loss,
)
from dln_geometry.ode import Parts, differences
from dln_geometry.support import Depth, on_device

LOSS, GRADIENT = 0, 1
CUT = 1024
"""Numbers of a row up to which the views of its matrices are made once for a tensor."""

STEADY = (type(None), Quadratic, Completion, Regression, Sensing, LpNorm, Huber)
"""Losses, or none, with which a velocity makes the same operations at every state."""

Shapes = Sequence[tuple[int, int]]
Pairing = tuple[Tensor, Tensor]


class Engine(ABC):
    """A way to hold the state of B flows as rows of numbers (B, n).

    A row holds matrices of the given `shapes` (a, b) one after the other; `batch` are the leading
    dimensions of the flows, B in all. Complex numbers are two real ones, side by side.
    """

    own: ClassVar[tuple[str, ...]] = ()
    """Attributes that hold a matrix for every sample, which the velocity reads."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Attributes that hold a row (B, k) for every sample."""
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
        is_complex: bool = False,
    ) -> Self:
        """Return an engine without a loss, which reads rows alone."""
        engine = object.__new__(cls)
        Engine.__init__(engine, shapes, batch, depth, is_complex)
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
        return self.blank(self.shapes, batch, self.depth, self.widths, parts, self.is_complex)

    def __init__(
        self, shapes: Shapes, batch: Sequence[int], depth: float, is_complex: bool = False
    ) -> None:
        self.is_complex = is_complex
        self.shapes, self.batch, self.depth = tuple(shapes), tuple(batch), Depth(depth)
        self.widths: tuple[int, ...] | None = None
        """Widths (d_0, ..., d_N) of the layers that stand for the points of a run on layers."""
        self.sizes = tuple((1 + is_complex) * a * b for a, b in self.shapes)
        self._places = self._placed(self.batch)
        self._cut: dict[tuple[int, int], list[Tensor]] = {}
        self.decay: Tensor | None = None  # (B,): the factor k of the decay, or none
        self.ranks: Any = None  # the processes that hold further rows of the matrices, if any
        self._wide: Engine | None = None
        self._first: Tensor | None = None
        self._differentiates: bool | None = None

    def _placed(self, batch: Sequence[int]) -> list[tuple[int, int, tuple[int, ...]]]:
        places = zip(accumulate(self.sizes), self.sizes, self.shapes, strict=True)
        return [(end - size, end, (*batch, *shape)) for end, size, shape in places]

    def shares(self) -> Sequence[float]:
        """Return how many layers each block of the state is a product of."""
        return (1.0,) * len(self.sizes)

    def views(self, y: Tensor) -> list[Tensor]:
        """Return views of all rows `y`, (*batch, a, b) each, as losses know them."""
        if self.is_complex:
            return [complex_view(y[:, i:j], shape) for i, j, shape in self._places]
        if y.shape[-1] > CUT or torch.is_grad_enabled():
            return [y[:, start:end].view(shape) for start, end, shape in self._places]
        # An integrator comes with the same few tensors again; the views keep their memory alive,
        # so that no other tensor has the address.
        key = y.data_ptr(), y.stride(0)
        found = self._cut.get(key)
        if found is None:
            if len(self._cut) >= 64:
                self._cut.clear()
            found = [y[:, start:end].view(shape) for start, end, shape in self._places]
            self._cut[key] = found
        return found

    def split(self, y: Tensor) -> list[Tensor]:
        """Return views of any rows `y` (b, n), (b, a, b) each."""
        if self.is_complex:
            places = self._places
            return [complex_view(y[:, i:j], (len(y), *shape[-2:])) for i, j, shape in places]
        return [y[:, i:j].view(len(y), *shape[-2:]) for i, j, shape in self._places]

    def join(self, *matrices: Tensor) -> Tensor:
        """Return rows (B, n) from matrices."""
        if self.is_complex:
            matrices = tuple(torch.view_as_real(w.resolve_conj()).flatten(-2) for w in matrices)
        # A process may hold no rows: sizes are told, not inferred.
        flat = [w.reshape(w.shape[:-2].numel(), w.shape[-2:].numel()) for w in matrices]
        return torch.cat(flat, dim=1)

    def gram(self, *pairs: Pairing) -> Any:
        """Return ``a^T b`` of every pair of thin matrices, over the rows of all processes."""
        products = [a.mH @ b for a, b in pairs]
        if self.ranks is not None:
            products = self.ranks.summed(*products)
        return products[0] if len(products) == 1 else products

    def total(self, x: Tensor) -> Tensor:
        """Return a number of each sample, added up over the processes that hold rows."""
        return x if self.ranks is None else self.ranks.summed(x)[0]

    @property
    def kind(self) -> str:
        """The name of the engine, by which a store knows how states are held."""
        return type(self).__name__

    @property
    def blocks(self) -> Any:
        """The sizes of the blocks whose errors an integrator bounds, or their norms."""
        return self.sizes

    @abstractmethod
    def rows(self) -> Tensor:
        """Return the start, shape (B, n)."""

    @abstractmethod
    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """Write the velocity into `out`; return columns: the loss and, if watched, |grad|."""

    @property
    def is_steady(self) -> bool:
        """Whether every velocity makes the same operations: so it is with losses of this package.

        A function of the user's own may count its calls, or decide by what it finds.
        """
        return not self.is_complex and type(getattr(self, "loss", None)) in STEADY

    def decayed(self, y: Tensor, out: Tensor) -> None:
        """Add ``-k W_p`` to the velocity of every layer, if there is a decay."""
        if self.decay is not None:
            for (start, end, _), share in zip(self._places, self.shares(), strict=True):
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

    def shift(self, y: Tensor, y_new: Tensor) -> Tensor:
        """Return the distance (B,) of states, of which some may hold the same point."""
        return torch.linalg.vector_norm(y_new - y, dim=-1)

    def narrowed(self, samples: Tensor) -> Engine | None:
        """Return an engine for some samples (k,) of the flattened batch, None if its loss cannot.

        It writes velocities; points, saved rows and defects are read by the engine of all.
        """
        loss, small = getattr(self, "loss", None), copy.copy(self)
        small.batch, small._wide, small._cut = (len(samples),), None, {}
        small._places = small._placed(small.batch)
        small._first = y = self.rows()[samples.to(self.rows().device)]
        small.decay = None if self.decay is None else self.decay[samples.to(y.device)]
        for name in self.own:
            x = getattr(self, name)
            own = x.shape[-2:]
            setattr(small, name, x.reshape(-1, *own)[samples.to(y.device)])
        for name in self.columns:
            setattr(small, name, getattr(self, name)[samples.to(y.device)])
        if loss is None:
            return small
        alone: Any = small
        try:
            alone.loss = narrowed_loss(loss, self.batch, samples)
            # A loss of a user's own may hold more than it tells.
            seen = alone.loss and small.field(y.new_zeros(len(y)), y, torch.empty_like(y))
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None
        return small if seen is not None and len(seen) == len(y) else None

    def restored(self, y: Tensor, y_new: Tensor) -> Tensor:
        """Return `y_new`, reached from `y` in one step, rebalanced and on its side of rank drops.

        The flow never crosses a rank drop, but a step may, by less than its tolerance.
        """
        return self.finite(self.rebalanced, y, y_new)

    @property
    def keeps_side(self) -> bool:
        """Whether X is square, of full rank, and never crosses a rank drop."""
        return False

    @property
    def outside(self) -> Callable[[Tensor], Tensor] | None:
        """Tell which rows (b, n) lie beyond a rank drop; None if the flow may get there.

        Near one the exact flow is unstable: unbalanced errors grow as fast as det X decays.
        """
        if not self.keeps_side:
            return None

        count, shape = len(self.shapes), self.shapes[0]
        start = self.rows() if self._first is None else self._first
        if not on_device(start):
            # Of small matrices the calls are the cost: those of numpy cost less.
            own = np.linalg.slogdet(start.numpy().reshape(-1, count, *shape))[0]

            def differs(rows: Tensor) -> Tensor:
                sign = np.linalg.slogdet(rows.numpy().reshape(-1, count, *shape))[0]
                return torch.from_numpy(np.multiply.reduce(sign * own, -1) < 0)

            return differs

        def side(rows: Tensor) -> Tensor:
            matrices = rows.reshape(len(rows), count, *shape)
            return torch.linalg.slogdet(matrices).sign.prod(-1)

        first = side(start)
        return lambda rows: side(rows) * first < 0

    @staticmethod
    def finite(change: Callable[[Tensor], Tensor], y: Tensor, y_new: Tensor) -> Tensor:
        """Change the rows of `y_new` that are finite; decompositions refuse the others."""
        whole = torch.isfinite(y_new).all(-1, keepdim=True)
        return torch.where(whole, change(torch.where(whole, y_new, y)), y_new)

    def numbers_of_matrix(self) -> int:
        """Return the number of entries of X."""
        return self.shapes[0][0] * self.shapes[-1][0]

    def jacobian(self, t: Tensor, y: Tensor) -> Tensor | Parts:
        """Return the derivative of the velocity in rows (B, n), shape (B, n, n), or its parts.

        By automatic differentiation; by differences if the loss does not support that: on the first
        call one direction is compared with a difference.
        """
        derivative = None
        if self._differentiates is not False:
            try:
                if self._wide is None:
                    self._wide = self.repeated(y.shape[1])
                derivative = derivative_of(self._wide, t, y)
            except (RuntimeError, ValueError, TypeError, IndexError):
                self._differentiates = False
        if self._differentiates is None and derivative is not None:
            whole = derivative.whole if isinstance(derivative, Parts) else derivative
            self._differentiates = derivative_agrees(self.field, t, y, whole)
        if self._differentiates:
            assert derivative is not None
            return derivative
        return differences(self.field, t, y)

    def repeated(self, count: int) -> Engine:
        """Return an engine for rows (count B, n), in which the batch is repeated."""
        wide = copy.copy(self)
        wide.batch, wide._wide, wide._cut = (count, *self.batch), None, {}
        wide._places = wide._placed(wide.batch)
        wide.decay = None if self.decay is None else self.decay.repeat(count)
        return wide
