"""Held-out entries as the monitor of a flow."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from dln_geometry.dynamics.losses import Completion
from dln_geometry.geometry.points import Network


class Validation:
    """The root mean square error of a point on entries that the loss does not see.

    Give it to `gradient_flow` as `monitor`: the run then returns the point where this error was
    least. No dense matrix is formed, except for a `Network` of layers.

    Parameters
    ----------
    rows, cols : array_like of int, shape (k,)
        Places of the held-out entries.
    values : array_like, shape (k,)
        The entries.
    shape : tuple of int
        Shape (m, n) of the matrix.

    Examples
    --------
    >>> import torch
    >>> validation = dln.Validation([0, 1], [1, 0], [3.0, 4.0], (2, 2))
    >>> validation(torch.zeros(2, 2))
    tensor(3.5355)
    """

    def __init__(self, rows: Any, cols: Any, values: Any, shape: tuple[int, int]) -> None:
        self.loss = Completion(rows, cols, values, shape)
        self.shape, self.count = self.loss.shape, len(self.loss.rows)

    def distributed(self, cut: Callable[[Completion], Any]) -> Validation:
        """Return the same, its loss cut by rows."""
        other = copy.copy(self)
        other.loss = cut(self.loss)
        return other

    def __call__(self, point: Any) -> Tensor:
        """Return the error of a point or matrix, shape (...)."""
        x = point.matrix if isinstance(point, Network) else point
        return (2.0 / self.count * self.loss.value(x)).sqrt()

    def fingerprint(self) -> dict[str, Any]:
        """Return the held-out entries, by which a store knows them."""
        return self.loss.fingerprint()

    def __repr__(self) -> str:
        m, n = self.shape
        return f"Validation({m} x {n}, {self.count} entries)"
