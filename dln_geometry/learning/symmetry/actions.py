"""The named symmetries: translation, scale, rescale, rotation and gauge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.functional import Parameters, Tensors
from dln_geometry.learning.symmetry.symmetries import Symmetry
from dln_geometry.learning.symmetry.units import (
    Side,
    UnitMixing,
    UnitScaling,
    as_axis,
    check_axes,
    parameter,
    set_names,
)
from dln_geometry.support import as_float_tensor, shown


@dataclass(frozen=True, eq=False)
class Translation(Symmetry):
    """The translation ``q -> q + s n`` of one parameter along a direction.

    A common shift of all logits does not change a softmax: translate the weight and the bias of
    the layer before it along their first axis.

    Parameters
    ----------
    name : str
        The parameter.
    direction : Tensor, shape that broadcasts to the parameter's, optional
        The direction n.
    axis : int, optional
        Instead of a direction: all translations that are constant along this axis. Then s and the
        charges have the parameter's shape without it.

    Examples
    --------
    >>> params = {"bias": torch.tensor([1.0, 2.0])}
    >>> dln.learning.Translation("bias", direction=torch.ones(2)).conserved(params)
    tensor(3.)
    """

    name: str
    direction: Any = field(default=None, repr=False)
    axis: int | None = None

    degree = 0

    def __post_init__(self) -> None:
        if (self.direction is None) == (self.axis is None):
            raise ValueError("a Translation must have either a direction or an axis")
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {shown(self.name)}")
        if self.axis is not None:
            check_axes((self.axis,), 1)
        if self.direction is not None:
            direction = as_float_tensor(self.direction, "direction")
            if not bool(direction.any()):
                raise ValueError("direction must not be zero")
            object.__setattr__(self, "direction", direction)

    def shape(self, params: Tensors) -> tuple[int, ...]:
        q = parameter(params, self.name)
        if self.axis is None:
            return ()
        axis = as_axis(q, self.axis, self.name)
        return tuple(q.shape[:axis] + q.shape[axis + 1 :])

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

    def pair(self, params: Tensors, covector: Tensors) -> Tensor:
        if self.axis is not None:
            parameter(params, self.name)
            return parameter(covector, self.name, "covector").sum(self.axis)
        (field,) = self.generated(dict(params), self.zero(params) + 1).values()
        return (parameter(covector, self.name, "covector") * field).sum()


@dataclass(frozen=True, eq=False)
class Scale(UnitScaling):
    """The scaling ``q -> e^s q`` of parameters before a normalisation.

    Parameters
    ----------
    names : str or sequence of str
        The parameters that are scaled together, such as the weight and the bias of the layer.
    axis : int, optional
        One scale for each index along this axis (0 for the channels of batch normalisation); s and
        the charges are vectors. By default one scale in all.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> params = {"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    >>> whole, rows = learning.Scale("weight"), learning.Scale("weight", axis=0)
    >>> whole.conserved(params), rows.conserved(params)
    (tensor(30.), tensor([ 5., 25.]))
    """

    names: str | Sequence[str]
    axis: int | None = None

    def __post_init__(self) -> None:
        set_names(self, "names")
        if self.axis is not None:
            check_axes((self.axis,), 1)

    def sides(self) -> tuple[Side, ...]:
        return ((self.names, self.axis),)


@dataclass(frozen=True, eq=False)
class Rescale(UnitScaling):
    """The scaling ``q_1 -> e^s q_1``, ``q_2 -> e^{-s} q_2`` of consecutive layers.

    Layers joined by a positively homogeneous activation (ReLU, leaky ReLU, the identity) or by a
    product have it, one for each hidden unit.

    Parameters
    ----------
    first, second : str or sequence of str
        The weight and the bias of the first layer, and the weight of the second.
    axes : tuple of two int, optional
        ``(0, 1)`` is one scale for each hidden unit, a row of the first and a column of the second
        layer; s and the charges are vectors. A second layer after a flattened convolution may have
        several consecutive columns for each. By default one scale in all.

    Examples
    --------
    >>> params = {"in": torch.tensor([[3.0], [1.0]]), "out": torch.tensor([[2.0, 1.0]])}
    >>> dln.learning.Rescale("in", "out").conserved(params)
    tensor(5.)
    >>> dln.learning.Rescale("in", "out", axes=(0, 1)).conserved(params)
    tensor([5., 0.])
    """

    first: str | Sequence[str]
    second: str | Sequence[str]
    axes: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        set_names(self, "first", "second")
        if self.axes is not None:
            check_axes(self.axes, 2)

    def sides(self) -> tuple[Side, ...]:
        first, second = self.axes or (None, None)
        return (self.first, first), (self.second, second)


@dataclass(frozen=True, eq=False)
class Rotation(UnitMixing):
    """The rotation ``q -> e^{s S} q`` along one axis of one or more parameters.

    For a matrix q and axis 0 it is ``e^{s S} q``, for axis 1 ``q e^{-s S}``.

    Parameters
    ----------
    names : str or sequence of str
        The parameters that are rotated together.
    generator : Tensor, shape (d, d), optional
        The antisymmetric matrix S. By default the whole rotation group: s is a matrix whose
        antisymmetric part is the generator, and the charge is an antisymmetric matrix.
    axis : int
        The axis of length d.

    Examples
    --------
    >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> dln.learning.Rotation("q", turn).field({"q": torch.tensor([2.0, 1.0])})
    {'q': tensor([-1.,  2.])}
    """

    names: str | Sequence[str]
    generator: Any = field(default=None, repr=False)
    axis: int = 0

    def __post_init__(self) -> None:
        set_names(self, "names")
        check_axes((self.axis,), 1)
        if self.generator is not None:
            matrix = _as_square(self.generator)
            bound = 8 * torch.finfo(matrix.dtype).eps * matrix.abs().max()
            if bool((matrix + matrix.T).abs().max() > bound):
                raise ValueError("generator must be antisymmetric, got S + S^T different from 0")
            object.__setattr__(self, "generator", matrix)

    def sides(self) -> tuple[Side, ...]:
        return ((self.names, self.axis),)

    def projected(self, matrix: Tensor) -> Tensor:
        return (matrix - matrix.mT) / 2


@dataclass(frozen=True, eq=False)
class Gauge(UnitMixing):
    """The gauge ``W_1 -> e^{s S} W_1``, ``W_2 -> W_2 e^{-s S}`` of consecutive linear layers.

    Parameters
    ----------
    first, second : str or sequence of str
        The weight of the first layer with its bias, if it has one; the weight of the second.
    generator : Tensor, shape (d, d), optional
        The matrix S, d the width between the layers. By default the whole group GL(d): s and the
        charges are matrices, and ``W_1 W_1^T - W_2^T W_2`` is conserved.
    axes : tuple of two int
        The axes of length d. ``(0, 0)`` is the gauge ``e^{s S} W_1``, ``e^{-s S^T} W_2`` of the
        queries and the keys of attention.

    Examples
    --------
    >>> params = {"w1": torch.tensor([[3.0], [1.0]]), "w2": torch.tensor([[2.0, 1.0]])}
    >>> dln.learning.Gauge("w1", "w2").conserved(params)
    tensor([[5., 1.],
            [1., 0.]])
    """

    first: str | Sequence[str]
    second: str | Sequence[str]
    generator: Any = field(default=None, repr=False)
    axes: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        set_names(self, "first", "second")
        check_axes(self.axes, 2)
        if self.generator is not None:
            object.__setattr__(self, "generator", _as_square(self.generator))

    def sides(self) -> tuple[Side, ...]:
        return (self.first, self.axes[0]), (self.second, self.axes[1])


def _as_square(matrix: Any) -> Tensor:
    """Convert a generator, which must have shape (d, d) and not be zero."""
    m = as_float_tensor(matrix, "generator")
    if m.ndim != 2 or m.shape[0] != m.shape[1] or m.shape[0] == 0:
        raise ValueError(f"generator must have shape (d, d), got {tuple(m.shape)}")
    if not bool(m.any()):
        raise ValueError("generator must not be zero")
    return m
