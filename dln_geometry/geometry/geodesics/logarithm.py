r"""The logarithm of the depth-N metric, and the distance.

Both points are written in one gauge, ``X = U K^N V^T`` with K symmetric: the chart at the first,
in which K and the turns of U and V are flat, is the exact logarithm where the singular vectors
agree. Elsewhere the geodesic is found by shooting.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dln_geometry.geometry.geodesics.chart import Chart
from dln_geometry.geometry.geodesics.exponential import as_tolerance
from dln_geometry.geometry.geodesics.hamiltonian import follow
from dln_geometry.geometry.geodesics.root_metric import Rooted, root
from dln_geometry.geometry.geodesics.shooting import shoot
from dln_geometry.geometry.metric import Box, metric, tangent_matrix
from dln_geometry.geometry.points import Collapsed, EndToEnd, as_point

__all__ = ["distance", "logarithm"]


def logarithm(
    p: EndToEnd | Collapsed, q: EndToEnd | Collapsed, *, rtol: float | None = None
) -> Tensor:
    r"""Return the velocity at `p` of a geodesic that is at `q` at time 1.

    It is the short one for points that are not far apart; for distant points it is a geodesic,
    and another may be shorter. At depth 1 it is ``q - p``, whatever the rank. Not differentiable
    by autograd; `distance` is.

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
    TypeError
        If `p` or `q` is no point.
    ValueError
        If the points do not go together, a singular value is zero, or (at depth above 1) their
        determinants have opposite signs or (at infinite depth) their row or column spaces differ:
        such points lie on different manifolds.
    GeodesicError
        If no geodesic was found.

    Examples
    --------
    >>> logarithm(EndToEnd.of([[8.0]], 3), EndToEnd.of([[27.0]], 3)).round(decimals=3)
    tensor([[12.]])
    """
    start, end = _pair(p, q)
    tolerance = as_tolerance(rtol, start.s.dtype)
    with torch.no_grad():
        if start.depth == 1.0:
            return end.matrix - start.matrix
        box, goal = _common_box(start, end)
        chart = Chart.at(box.point)
        velocity = chart.blocks(shoot(chart, goal, tolerance))
        z = tangent_matrix(box.point.u, box.point.vh, velocity)
        return box.embed_matrix(z).to(start.s.dtype)


def distance(
    p: EndToEnd | Collapsed, q: EndToEnd | Collapsed, *, rtol: float | None = None
) -> Tensor:
    r"""Return the length of the geodesic of `logarithm`, shape (...).

    ``sqrt(N) |Lam_1 - Lam_0|_F``, ``Lam = Sigma^{1/N}``, where the singular vectors agree;
    symmetric. Parameters and errors as in `logarithm`. Once differentiable by autograd in the
    matrices of the points, along their manifold: by q it is ``A^{-1}`` of the unit velocity with
    which the geodesic arrives, by p that of the one with which it leaves, times -1; zero where
    the points are the same.

    Examples
    --------
    >>> distance(EndToEnd.of([[8.0]], 3), EndToEnd.of([[27.0]], 3)).square().round(decimals=3)
    tensor(3.)
    """
    start, end = _pair(p, q)
    tolerance = as_tolerance(rtol, start.s.dtype)
    sources = [_source(x, start.s.shape[:-1]) for x in (p, q)]
    if start.depth == 1.0:
        return torch.linalg.matrix_norm(sources[1] - sources[0])
    with torch.no_grad():
        box, goal = _common_box(start, end)
        chart = Chart.at(box.point)
        coordinates = shoot(chart, goal, tolerance)
        length = coordinates.norm(dim=-1)
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in sources):
        return length.to(start.s.dtype)
    with torch.no_grad():
        # Of unit speed, and of none where the points are the same but for roundings.
        apart = length > 100.0 * torch.finfo(start.s.dtype).eps * chart.size
        unit = coordinates / torch.where(apart, length, math.inf).unsqueeze(-1)
        z = tangent_matrix(box.point.u, box.point.vh, chart.blocks(coordinates))
        w = tangent_matrix(box.point.u, box.point.vh, chart.blocks(unit))
        ends, (w_end,), _ = follow(Box(box.point, (z, w), None, None), [1.0], tolerance)
        there = ends[0].point(box.point)
        slopes = [-box.embed_matrix(metric(box.point, w)), box.embed_matrix(metric(there, w_end))]
        slopes = [slope.to(start.s.dtype) for slope in slopes]
    return _Distance.apply(*sources, length.to(start.s.dtype), *slopes)


def _source(p: EndToEnd | Collapsed, batch: torch.Size) -> Tensor:
    """Return the matrix that derivatives are asked of."""
    x = as_point(p).differentiable_matrix
    return x.expand(*batch, *x.shape[-2:])


class _Distance(torch.autograd.Function):
    """The distance, whose derivative by an end point is the covector of the unit velocity there."""

    @staticmethod
    def forward(
        ctx: Any, p: Tensor, q: Tensor, length: Tensor, slope_p: Tensor, slope_q: Tensor
    ) -> Tensor:
        ctx.save_for_backward(slope_p, slope_q)
        return length.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slope_p, slope_q = ctx.saved_tensors
        weight = gradients[0][..., None, None]
        return weight * slope_p, weight * slope_q, None, None, None


def _pair(p: EndToEnd | Collapsed, q: EndToEnd | Collapsed) -> tuple[EndToEnd, EndToEnd]:
    start, end = as_point(p), as_point(q)
    one, two = (
        # At depth 1 the manifold is that of all matrices.
        (x.shape, x.rank if x.depth > 1.0 else None, x.depth, x.normalized, x.s.dtype)
        for x in (start, end)
    )
    if one != two:
        raise ValueError(
            "p and q must have one shape, rank, depth, normalisation and dtype, "
            f"got {one} and {two}"
        )
    if start.depth > 1.0:
        for point, name in ((start, "p"), (end, "q")):
            if bool((point.s == 0).any()):
                raise ValueError(
                    f"{name} must have positive singular values, got a zero: "
                    "give the rank when making the point"
                )
        if start.rank == start.shape[0] == start.shape[1]:
            signs = [
                torch.linalg.det(x.u).sign() * torch.linalg.det(x.vh).sign() for x in (start, end)
            ]
            if bool((signs[0] * signs[1] < 0).any()):
                raise ValueError(
                    "p and q must have determinants of one sign, got opposite ones: the "
                    "singular matrices lie between them"
                )
    batch = torch.broadcast_shapes(start.s.shape[:-1], end.s.shape[:-1])
    return _expand(start, batch), _expand(end, batch)


def _expand(p: EndToEnd, batch: torch.Size) -> EndToEnd:
    u, s, vh = (x.expand(*batch, *x.shape[-k:]) for x, k in ((p.u, 2), (p.s, 1), (p.vh, 2)))
    return EndToEnd(u, s, vh, p.depth, p.normalized)


def _common_box(p: EndToEnd, q: EndToEnd) -> tuple[Box, Rooted]:
    """Return the box of the geodesics between two points, and the second point in it."""
    known = torch.finfo(p.s.dtype).eps
    p, q = (
        EndToEnd(x.u.double(), x.s.double(), x.vh.double(), x.depth, x.normalized) for x in (p, q)
    )
    # The chord spans what the geodesic spans; the moves of the frames, not of X, whose small
    # singular values would lose digits.
    move = (q.u - p.u @ (p.u.mT @ q.u)) @ p.vh + p.u @ (q.vh - (q.vh @ p.vh.mT) @ p.vh)
    if math.isinf(p.depth):
        outside = torch.linalg.matrix_norm(move)
        if bool((outside > math.sqrt(known)).any()):
            raise ValueError(
                "p and q must have one row and one column space at infinite depth, got spaces "
                f"that differ by {float(outside.max()):.1e}"
            )
    box = Box.around(p, move)
    u = q.u if box.left is None else box.left.mT @ q.u
    vh = q.vh if box.right is None else q.vh @ box.right.mT
    return box, Rooted(u, torch.diag_embed(root(q.s, q.depth)), vh.mT)
