"""Points and vectors at unit size, for numbers that leave the range of their type on the way.

The functions of a point are homogeneous: at ``c X`` they are a power of c times those at X. Where
squares of singular values, or ratios of them, overflow or vanish in the type of the point, the
result may be an ordinary number all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import is_extreme
from dln_geometry.geometry.points import EndToEnd, by_power_of_two, only_finite, orthonormalized
from dln_geometry.support import as_double, least


def doubled(p: EndToEnd) -> EndToEnd:
    """Return the point in double precision, its frames orthonormal to that precision.

    Derivatives in the matrix follow.
    """
    if p.s.dtype == torch.float64:
        return p
    q = p.to(torch.complex128 if p.dtype.is_complex else torch.float64)
    # From float32, one step leaves a defect of about 1e-14.
    u, vh = orthonormalized(q.u, 2), orthonormalized(q.vh.mH, 2).mH
    return q.replace(u=u, vh=vh, check=False).following(q.source)


def of_unit_size(p: EndToEnd) -> tuple[EndToEnd, Tensor]:
    """Return the point in double precision over its largest singular value, and that value, (...).

    Derivatives in the matrix follow; the value is a constant for them.
    """
    q = doubled(p)
    largest = q.s.detach().amax(-1)
    largest = torch.where(largest > 0, largest, 1.0)
    if q.source is not None:
        q = q.following(only_finite(q.source))
    return q.over(largest), largest


def followed_in_range(p: EndToEnd) -> Tensor:
    """Return the matrix that derivatives are asked of, which refuses those that are not finite."""
    assert p.followed is not None
    return only_finite(p.followed) if is_extreme(p.s.detach()) else p.followed


def in_range(
    f: Callable[..., Tensor],
    p: EndToEnd,
    degree: float,
    *vectors: Tensor,
    axes: int = 2,
    strict: bool = False,
) -> Tensor:
    """Return ``f(p, *vectors)``, linear in the vectors and homogeneous of this degree in X.

    Its shape is (...) with so many `axes` behind.

    If the result is not finite, or little is left of it, it is computed again at unit size in
    double precision: infinite then where it exceeds the range of its type. So it is at once where
    a `strict` f, or derivatives, need squares of singular values that leave the range of the type.

    Raises
    ------
    ValueError
        If singular values differ by so much that it cannot be computed in double precision.
    """
    # Derivatives divide by more powers, those of second differences among them.
    order = 2.0 if p.source is None else 6.0
    if not ((strict or p.source is not None) and is_extreme(p.s.detach(), order)):
        value = f(p, *vectors)
        total = total_size(value)
        # Of a kernel without digits little is left, unless vectors are near the range's other end.
        if least(value) ** 0.5 < abs(total) < math.inf:
            return value
        if value.numel() == 0 or not any(bool((v != 0).any()) for v in vectors):
            return value
        if math.isfinite(total) and not is_extreme(p.s.detach(), order):
            return value
    q, unit = of_unit_size(p)
    sizes = [as_double(v.detach()).abs().amax((-2, -1)) for v in vectors]
    sizes = [torch.where(size > 0, size, 1.0) for size in sizes]
    scaled = [as_double(v) / size[..., None, None] for v, size in zip(vectors, sizes, strict=True)]
    value = f(q, *scaled)
    if not bool(torch.isfinite(value.detach()).all()):
        ratio = float((q.s.amax(-1) / q.s.amin(-1)).max())
        raise ValueError(
            "point must have singular values whose squares have ratios in the range of numbers, "
            f"got values that differ by a factor {ratio:.1e}"
        )
    # Powers of two are added up: products of factors may leave the range when the result does not.
    total_power = torch.zeros_like(unit)
    for factor in (*(unit ** (0.25 * degree),) * 4, *sizes):
        mantissa, power = torch.frexp(factor)
        value = value * mantissa[(..., *(None,) * axes)]
        total_power = total_power + power
    value = by_power_of_two(value, total_power, axes)
    return value.to(p.dtype if value.is_complex() else p.s.dtype)


def total_size(value: Tensor) -> float:
    """Return a number that is finite if a tensor is: its sum, of complex numbers that of sizes."""
    value = value.detach()
    return float(value.abs().sum() if value.is_complex() else value.sum())
