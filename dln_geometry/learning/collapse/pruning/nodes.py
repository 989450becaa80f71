"""The entries of the parameters of a model, and which of them must be removed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

Axis = Any  # the nodes of the indices of an axis, an array of integers, or `None` for none
Axes = tuple[Axis, ...]


class Nodes:
    """Sets of nodes that must be removed together; those joined to node 0 stay."""

    def __init__(self) -> None:
        self._parents = np.zeros(1, dtype=np.int64)
        self._axes: dict[int, tuple[Tensor, Axes]] = {}
        # Of each node the parameter, axis and index.
        self.places: list[tuple[str, int, int]] = [("", 0, 0)]
        self._weights: set[int] = set()  # parameters and their views
        self.readers: set[tuple[str, int]] = set()

    def name(self, x: Tensor, name: str) -> None:
        """Give new nodes to a parameter or buffer."""
        start = len(self.places)
        self.places += [(name, axis, k) for axis, n in enumerate(x.shape) for k in range(n)]
        new = np.arange(start, len(self.places))
        self._parents = np.concatenate([self._parents, new])
        self.set(x, tuple(np.split(new, np.cumsum(x.shape)[:-1])) if x.ndim else ())
        self._weights.add(id(x))

    def view(self, source: Tensor, made: Tensor) -> None:
        """Note that a tensor is a view of another."""
        if id(source) in self._weights:
            self._weights.add(id(made))

    def axes(self, x: Tensor) -> Axes:
        """Return the nodes of a tensor."""
        found = self._axes.get(id(x))
        return (None,) * x.ndim if found is None else found[1]

    def set(self, x: Tensor, axes: Axes) -> None:
        """Keep the nodes of a tensor, and the tensor, so that no other takes its identity."""
        self._axes[id(x)] = (x, axes)

    def roots(self, nodes: Axis) -> Axis:
        """Return the smallest node joined to each."""
        found = self._parents[nodes]
        while not np.array_equal(found, nodes):
            nodes, found = found, self._parents[found]
        return found

    def join(self, *axes: Axis) -> Axis:
        """Join the nodes of axes of one length, index by index; return one of them."""
        some = [a for a in axes if a is not None]
        if not some:
            return None
        others = [*some[1:], *([np.zeros_like(some[0])] if len(some) < len(axes) else [])]
        for other in others:
            if other is some[0]:
                continue
            while True:
                a, b = self.roots(some[0]), self.roots(other)
                if np.array_equal(a, b):
                    break
                # Of several new parents of one root the least; the others join it the next time.
                np.minimum.at(self._parents, np.maximum(a, b), np.minimum(a, b))
        return some[0]

    def fix(self, axes: Sequence[Axis]) -> None:
        """Let all nodes of these axes stay."""
        for axis in axes:
            if axis is not None:
                self.join(axis, None)

    def contract(self, a: Tensor, left: Axis, b: Tensor, right: Axis) -> None:
        """Join the two sides of a contraction; the parameter among them reads the other."""
        self.join(left, right)
        for x, axis in ((a, left), (b, right)):
            if id(x) in self._weights and axis is not None and len(axis):
                self.readers.add(self.places[int(axis[0])][:2])
                return
