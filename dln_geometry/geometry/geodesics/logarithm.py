r"""The logarithm of the depth-N metric, and the distance.

A chart at the first point, flat in K and in the turns of U and V where ``X = U K^N V^T``, gives the
exact logarithm if the singular vectors agree. Otherwise shooting finds the geodesic.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.geodesics.chart import DEEPEST, Chart, PointAim
from dln_geometry.geometry.geodesics.hamilton import as_tolerance, follow_geodesic
from dln_geometry.geometry.geodesics.root_metric import RootCoordinate, Rooted
from dln_geometry.geometry.geodesics.shooting import shoot
from dln_geometry.geometry.geodesics.variations import Varied, logarithm_gradients
from dln_geometry.geometry.metric import Box, doubled, metric
from dln_geometry.geometry.points import (
    Collapsed,
    EndToEnd,
    as_point,
    by_power_of_two,
    complex_form,
    exponent_of,
    last_derivatives,
    real_point,
)
from dln_geometry.support import common_batch, is_differentiated


def logarithm(
    p: EndToEnd | Collapsed, q: EndToEnd | Collapsed, *, rtol: float | None = None
) -> Tensor:
    r"""Return the velocity at `p` of a geodesic that is at `q` at time 1.

    It is the short one for points that are not far apart; for distant points it is a geodesic,
    and another may be shorter. At depth 1 it is ``q - p``, whatever the rank. Once
    differentiable by autograd in the matrices of the points.

    Parameters
    ----------
    p, q : EndToEnd or Collapsed
        Points of one shape, rank, depth and normalisation, their singular values positive.
        Leading dimensions broadcast.
    rtol : float, optional
        Error allowed, relative to the distance; ``eps^{3/4}`` by default.

    Returns
    -------
    Tensor, shape (..., m, n)
        Tangent at `p`.

    Raises
    ------
    ValueError
        If a singular value is zero, or the points lie on different manifolds: (at depth above 1)
        their determinants have opposite signs, or (at infinite depth) their row or column spaces
        differ; at finite depths above 1e8, where roundings outgrow the tolerance, they must not.
    GeodesicError
        If no geodesic was found.

    Examples
    --------
    >>> dln.logarithm(dln.EndToEnd.of([[8.0]], 3), dln.EndToEnd.of([[27.0]], 3)).round(decimals=3)
    tensor([[12.]])
    """
    if (pair := _real_pair(p, q)) is not None:
        return complex_form(logarithm(*pair, rtol=rtol))
    start, end = _pair(p, q)
    tolerance = as_tolerance(rtol, start.s.dtype)
    if start.depth == 1.0:
        return end.matrix - start.matrix
    with torch.no_grad():
        box, goal, unit = _common_box(start, end)
        z = Chart(box.point).matrix(_shoot(box.point, goal, _equal(start, end), tolerance))
        z = (unit.unsqueeze(-1) * box.embed_matrix(z)).to(start.s.dtype)
    if not is_differentiated(*p.tensors, *q.tensors):
        return z
    slope = logarithm_gradients(start, end, z, logarithm)
    return Varied.apply(start.differentiable_matrix, end.differentiable_matrix, z, slope)


def distance(
    p: EndToEnd | Collapsed, q: EndToEnd | Collapsed, *, rtol: float | None = None
) -> Tensor:
    r"""Return the length of the geodesic of `logarithm`, shape (...).

    ``sqrt(N) |Lam_1 - Lam_0|_F``, ``Lam = Sigma^{1/N}``, where the singular vectors agree;
    symmetric. Parameters and errors as in `logarithm`. Once differentiable by autograd in the
    matrices of the points, along their manifold: the gradient in q is ``A^{-1}`` of the unit
    velocity at arrival, that in p minus ``A^{-1}`` of the one at departure; 0 if p = q.

    Examples
    --------
    >>> p, q = dln.EndToEnd.of([[8.0]], 3), dln.EndToEnd.of([[27.0]], 3)
    >>> dln.distance(p, q).square().round(decimals=3)
    tensor(3.)
    """
    if (pair := _real_pair(p, q)) is not None:
        return distance(*pair, rtol=rtol) / math.sqrt(2.0)
    start, end = _pair(p, q)
    tolerance = as_tolerance(rtol, start.s.dtype)
    shape = *start.batch_shape, *start.shape
    sources = [as_point(x).differentiable_matrix.expand(shape) for x in (p, q)]
    if start.depth == 1.0:
        gap = end.matrix - start.matrix
        size = exponent_of(gap)
        length = torch.linalg.vector_norm(by_power_of_two(gap, -size), dim=(-2, -1))
        length = by_power_of_two(length, size, 0)
        whole = start.rank**0.5 * start.s.detach()[..., 0]
        apart = length > 100.0 * torch.finfo(length.dtype).eps * whole
        # Points that differ by rounding only have no direction: the derivative is 0.
        return torch.where(apart, length, length.detach())
    with torch.no_grad():
        box, goal, unit = _common_box(start, end)
        coordinates = _shoot(box.point, goal, _equal(start, end), tolerance)
        length = coordinates.norm(dim=-1)
        # Lengths scale like the roots of the matrices.
        units = unit ** (1.0 / start.depth)
        scaled = length * units.squeeze(-1)
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in sources):
        return scaled.to(start.s.dtype)
    with torch.no_grad():
        # Of unit speed, or zero where the points differ by rounding only.
        chart = Chart(box.point)
        apart = length > 100.0 * torch.finfo(start.s.dtype).eps * chart.size
        direction = coordinates / torch.where(apart, length, math.inf).unsqueeze(-1)
        z, w = chart.matrix(coordinates), chart.matrix(direction)
        ends, (w_end,), _ = follow_geodesic(Box(box.point, (z, w), None, None), [1.0], tolerance)
        there = ends[0].point(box.point)
        slopes = -box.embed_matrix(metric(box.point, w)), box.embed_matrix(metric(there, w_end))
        slopes = tuple((units / unit).unsqueeze(-1) * slope for slope in slopes)
    return _Distance.apply(*sources, *(x.to(start.s.dtype) for x in (scaled, *slopes)))


def _equal(p: EndToEnd, q: EndToEnd) -> Tensor:
    """Return which points are equal, (...).

    Shooting need not find that: where spectra span many decades, the roundings of frames are long.
    """
    pairs = ((p.u, q.u), (p.s.unsqueeze(-1), q.s.unsqueeze(-1)), (p.vh, q.vh))
    return torch.stack([(a == b).flatten(-2).all(-1) for a, b in pairs]).all(0)


def _shoot(p: EndToEnd, goal: Rooted, there: Tensor, rtol: float) -> Tensor:
    """Return the velocity at p that reaches the goal, in the coordinates of the chart."""
    goal = goal.map(lambda x: x.reshape(-1, *x.shape[-2:]))
    return shoot([PointAim(Chart(p.flatten()), goal)], rtol, p.batch_shape, there.flatten())


class _Distance(torch.autograd.Function):
    """The distance; its derivative by an end is the covector of the unit velocity there."""

    @staticmethod
    def forward(
        ctx: Any, p: Tensor, q: Tensor, length: Tensor, slope_p: Tensor, slope_q: Tensor
    ) -> Tensor:
        ctx.save_for_backward(slope_p, slope_q, p, q)
        return length.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slope_p, slope_q, *ends = ctx.saved_tensors
        with torch.no_grad():
            weight = gradients[0][..., None, None]
            found = weight * slope_p, weight * slope_q
        return (*last_derivatives(found, *ends, *gradients), None, None, None)


def _real_pair(p: Any, q: Any) -> tuple[EndToEnd, EndToEnd] | None:
    """Return the real forms of two complex points of one kind, or None."""
    start, end = as_point(p, "p", complex=True), as_point(q, "q", complex=True)
    alike = start.dtype == end.dtype and start.shape == end.shape
    if not (start.dtype.is_complex and alike):
        return None
    return real_point(start), real_point(end)


def _pair(p: EndToEnd | Collapsed, q: EndToEnd | Collapsed) -> tuple[EndToEnd, EndToEnd]:
    start, end = as_point(p, "p"), as_point(q, "q")
    one, two = (
        # At depth 1 the manifold holds matrices of all ranks.
        (x.shape, x.rank if x.depth > 1.0 else None, x.depth, x.normalized, x.s.dtype)
        for x in (start, end)
    )
    if one != two:
        wanted = "one shape, rank, depth, normalisation and dtype"
        raise ValueError(f"p and q must have {wanted}, got {one} and {two}")
    if start.depth > 1.0:
        for point, name in ((start, "p"), (end, "q")):
            if bool((point.s == 0).any()):
                advice = "give the rank when making the point"
                raise ValueError(f"{name} must have positive singular values, got a zero: {advice}")
        if start.rank == start.shape[0] == start.shape[1]:
            signs = [torch.linalg.det(x.u) * torch.linalg.det(x.vh) for x in (start, end)]
            if bool((signs[0] * signs[1] < 0).any()):
                raise ValueError(
                    "p and q must have determinants of one sign, got opposite ones: the "
                    "singular matrices lie between them"
                )
    batch = common_batch(p=start.batch_shape, q=end.batch_shape)
    return start.expand(batch), end.expand(batch)


def _common_box(p: EndToEnd, q: EndToEnd) -> tuple[Box, Rooted, Tensor]:
    """Return the box of the geodesics between two points, and the second point in it.

    The points are divided by the largest singular value of the first, (..., 1), the third result.
    """
    known = torch.finfo(p.s.dtype).eps
    p, q = doubled(p), doubled(q)
    unit = p.s[..., :1]
    p, q = (x.replace(s=x.s / unit, check=False) for x in (p, q))
    # The geodesic stays in the span of both frames. Take the moves of the frames: in those of X,
    # small singular values lose digits.
    move = (q.u - p.u @ (p.u.mT @ q.u)) @ p.vh + p.u @ (q.vh - (q.vh @ p.vh.mT) @ p.vh)
    if p.depth.infinite:
        outside = torch.linalg.matrix_norm(move)
        if bool((outside > math.sqrt(known)).any()):
            raise ValueError(
                "p and q must have one row and one column space at infinite depth, got spaces "
                f"that differ by {float(outside.max()):.1e}"
            )
    deep = p.depth > DEEPEST and not p.depth.infinite
    if deep:
        outside = torch.linalg.matrix_norm(move)
        # The SVD knows the spaces to rounding over the smallest singular value.
        if bool((outside > 1000.0 * known * p.s[..., 0] / torch.minimum(p.s, q.s)[..., -1]).any()):
            raise ValueError(
                f"p and q must have one row and one column space at depths above {DEEPEST:.0e}, "
                f"where roundings outgrow the tolerance, got spaces that differ by "
                f"{float(outside.max()):.1e}"
            )
    box = Box.around(p, move, frozen=deep)
    u = q.u if box.left is None else box.left.mT @ q.u
    vh = q.vh if box.right is None else q.vh @ box.right.mT
    return box, Rooted(u, torch.diag_embed(RootCoordinate(q.depth).of(q.s)), vh.mT), unit
