"""Symmetries that act on the units of a layer: the entries along one axis of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.functional import Parameters
from dln_geometry.learning.symmetry.symmetries import Symmetry

# The names of some parameters, and the axis of their units.
Side = tuple[Any, Any]


class UnitSymmetry(Symmetry):
    """Units on the first side are multiplied by e^m, on the second by the inverse transpose."""

    degree = 1

    def sides(self) -> tuple[Side, ...]:
        """Return one or two sides."""
        raise NotImplementedError

    def axes_by_name(self) -> dict[str, Any]:
        """Return the axis of the units for each parameter."""
        return {name: axis for names, axis in self.sides() for name in names}


class UnitScaling(UnitSymmetry):
    """Every unit is multiplied by a number ``e^{s_u}``, or all by one where there is no axis."""

    def shape(self, params: Mapping[str, Tensor]) -> tuple[int, ...]:
        axes = self.axes_by_name()
        if None in axes.values():
            for name in axes:
                parameter(params, name)
            return ()
        multiples = [name for names, _ in self.sides()[1:] for name in names]
        return (_count(params, axes, multiples=multiples),)

    def generated(self, params: Parameters, s: Tensor) -> Parameters:
        return self._scaled(params, s, -s)

    def moved(self, params: Parameters, s: Tensor) -> Parameters:
        return self._scaled(params, s.exp(), (-s).exp())

    def pair(self, params: Mapping[str, Tensor], covector: Mapping[str, Tensor]) -> Tensor:
        shape = self.shape(params)
        products = [_products(covector, params, *side, shape) for side in self.sides()]
        return products[0] if len(products) == 1 else products[0] - products[1]

    def _scaled(self, params: Parameters, *factors: Tensor) -> Parameters:
        return {
            n: params[n] * _along(factor, params[n], axis)
            for (names, axis), factor in zip(self.sides(), factors, strict=False)
            for n in names
        }


class UnitMixing(UnitSymmetry):
    """The units are multiplied by the matrix ``e^{s S}``, or by ``e^s`` with any matrix s."""

    generator: Any

    def shape(self, params: Mapping[str, Tensor]) -> tuple[int, ...]:
        count = _count(params, self.axes_by_name())
        if self.generator is None:
            return (count, count)
        if self.generator.shape[0] != count:
            raise ValueError(
                f"generator must have shape ({count}, {count}) like the axis, got "
                f"{tuple(self.generator.shape)}"
            )
        return ()

    def generated(self, params: Parameters, s: Tensor) -> Parameters:
        return self._mixed(params, self._matrices(params, s))

    def moved(self, params: Parameters, s: Tensor) -> Parameters:
        return self._mixed(params, [torch.linalg.matrix_exp(m) for m in self._matrices(params, s)])

    def pair(self, params: Mapping[str, Tensor], covector: Mapping[str, Tensor]) -> Tensor:
        self.shape(params)
        products = [_outer_products(covector, params, *side) for side in self.sides()]
        m = products[0] if len(products) == 1 else products[0] - products[1].mT
        return self.projected(m) if self.generator is None else (self.generator.to(m) * m).sum()

    def projected(self, matrix: Tensor) -> Tensor:
        """Return the part of a matrix that lies in the algebra."""
        return matrix

    def _matrices(self, params: Parameters, s: Tensor) -> list[Tensor]:
        sides = self.sides()
        if self.generator is None:
            m = self.projected(s)
        else:
            m = s * self.generator.to(params[sides[0][0][0]])
        return [m, -m.mT][: len(sides)]

    def _mixed(self, params: Parameters, matrices: Sequence[Tensor]) -> Parameters:
        return {
            n: (params[n].movedim(axis, -1) @ m.mT).movedim(-1, axis)
            for (names, axis), m in zip(self.sides(), matrices, strict=True)
            for n in names
        }


def set_names(symmetry: Symmetry, *fields: str) -> None:
    """Make tuples of the fields that hold one name or several, which must all differ."""
    for field in fields:
        names = getattr(symmetry, field)
        resolved = (names,) if isinstance(names, str) else names
        if not isinstance(resolved, Sequence) or not all(isinstance(n, str) for n in resolved):
            raise TypeError(f"{field} must be a name or a sequence of names, got {names!r}")
        if not resolved or len(set(resolved)) < len(resolved):
            raise ValueError(f"{field} must be at least one name and none twice, got {names!r}")
        object.__setattr__(symmetry, field, tuple(resolved))
    both = sorted(set.intersection(*(set(getattr(symmetry, field)) for field in fields)))
    if len(fields) > 1 and both:
        raise ValueError(f"first and second must have no parameter in common, got {both}")


def parameter(params: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the parameter of that name, which must exist."""
    if name not in params:
        raise ValueError(f"name must be one of the parameters {sorted(params)}, got {name!r}")
    return params[name]


def as_axis(q: Tensor, axis: int, name: str) -> int:
    """Return an axis of a tensor, counted from the front."""
    if not -q.ndim <= axis < q.ndim:
        raise ValueError(f"axis must be one of the {q.ndim} of {name!r}, got {axis}")
    return axis % q.ndim


def _count(
    params: Mapping[str, Tensor], sides: Mapping[str, int], *, multiples: Sequence[str] = ()
) -> int:
    """Return the number of units: entries along the axes, of which `multiples` may have more."""
    sizes = {}
    for name, axis in sides.items():
        q = parameter(params, name)
        sizes[name] = q.shape[as_axis(q, axis, name)]
    count = next(iter(sizes.values()))
    for name, size in sizes.items():
        if size != count and (name not in multiples or size % count):
            kind = "a multiple of " if name in multiples else ""
            raise ValueError(
                f"{name!r} must have {kind}{count} entries along axis {sides[name]}, got {size}"
            )
    return count


def _along(s: Tensor, q: Tensor, axis: int | None) -> Tensor:
    """Reshape s, a number or one entry for each unit along the axis, to multiply q."""
    if axis is None:
        return s
    size = q.shape[axis]
    if size != s.shape[0]:
        s = s.repeat_interleave(size // s.shape[0])
    sizes = [1] * q.ndim
    sizes[axis] = size
    return s.reshape(sizes)


def _products(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    names: Sequence[str],
    axis: int | None,
    shape: tuple[int, ...],
) -> Tensor:
    """Return ``<a, b>`` over the parameters named: in all, or for each unit along the axis."""
    if axis is None:
        return _sum_of([(a[n] * b[n]).sum() for n in names])
    products = [(a[n] * b[n]).movedim(axis, 0).reshape(shape[0], -1) for n in names]
    return _sum_of([product.sum(1) for product in products])


def _outer_products(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: Sequence[str], axis: int
) -> Tensor:
    """Return the matrix ``m_ij = <a_i, b_j>`` of the slices along the axis, over the parameters."""

    def slices(x: Tensor) -> Tensor:
        return x.movedim(axis, 0).flatten(1) if x.ndim > 1 else x.unsqueeze(1)

    return _sum_of([slices(a[n]) @ slices(b[n]).mT for n in names])


def _sum_of(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of at least one tensor."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
