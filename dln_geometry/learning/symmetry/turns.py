"""Rotation and gauge: the symmetries that mix the units of a layer by a matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.functional import Parameters
from dln_geometry.learning.symmetry.axes import (
    algebra_shape,
    as_names,
    as_square,
    check_disjoint,
    multiplied,
    outer_products,
    units,
)
from dln_geometry.learning.symmetry.symmetries import Symmetry


@dataclass(frozen=True, eq=False)
class Rotation(Symmetry):
    """The rotation ``q -> e^{s S} q`` along one axis of one or more parameters.

    For a matrix q and axis 0 it is ``e^{s S} q``, for axis 1 ``q e^{-s S}``.

    Parameters
    ----------
    names : str or sequence of str
        The parameters that are rotated together.
    generator : Tensor, shape (d, d), optional
        The matrix S, which must be antisymmetric. By default the whole rotation group: s is a
        matrix whose antisymmetric part is the generator, and the charge is an antisymmetric
        matrix.
    axis : int
        The axis of length d.

    Examples
    --------
    >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> Rotation("q", turn).field({"q": torch.tensor([2.0, 1.0])})
    {'q': tensor([-1.,  2.])}
    """

    names: str | Sequence[str]
    generator: Any = field(default=None, repr=False)
    axis: int = 0

    degree = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", as_names(self.names, "names"))
        if self.generator is not None:
            matrix = as_square(self.generator)
            bound = 8 * torch.finfo(matrix.dtype).eps * matrix.abs().max()
            if bool((matrix + matrix.T).abs().max() > bound):
                raise ValueError("generator must be antisymmetric, got S + S^T different from 0")
            object.__setattr__(self, "generator", matrix)

    def shape(self, params: Mapping[str, Tensor]) -> tuple[int, ...]:
        return algebra_shape(self.generator, units(params, dict.fromkeys(self.names, self.axis)))

    def generated(self, params: Parameters, s: Tensor) -> Parameters:
        m = self._matrix(params, s)
        return {n: multiplied(m, params[n], self.axis) for n in self.names}

    def moved(self, params: Parameters, s: Tensor) -> Parameters:
        m = torch.linalg.matrix_exp(self._matrix(params, s))
        return {n: multiplied(m, params[n], self.axis) for n in self.names}

    def pair(self, params: Mapping[str, Tensor], covector: Mapping[str, Tensor]) -> Tensor:
        self.shape(params)
        m = outer_products(covector, params, self.names, self.axis)
        return (m - m.mT) / 2 if self.generator is None else (self.generator.to(m) * m).sum()

    def _matrix(self, params: Parameters, s: Tensor) -> Tensor:
        if self.generator is not None:
            return s * self.generator.to(params[self.names[0]])
        return (s - s.mT) / 2


@dataclass(frozen=True, eq=False)
class Gauge(Symmetry):
    """The gauge ``W_1 -> e^{s S} W_1``, ``W_2 -> W_2 e^{-s S}`` of consecutive linear layers.

    Parameters
    ----------
    first, second : str or sequence of str
        The weight of the first layer with its bias, if it has one; the weight of the second.
    generator : Tensor, shape (d, d), optional
        The matrix S, d the width between the layers. By default the whole group GL(d): s is a
        matrix and the charges are, with the conserved ``W_1 W_1^T - W_2^T W_2``.
    axes : tuple of two int
        The axes of length d. The second is multiplied by the inverse transpose, so that ``(0, 0)``
        is the gauge ``e^{s S} W_1``, ``e^{-s S^T} W_2`` of the queries and the keys of attention.

    Examples
    --------
    >>> params = {"w1": torch.tensor([[3.0], [1.0]]), "w2": torch.tensor([[2.0, 1.0]])}
    >>> Gauge("w1", "w2").conserved(params)
    tensor([[5., 1.],
            [1., 0.]])
    """

    first: str | Sequence[str]
    second: str | Sequence[str]
    generator: Any = field(default=None, repr=False)
    axes: tuple[int, int] = (0, 1)

    degree = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", as_names(self.first, "first"))
        object.__setattr__(self, "second", as_names(self.second, "second"))
        check_disjoint(self.first, self.second)
        if self.generator is not None:
            object.__setattr__(self, "generator", as_square(self.generator))

    def shape(self, params: Mapping[str, Tensor]) -> tuple[int, ...]:
        sides = dict.fromkeys(self.first, self.axes[0]) | dict.fromkeys(self.second, self.axes[1])
        return algebra_shape(self.generator, units(params, sides))

    def generated(self, params: Parameters, s: Tensor) -> Parameters:
        m = self._matrix(params, s)
        return self._turned(params, m, -m.mT)

    def moved(self, params: Parameters, s: Tensor) -> Parameters:
        m = self._matrix(params, s)
        return self._turned(params, torch.linalg.matrix_exp(m), torch.linalg.matrix_exp(-m.mT))

    def pair(self, params: Mapping[str, Tensor], covector: Mapping[str, Tensor]) -> Tensor:
        self.shape(params)
        m = outer_products(covector, params, self.first, self.axes[0])
        m = m - outer_products(covector, params, self.second, self.axes[1]).mT
        return m if self.generator is None else (self.generator.to(m) * m).sum()

    def _turned(self, params: Parameters, m: Tensor, inverse: Tensor) -> Parameters:
        return {
            **{n: multiplied(m, params[n], self.axes[0]) for n in self.first},
            **{n: multiplied(inverse, params[n], self.axes[1]) for n in self.second},
        }

    def _matrix(self, params: Parameters, s: Tensor) -> Tensor:
        if self.generator is None:
            return s
        return s * self.generator.to(params[self.first[0]])
