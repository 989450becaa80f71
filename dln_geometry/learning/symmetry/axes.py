"""Names, axes and units of parameters: what the named symmetries share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dln_geometry.support import as_float_tensor


def as_names(names: Any, what: str) -> tuple[str, ...]:
    """Return one name, or a sequence of different ones, as a tuple."""
    resolved = (names,) if isinstance(names, str) else names
    if not isinstance(resolved, Sequence) or not all(isinstance(n, str) for n in resolved):
        raise TypeError(f"{what} must be a name or a sequence of names, got {names!r}")
    if not resolved or len(set(resolved)) < len(resolved):
        raise ValueError(f"{what} must be at least one name and none twice, got {names!r}")
    return tuple(resolved)


def check_disjoint(first: Sequence[str], second: Sequence[str]) -> None:
    """Refuse a parameter that stands on both sides."""
    both = sorted(set(first) & set(second))
    if both:
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


def units(
    params: Mapping[str, Tensor], sides: Mapping[str, int], *, multiples: Sequence[str] = ()
) -> int:
    """Return the number of entries along the axes given, which must be one number.

    The parameters named in `multiples` may have a multiple of it.
    """
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


def unit_shape(
    params: Mapping[str, Tensor],
    sides: Mapping[str, int | None],
    *,
    multiples: Sequence[str] = (),
) -> tuple[int, ...]:
    """Return the shape of s: one entry for each unit along the axes, () where they are `None`."""
    along_axes = {name: axis for name, axis in sides.items() if axis is not None}
    if not along_axes:
        for name in sides:
            parameter(params, name)
        return ()
    return (units(params, along_axes, multiples=multiples),)


def along(s: Tensor, q: Tensor, axis: int | None) -> Tensor:
    """Reshape s, a number or one entry for each unit along the axis, to multiply q."""
    if axis is None:
        return s
    size = q.shape[axis]
    if size != s.shape[0]:
        s = s.repeat_interleave(size // s.shape[0])
    sizes = [1] * q.ndim
    sizes[axis] = size
    return s.reshape(sizes)


def multiplied(m: Tensor, q: Tensor, axis: int) -> Tensor:
    """Return q with every vector along the axis multiplied by the matrix m."""
    return (q.movedim(axis, -1) @ m.mT).movedim(-1, axis)


def unit_products(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    names: Sequence[str],
    axis: int | None,
    shape: tuple[int, ...],
) -> Tensor:
    """Return ``<a, b>`` over the parameters named: in all, or for each unit along the axis."""
    if axis is None:
        return sum_of([(a[n] * b[n]).sum() for n in names])
    products = [(a[n] * b[n]).movedim(axis, 0).reshape(shape[0], -1) for n in names]
    return sum_of([product.sum(1) for product in products])


def outer_products(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: Sequence[str], axis: int
) -> Tensor:
    """Return the matrix ``m_ij = <a_i, b_j>`` of the slices along the axis, over the parameters."""

    def slices(x: Tensor) -> Tensor:
        return x.movedim(axis, 0).flatten(1) if x.ndim > 1 else x.unsqueeze(1)

    return sum_of([slices(a[n]) @ slices(b[n]).mT for n in names])


def sum_of(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of at least one tensor."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def as_square(matrix: Any, name: str = "generator") -> Tensor:
    """Convert a matrix of shape (d, d) that is not zero."""
    m = as_float_tensor(matrix, name)
    if m.ndim != 2 or m.shape[0] != m.shape[1] or m.shape[0] == 0:
        raise ValueError(f"{name} must have shape (d, d), got {tuple(m.shape)}")
    if not bool(m.any()):
        raise ValueError(f"{name} must not be zero")
    return m


def algebra_shape(matrix: Tensor | None, size: int) -> tuple[int, ...]:
    """Return the shape of s: () for one generator, a matrix for the whole algebra."""
    if matrix is None:
        return (size, size)
    if matrix.shape[0] != size:
        raise ValueError(
            f"generator must have shape ({size}, {size}) like the axis, got {tuple(matrix.shape)}"
        )
    return ()
