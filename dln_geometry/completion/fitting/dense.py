"""The loss of small tables as dense matrices, many of them in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from dln_geometry.completion.fitting.offsets import Offsets, SideMeans
from dln_geometry.dynamics.losses import as_dense
from dln_geometry.geometry.points import Collapsed, EndToEnd

_PARTS = ("values", "weights", "inverse", "pull")


class DenseCompletion:
    """`ProfiledCompletion` of dense tables, many of them in a batch, with exact offsets.

    `values` and `weights` (..., m, n) are 0 where nothing is known; their leading dimensions, and
    those of the `inverse` of the normal equations and of `pull`, broadcast against those of X.

    Examples
    --------
    >>> rows, cols = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    >>> problem = dln.completion.Problem(rows, cols, torch.tensor([4.0, 2.0, 1.0, 5.0]), (3, 2))
    >>> loss = dln.completion.DenseCompletion.of(problem.values, problem.side_means())
    >>> bool(loss.value(torch.zeros(3, 2)) < 0.5 * problem.values.square().sum())
    True
    """

    def __init__(
        self, values: Tensor, weights: Tensor, inverse: Tensor, pull: Tensor, model: SideMeans
    ) -> None:
        self.values, self.weights, self.inverse, self.pull = values, weights, inverse, pull
        self.model = model
        m, n = values.shape[-2:]
        self._ones = values.new_ones(1, m), values.new_ones(n, 1)  # products sum faster than sums
        self.shape = tuple(values.shape[-2:])

    @classmethod
    def of(cls, values: Tensor, model: SideMeans, pull: Tensor | None = None) -> Self:
        """Return the loss of the entries (k,) of a model whose normal equations are inverted."""
        assert model.inverse is not None
        dense, weights = (values.new_zeros(model.shape) for _ in range(2))
        dense[model.rows, model.cols] = values
        weights[model.rows, model.cols] = model.weights
        pull = torch.zeros_like(model.ridge) if pull is None else pull
        return cls(dense, weights, model.inverse, pull, model)

    @classmethod
    def stacked(cls, losses: Sequence[DenseCompletion]) -> Self:
        """Return the loss of F losses in a batch of shape (F, 1)."""
        parts = {name: torch.stack([getattr(x, name) for x in losses]) for name in _PARTS}
        stacked = {name: x.unsqueeze(1) for name, x in parts.items()}
        return cls(**stacked, model=losses[0].model)

    def to(self, *, dtype: Any = None, device: Any = None) -> Self:
        """Return the loss in another dtype."""
        if dtype is None or dtype == self.values.dtype:
            return self
        parts = {name: getattr(self, name).to(dtype) for name in _PARTS}
        return type(self)(**parts, model=self.model)

    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(E, G R, G^T L)`` at ``X = L R^T``, without checks."""
        value, slope = self.evaluate(left @ right.mT)
        return value, slope @ right, slope.mT @ left

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value and the gradient at matrices (..., m, n)."""
        rest = x - self.values
        o = self._parameters(rest)
        rest += self.model.split(o).matrix()
        slope = self.weights * rest
        energy = torch.linalg.vecdot(slope.flatten(-2), rest.flatten(-2))
        return 0.5 * energy + self.model.penalty(o, self.pull), slope

    def value(self, x: Any) -> Tensor:
        """Return E, shape (...)."""
        return self.evaluate(as_dense(x))[0]

    def gradient(self, x: Any) -> Tensor:
        """Return the gradient, shape (..., m, n)."""
        return self.evaluate(as_dense(x))[1]

    def offsets_of(self, point: Collapsed | EndToEnd, steps: int = 0) -> Offsets:
        """Return the best offsets, given X; they need no steps."""
        return self.offsets_at(point.matrix)

    def offsets_at(self, x: Tensor) -> Offsets:
        """Return the best offsets, given matrices (..., m, n)."""
        return self.model.split(self._parameters(x - self.values))

    def _parameters(self, residual: Tensor) -> Tensor:
        slope = self.weights * residual
        by_row = torch.matmul(slope, self._ones[1]).squeeze(-1)
        by_col = torch.matmul(self._ones[0], slope).squeeze(-2)
        target = self.model.collected(by_row, by_col) + self.pull
        return -(target.unsqueeze(-2) @ self.inverse).squeeze(-2)
