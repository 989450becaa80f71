"""Translation, scale and rescale: symmetries that shift parameters, or multiply them by numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dln_geometry.learning.functional import Parameters
from dln_geometry.learning.symmetry.axes import (
    along,
    as_axis,
    as_names,
    check_disjoint,
    parameter,
    unit_products,
    unit_shape,
)
from dln_geometry.learning.symmetry.symmetries import Symmetry
from dln_geometry.support import as_float_tensor


@dataclass(frozen=True, eq=False)
class Translation(Symmetry):
    """The translation ``q -> q + s n`` of one parameter along a direction.

    A softmax has it: a common shift of all logits changes nothing, so that the weight and the
    bias of the layer before it may be translated along their first axis.

    Parameters
    ----------
    name : str
        The parameter.
    direction : Tensor, shape that broadcasts to the parameter's, optional
        The direction n.
    axis : int, optional
        Instead of a direction: the family of all translations that are constant along this axis,
        with s (and the charges) of the parameter's shape without it.

    Examples
    --------
    >>> import torch
    >>> params = {"bias": torch.tensor([1.0, 2.0])}
    >>> Translation("bias", direction=torch.ones(2)).conserved(params)
    tensor(3.)
    """

    name: str
    direction: Any = field(default=None, repr=False)
    axis: int | None = None

    degree = 0

    def __post_init__(self) -> None:
        if (self.direction is None) == (self.axis is None):
            raise ValueError("a Translation must have either a direction or an axis")
        if self.direction is not None:
            direction = as_float_tensor(self.direction, "direction")
            if not bool(direction.any()):
                raise ValueError("direction must not be zero")
            object.__setattr__(self, "direction", direction)

    def shape(self, params: Mapping[str, Tensor]) -> tuple[int, ...]:
        q = parameter(params, self.name)
        if self.axis is None:
            return ()
        sizes = list(q.shape)
        del sizes[as_axis(q, self.axis, self.name)]
        return tuple(sizes)

    def generated(self, params: Parameters, s: Tensor) -> Parameters:
        q = parameter(params, self.name)
        if self.axis is not None:
            return {self.name: s.unsqueeze(as_axis(q, self.axis, self.name)).expand_as(q)}
        direction = self.direction.to(q)
        sizes = zip(direction.shape[::-1], q.shape[::-1], strict=False)
        if direction.ndim > q.ndim or any(n not in (1, size) for n, size in sizes):
            raise ValueError(
                f"direction must broadcast to the shape {tuple(q.shape)} of {self.name!r}, "
                f"got {tuple(direction.shape)}"
            )
        return {self.name: s * direction.expand_as(q)}

    def moved(self, params: Parameters, s: Tensor) -> Parameters:
        return {name: params[name] + d for name, d in self.generated(params, s).items()}

    def pair(self, params: Mapping[str, Tensor], covector: Mapping[str, Tensor]) -> Tensor:
        if self.axis is not None:
            return covector[self.name].sum(self.axis)
        (field,) = self.generated(dict(params), self.zero(params) + 1).values()
        return (covector[self.name] * field).sum()


@dataclass(frozen=True, eq=False)
class Scale(Symmetry):
    """The scaling ``q -> e^s q`` of parameters before a normalisation.

    Parameters
    ----------
    names : str or sequence of str
        The parameters that are scaled together, such as the weight and the bias of the layer.
    axis : int, optional
        One scale for each index along this axis (0 for the channels of batch normalisation), with
        s and the charges a vector. By default one scale in all.

    Examples
    --------
    >>> import torch
    >>> params = {"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    >>> Scale("weight").conserved(params), Scale("weight", axis=0).conserved(params)
    (tensor(30.), tensor([ 5., 25.]))
    """

    names: str | Sequence[str]
    axis: int | None = None

    degree = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", as_names(self.names, "names"))

    def shape(self, params: Mapping[str, Tensor]) -> tuple[int, ...]:
        return unit_shape(params, dict.fromkeys(self.names, self.axis))

    def generated(self, params: Parameters, s: Tensor) -> Parameters:
        return {n: params[n] * along(s, params[n], self.axis) for n in self.names}

    def moved(self, params: Parameters, s: Tensor) -> Parameters:
        return self.generated(params, s.exp())

    def pair(self, params: Mapping[str, Tensor], covector: Mapping[str, Tensor]) -> Tensor:
        return unit_products(covector, params, self.names, self.axis, self.shape(params))


@dataclass(frozen=True, eq=False)
class Rescale(Symmetry):
    """The scaling ``q_1 -> e^s q_1``, ``q_2 -> e^{-s} q_2`` of consecutive layers.

    Layers joined by a positively homogeneous activation (ReLU, leaky ReLU, the identity) or by a
    product have it, one for each hidden unit.

    Parameters
    ----------
    first, second : str or sequence of str
        The weight and the bias of the first layer, and the weight of the second.
    axes : tuple of two int, optional
        ``(0, 1)`` is one scale for each hidden unit, a row of the first and a column of the second
        layer, with s and the charges a vector. A second layer with a multiple of the units has
        that many consecutive columns for each (a convolution that is flattened). By default one
        scale in all.

    Examples
    --------
    >>> import torch
    >>> params = {"in": torch.tensor([[3.0], [1.0]]), "out": torch.tensor([[2.0, 1.0]])}
    >>> Rescale("in", "out").conserved(params)
    tensor(5.)
    >>> Rescale("in", "out", axes=(0, 1)).conserved(params)
    tensor([5., 0.])
    """

    first: str | Sequence[str]
    second: str | Sequence[str]
    axes: tuple[int, int] | None = None

    degree = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", as_names(self.first, "first"))
        object.__setattr__(self, "second", as_names(self.second, "second"))
        check_disjoint(self.first, self.second)

    def shape(self, params: Mapping[str, Tensor]) -> tuple[int, ...]:
        first, second = self.axes or (None, None)
        sides = dict.fromkeys(self.first, first) | dict.fromkeys(self.second, second)
        return unit_shape(params, sides, multiples=self.second)

    def generated(self, params: Parameters, s: Tensor) -> Parameters:
        return self._scaled(params, s, -s)

    def moved(self, params: Parameters, s: Tensor) -> Parameters:
        return self._scaled(params, s.exp(), (-s).exp())

    def pair(self, params: Mapping[str, Tensor], covector: Mapping[str, Tensor]) -> Tensor:
        axes, shape = self.axes or (None, None), self.shape(params)
        first = unit_products(covector, params, self.first, axes[0], shape)
        return first - unit_products(covector, params, self.second, axes[1], shape)

    def _scaled(self, params: Parameters, s: Tensor, t: Tensor) -> Parameters:
        first, second = self.axes or (None, None)
        return {
            **{n: params[n] * along(s, params[n], first) for n in self.first},
            **{n: params[n] * along(t, params[n], second) for n in self.second},
        }
