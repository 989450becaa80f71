"""Limits of many particles: the semicircle and the law of Marchenko and Pastur."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.laws.times import one_or_more, ratio, root
from dln_geometry.support import as_count, as_float_tensor, as_sides


def semicircle_radius(n: int, t: Any) -> Any:
    """Return the edge ``2 sqrt(n t)`` of n Dyson particles from 0 at time t, to leading order.

    A float at a time, a tensor of the shape of `t` at several; 0 at time 0.

    Examples
    --------
    >>> dln.laws.semicircle_radius(4, 1.0), dln.laws.semicircle_radius(4, [0.0, 0.25])
    (4.0, tensor([0., 2.]))
    """
    n = as_count(n, "n")
    return 2.0 * root(n * one_or_more(t))


def semicircle_density(x: Any, radius: Any = 2.0, *, n: int | None = None, t: Any = None) -> Tensor:
    """Return the density ``2 sqrt(R^2 - x^2)/(pi R^2)``, 0 outside [-R, R].

    The radius R is given, or that of n Dyson particles from 0 at time t, `semicircle_radius`; 2 by
    default. Arrays x and `radius` or t are broadcast; the radius is positive (at 0 there is no
    density).

    Examples
    --------
    >>> import math
    >>> dln.laws.semicircle_density([0.0, 2.0]) * math.pi
    tensor([1., 0.])
    """
    x = as_float_tensor(x, "x")
    radius = one_or_more(_radius(radius, n, t), "radius", zero=False, beside=x)
    u = x / radius
    return 2.0 * (1.0 - u * u).clamp_min(0.0).sqrt() / math.pi / radius


def semicircle_distribution(
    x: Any, radius: Any = 2.0, *, n: int | None = None, t: Any = None
) -> Tensor:
    """Return the distribution function ``1/2 + (u sqrt(1 - u^2) + asin u)/pi``, ``u = x/R``.

    Arguments as in `semicircle_density`; at radius 0 it is that of the point 0: 1 from 0 on.

    Examples
    --------
    >>> dln.laws.semicircle_distribution([-3.0, 0.0, 3.0])
    tensor([0.0000, 0.5000, 1.0000])
    """
    x = as_float_tensor(x, "x")
    u = ratio(x, one_or_more(_radius(radius, n, t), "radius", beside=x)).clamp(-1.0, 1.0)
    return 0.5 + (u * (1 - u * u).clamp_min(0.0).sqrt() + u.asin()) / math.pi


def _radius(radius: Any, n: int | None, t: Any) -> Any:
    """Return the radius that was given, or that of n particles at time t."""
    if n is None and t is None:
        return radius
    if n is None or not (isinstance(radius, float) and radius == 2.0):
        raise ValueError("radius must come without n and t, and t with n, got both or t alone")
    return semicircle_radius(n, 1.0 if t is None else t)


def marchenko_pastur_edges(shape: tuple[int, int], t: Any = 1.0) -> tuple[Any, Any]:
    """Return ``sqrt(t) (sqrt m - sqrt n), sqrt(t) (sqrt m + sqrt n)``, edges of singular values.

    Floats at a time, tensors of the shape of `t` at several; 0 at time 0.

    Examples
    --------
    >>> dln.laws.marchenko_pastur_edges((9, 4))
    (1.0, 5.0)
    """
    (m, n), scale = as_sides(shape), root(one_or_more(t))
    return scale * (math.sqrt(m) - math.sqrt(n)), scale * (math.sqrt(m) + math.sqrt(n))


def marchenko_pastur_density(s: Any, shape: tuple[int, int], t: Any = 1.0) -> Tensor:
    """Return the limiting density of the singular values of an m x n matrix, variance t.

    ``sqrt((e_+^2 - s^2)(s^2 - e_-^2))/(pi n t s)`` between the edges, n the shorter side: the
    Marchenko-Pastur law of ``s^2``, written for s. Arrays s and t are broadcast; t is positive
    (at 0 there is no density).

    Examples
    --------
    The quarter circle of a square matrix:

    >>> import math
    >>> dln.laws.marchenko_pastur_density([0.0, 1.0], (1, 1)) * math.pi
    tensor([2.0000, 1.7321])
    """
    s = as_float_tensor(s, "s")
    t = one_or_more(t, zero=False, beside=s)
    (low, high), (m, n) = marchenko_pastur_edges(shape), as_sides(shape)
    unit = root(t)
    s = s / unit
    if m == n:
        found = torch.where(s >= 0, (high**2 - s * s).clamp_min(0.0).sqrt(), 0.0)
    else:
        inside = ((high**2 - s * s) * (s * s - low**2)).clamp_min(0.0).sqrt()
        found = torch.where(s > 0, inside / torch.where(s > 0, s, 1.0), 0.0)
    return found / (math.pi * n) / unit


def marchenko_pastur_distribution(s: Any, shape: tuple[int, int], t: Any = 1.0) -> Tensor:
    """Return the distribution function of `marchenko_pastur_density`, in closed form.

    Arrays s and t are broadcast; at time 0 it is that of the point 0: 1 from 0 on.

    Examples
    --------
    >>> dln.laws.marchenko_pastur_distribution([1.0, 5.0], (9, 4))
    tensor([0., 1.])
    """
    s = as_float_tensor(s, "s")
    s = ratio(s, root(one_or_more(t, beside=s)))
    low, high = marchenko_pastur_edges(shape)
    a, c = low**2, high**2
    w = s.clamp(low, high).square()
    edge = ((c - w) * (w - a)).clamp_min(0.0).sqrt()
    first = 0.5 * (a + c) * (torch.asin(((2 * w - a - c) / (c - a)).clamp(-1, 1)) + 0.5 * math.pi)
    second = 0.0
    if low > 0:
        other = ((a + c) * w - 2 * a * c) / (w * (c - a))
        second = math.sqrt(a * c) * (torch.asin(other.clamp(-1, 1)) + 0.5 * math.pi)
    return ((edge + first - second) / (2 * math.pi * min(shape))).clamp(0.0, 1.0)
