r"""The logarithm of the depth-N metric by shooting, and the distance.

Both points are written in one gauge, ``X = U K V^T`` with K symmetric: the chart at the first,
``Z = dU S V^T + U dK V^T + U S dV^T`` with K measured by its N-th root, is the exact logarithm
where the singular vectors agree. Elsewhere the geodesic is shot and what it misses in the chart
corrects the velocity, accelerated by the secants of earlier shots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.geometry.box import Box
from dln_geometry.geometry.chart import Chart
from dln_geometry.geometry.geodesics import (
    GeodesicError,
    as_tolerance,
    exponential,
)
from dln_geometry.geometry.point import Collapsed, EndToEnd, as_point
from dln_geometry.geometry.variation import Blocks, tangent_matrix

__all__ = ["distance", "logarithm"]

_MOST_SHOTS = 60
_SECANTS = 12
_SHORTEST_STAGE = 1.0 / 64.0
_BLUR = 250.0


def logarithm(
    p: EndToEnd | Collapsed, q: EndToEnd | Collapsed, *, rtol: float | None = None
) -> Tensor:
    r"""Return the velocity at `p` of a geodesic that is at `q` at time 1.

    It is the short one for points that are not far apart; for distant points it is a geodesic,
    found by moving `q` away from `p`, and another may be shorter.

    Parameters
    ----------
    p, q : EndToEnd or Collapsed
        Points of one shape, rank, depth and normalisation, their singular values positive.
        Leading dimensions broadcast.
    rtol : float, optional
        Error allowed, relative to the distance; ``eps^{3/4}`` by default. It is widened where
        ``250 eps s_max/s_min`` is larger, since small singular values are known no better.

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
        blocks = _shoot(chart, goal, tolerance)
        z = tangent_matrix(box.point.u, box.point.vh, blocks)
        return box.embed_matrix(z)


def distance(
    p: EndToEnd | Collapsed, q: EndToEnd | Collapsed, *, rtol: float | None = None
) -> Tensor:
    r"""Return the length of the geodesic of `logarithm`, shape (...).

    ``sqrt(N) |Lam_1 - Lam_0|_F``, ``Lam = Sigma^{1/N}``, where the singular vectors agree;
    symmetric. Parameters and errors as in `logarithm`.

    Examples
    --------
    >>> distance(EndToEnd.of([[8.0]], 3), EndToEnd.of([[27.0]], 3)).square().round(decimals=3)
    tensor(3.)
    """
    start, end = _pair(p, q)
    tolerance = as_tolerance(rtol, start.s.dtype)
    with torch.no_grad():
        if start.depth == 1.0:
            return torch.linalg.matrix_norm(end.matrix - start.matrix)
        box, goal = _common_box(start, end)
        chart = Chart.at(box.point)
        return chart.coordinates(_shoot(chart, goal, tolerance)).square().sum(-1).sqrt()


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


def _common_box(p: EndToEnd, q: EndToEnd) -> tuple[Box, EndToEnd]:
    """Return the box of the geodesics between two points, and the second point in it."""
    # The chord spans what the geodesic spans; the moves of the frames, not of X, whose small
    # singular values would lose digits.
    move = (q.u - p.u @ (p.u.mT @ q.u)) @ p.vh + p.u @ (q.vh - (q.vh @ p.vh.mT) @ p.vh)
    if math.isinf(p.depth):
        outside = torch.linalg.matrix_norm(move).max()
        if float(outside) > math.sqrt(torch.finfo(p.s.dtype).eps):
            raise ValueError(
                "p and q must have one row and one column space at infinite depth, got spaces "
                f"that differ by {float(outside):.1e}"
            )
    box = Box.around(p, move)
    u = q.u if box.left is None else box.left.mT @ q.u
    vh = q.vh if box.right is None else q.vh @ box.right.mT
    return box, EndToEnd(u, q.s, vh, q.depth, q.normalized)


def _shoot(chart: Chart, goal: EndToEnd, rtol: float) -> Blocks:
    """Find the velocity that reaches the goal, by way of nearer goals if need be."""
    guess = chart.coordinates(chart.of(goal))
    found, missed = _correct(chart, goal, guess, rtol)
    if found is not None:
        return chart.blocks(found)
    _refuse_roundings(missed, rtol, guess.dtype)
    reached, stage = 0.0, 0.5
    velocity = torch.zeros_like(guess)
    while reached < 1.0:
        part = min(1.0, reached + stage)
        way = goal if part == 1.0 else chart.towards(goal, part)
        if reached == 0.0:
            guess = chart.coordinates(chart.of(way))
        else:
            guess = velocity * (part / reached)
        # On the way it is enough to be near.
        found, missed = _correct(chart, way, guess, rtol if part == 1.0 else max(rtol, 1e-4))
        if found is None:
            if part == 1.0:
                _refuse_roundings(missed, rtol, guess.dtype)
            stage *= 0.5
            if stage < _SHORTEST_STAGE:
                raise GeodesicError(
                    f"no geodesic was found from p to q: shooting reached {reached:.0%} of the way "
                    f"and missed the next goal by {missed:.1e} of its distance (the logarithm is "
                    "local, and the metric is not complete)"
                )
            continue
        velocity, reached = found, part
        stage *= 1.5
    return chart.blocks(velocity)


def _refuse_roundings(missed: float, rtol: float, dtype: torch.dtype) -> None:
    """Tell apart what shorter stages do not help: the roundings of tiny singular values."""
    if missed < 10.0 * math.sqrt(torch.finfo(dtype).eps):
        raise GeodesicError(
            f"a geodesic from p to q was found to a relative error {missed:.1e} only, not rtol = "
            f"{rtol:.1e}: small singular values on the way are known no better; give a larger rtol"
        )


def _correct(
    chart: Chart, goal: EndToEnd, velocity: Tensor, rtol: float
) -> tuple[Tensor | None, float]:
    """Return the velocity that reaches the goal, or None, and the relative error left.

    Anderson acceleration of ``v <- v + chart(goal) - chart(exp v)``, sample by sample.
    """
    p = chart.point
    target = chart.coordinates(chart.of(goal))
    eps = torch.finfo(velocity.dtype).eps
    kernel = chart.differences.kernel.diagonal(dim1=-2, dim2=-1)
    size = (p.s.square() / kernel).sum(-1).sqrt()
    # As in the exponential map, small singular values are known to eps of the large ones.
    condition = (p.s[..., 0] / p.s[..., -1]).maximum(goal.s[..., 0] / goal.s[..., -1])
    blur = (_BLUR * eps / rtol * condition).clamp_min(1.0)
    moves: list[Tensor] = []
    changes: list[Tensor] = []
    last_velocity = last_miss = None
    best = nearest = math.inf
    stalled, finest = 0, max(eps, 0.1 * rtol)
    resolved = max(finest, 1e-6)
    for _ in range(_MOST_SHOTS):
        try:
            z = tangent_matrix(p.u, p.vh, chart.blocks(velocity))
            end = exponential(p, z, rtol=resolved)
        except GeodesicError:
            stalled += 1
            if stalled > 6:
                return None, min(nearest, 1.0)
            # Too far: half of the last move, or of the first guess.
            nearer = torch.zeros_like(velocity) if last_velocity is None else last_velocity
            velocity = 0.5 * (velocity + nearer)
            continue
        miss = target - chart.coordinates(chart.of(end))
        length = velocity.norm(dim=-1)
        bound = (rtol * length + 100.0 * eps * size) * blur
        error = miss.norm(dim=-1)
        # Relative to the length, or to what roundings leave of it.
        worst = rtol * float((error / bound).max())
        nearest = min(nearest, worst)
        done = error <= bound
        if bool(done.all()) and resolved <= finest:
            return velocity + torch.where(done.unsqueeze(-1), 0.0, miss), worst
        # Where the shot misses by much, it need not be a fine one.
        if resolved > finest and worst < 10.0 * resolved:
            finer = finest if bool(done.all()) else max(finest, 1e-3 * worst)
            if finer < resolved:
                # The same shot again: neither a step nor a secant may know less than is asked for.
                resolved, moves, changes = finer, [], []
                last_velocity = last_miss = None
                continue
        excess = worst / rtol
        stalled = stalled + 1 if excess > 0.7 * best else 0
        best = min(best, excess)
        if stalled > 8 or not math.isfinite(excess):
            return None, nearest
        if last_miss is not None and last_velocity is not None:
            moves = [*moves, velocity - last_velocity][-_SECANTS:]
            changes = [*changes, miss - last_miss][-_SECANTS:]
        last_velocity, last_miss = velocity, miss
        step = miss + _secant_step(moves, changes, miss)
        velocity = velocity + torch.where(done.unsqueeze(-1), 0.0, step)
    return None, nearest


def _secant_step(moves: list[Tensor], changes: list[Tensor], miss: Tensor) -> Tensor:
    """Return what the secants add to the plain step."""
    if not moves:
        return torch.zeros_like(miss)
    f, v = torch.stack(changes, -1), torch.stack(moves, -1)
    # Columns of unit length: old, long moves must not drown the new ones.
    scale = f.norm(dim=-2, keepdim=True).clamp_min(torch.finfo(f.dtype).tiny)
    f, v = f / scale, v / scale
    gram = f.mT @ f
    floor = (
        100.0 * torch.finfo(f.dtype).eps * torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
    )
    weights = torch.linalg.solve(gram + floor, f.mT @ miss.unsqueeze(-1))
    return -((v + f) @ weights).squeeze(-1)
