"""Symmetries that act on the units of a layer: the entries along one axis of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.functional import Parameters, Tensors
from dln_geometry.learning.symmetry.symmetries import Symmetry
from dln_geometry.support import as_count, matrix_exponential, shown

# The names of some parameters, and the axis of their units.
Side = tuple[Any, Any]
# No tensor has more.
_MOST_AXES = 64


class UnitSymmetry(Symmetry):
    """Multiply units on the first side by e^m, on the second by the inverse transpose."""

    degree = 1

    def sides(self) -> tuple[Side, ...]:
        """Return one or two sides."""
        raise NotImplementedError

    def applied(self, m: Tensor, q: Tensor, axis: Any) -> Tensor:
        """Return q with its units along the axis multiplied by m."""
        raise NotImplementedError

    def acted(self, params: Parameters, m: Tensor, inverse: Callable[[], Tensor]) -> Parameters:
        """Multiply the units of all sides; `inverse` is called for a second one only."""
        moved: Parameters = {}
        for k, (names, axis) in enumerate(self.sides()):
            m = inverse() if k else m
            moved |= {n: self.applied(m, params[n], axis) for n in names}
        return moved


class UnitScaling(UnitSymmetry):
    """Multiply every unit by a number ``e^{s_u}``, or all by the same if there is no axis."""

    def shape(self, params: Tensors) -> tuple[int, ...]:
        sides = self.sides()
        if sides[0][1] is not None:
            return (_count(params, sides, multiples=True),)
        for name in (name for names, _ in sides for name in names):
            parameter(params, name)
        return ()

    def generated(self, params: Parameters, s: Tensor) -> Parameters:
        return self.acted(params, s, lambda: -s)

    def moved(self, params: Parameters, s: Tensor) -> Parameters:
        return self.acted(params, s.exp(), lambda: torch.exp(-s))

    def applied(self, m: Tensor, q: Tensor, axis: Any) -> Tensor:
        if axis is None:
            return q * m
        if (size := q.shape[axis]) != m.shape[0]:
            m = m.repeat_interleave(size // m.shape[0])
        sizes = [1] * q.ndim
        sizes[axis] = size
        return q * m.reshape(sizes)

    def pair(self, params: Tensors, covector: Tensors) -> Tensor:
        shape = self.shape(params)
        first, *second = (_products(covector, params, *side, shape) for side in self.sides())
        return first - second[0] if second else first


class UnitMixing(UnitSymmetry):
    """Multiply the units by the matrix ``e^{s S}``, or by ``e^s`` with any matrix s."""

    generator: Any

    def shape(self, params: Tensors) -> tuple[int, ...]:
        count = _count(params, self.sides())
        if self.generator is None:
            return (count, count)
        if self.generator.shape[0] != count:
            raise ValueError(
                f"generator must have shape ({count}, {count}) like the axis, got "
                f"{tuple(self.generator.shape)}"
            )
        return ()

    def generated(self, params: Parameters, s: Tensor) -> Parameters:
        m = self._matrix(params, s)
        return self.acted(params, m, lambda: -m.mT)

    def moved(self, params: Parameters, s: Tensor) -> Parameters:
        m, exp = self._matrix(params, s), matrix_exponential
        return self.acted(params, exp(m), lambda: exp(-m.mT))

    def applied(self, m: Tensor, q: Tensor, axis: Any) -> Tensor:
        return (q.movedim(axis, -1) @ m.mT).movedim(-1, axis)

    def pair(self, params: Tensors, covector: Tensors) -> Tensor:
        self.shape(params)
        first, *second = (_outer_products(covector, params, *side) for side in self.sides())
        m = first - second[0].mT if second else first
        return self.projected(m) if self.generator is None else (self.generator.to(m) * m).sum()

    def projected(self, matrix: Tensor) -> Tensor:
        """Return the part of a matrix that lies in the algebra."""
        return matrix

    def _matrix(self, params: Parameters, s: Tensor) -> Tensor:
        if self.generator is None:
            return self.projected(s)
        return s * self.generator.to(params[self.sides()[0][0][0]])


def set_names(symmetry: Symmetry, *fields: str) -> None:
    """Make tuples of the fields that hold one name or several; all names must differ."""
    for field in fields:
        names = getattr(symmetry, field)
        resolved = (names,) if isinstance(names, str) else names
        if not isinstance(resolved, Sequence) or not all(isinstance(n, str) for n in resolved):
            raise TypeError(f"{field} must be a name or a sequence of names, got {shown(names)}")
        if not resolved or len(set(resolved)) < len(resolved):
            raise ValueError(f"{field} must be at least one name and none twice, got {names!r}")
        object.__setattr__(symmetry, field, tuple(resolved))
    both = sorted(set.intersection(*(set(getattr(symmetry, field)) for field in fields)))
    if len(fields) > 1 and both:
        raise ValueError(f"first and second must have no parameter in common, got {both}")


def check_names(names: Any, field: str) -> None:
    """Refuse what is no tuple of strings."""
    if not isinstance(names, tuple) or not all(isinstance(n, str) for n in names):
        raise TypeError(f"{field} must be a tuple of names, got {shown(names)}")


def check_axes(axes: Any, count: int) -> None:
    """Refuse what is no tuple of that many integers."""
    if not isinstance(axes, tuple | list) or len(axes) != count:
        raise TypeError(f"axes must be {count} integers, got {shown(axes)}")
    for axis in axes:
        as_count(axis, "axis", -_MOST_AXES)


def parameter(params: Tensors, name: str, what: str = "params") -> Tensor:
    """Return the parameter of that name, which must exist; or its entry in a covector."""
    if not isinstance(params, Mapping):
        raise TypeError(f"{what} must be a dict of tensors, got {shown(params)}")
    if name not in params:
        raise ValueError(f"name must be one of the parameters {sorted(params)}, got {name!r}")
    return params[name]


def as_axis(q: Tensor, axis: int, name: str) -> int:
    """Return an axis of a tensor, counted from the front."""
    if not -q.ndim <= axis < q.ndim:
        raise ValueError(f"axis must be one of the {q.ndim} of {name!r}, got {axis}")
    return axis % q.ndim


def _count(params: Tensors, sides: Sequence[Side], *, multiples: bool = False) -> int:
    """Return the number of units; parameters of the second side may have a multiple of it."""
    count = 0
    for k, (names, axis) in enumerate(sides):
        for name in names:
            q = parameter(params, name)
            size = q.shape[as_axis(q, axis, name)]
            count = count or size
            several = multiples and k > 0
            if size != count and not (several and size % count == 0):
                raise ValueError(
                    f"{name!r} must have {'a multiple of ' if several else ''}{count} entries "
                    f"along axis {axis}, got {size}"
                )
    return count


def _products(a: Tensors, b: Tensors, names: Sequence[str], axis: Any, shape: Any) -> Tensor:
    """Return ``<a, b>`` over the parameters named: in all, or for each unit along the axis."""
    products = [parameter(a, n, "covector") * b[n] for n in names]
    if axis is None:
        return _sum_of([product.sum() for product in products])
    return _sum_of([product.movedim(axis, 0).reshape(*shape, -1).sum(1) for product in products])


def _outer_products(a: Tensors, b: Tensors, names: Sequence[str], axis: int) -> Tensor:
    """Return the matrix ``m_ij = <a_i, b_j>`` of the slices along the axis, over the parameters."""

    def slices(x: Tensor) -> Tensor:
        return x.movedim(axis, 0).flatten(1) if x.ndim > 1 else x.unsqueeze(1)

    return _sum_of([slices(parameter(a, n, "covector")) @ slices(b[n]).mT for n in names])


def _sum_of(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of at least one tensor."""
    return reduce(torch.add, terms)
