"""A chart of the matrices around a point, and the aim at a point for the shooting."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dln_geometry.geometry.geodesics.hamilton import follow_geodesic
from dln_geometry.geometry.geodesics.root_metric import RootCoordinate, Rooted, Roots
from dln_geometry.geometry.geodesics.shooting import Aim
from dln_geometry.geometry.kernel import Differences, small_svd
from dln_geometry.geometry.metric import Blocks, Box, apply, tangent_matrix
from dln_geometry.geometry.points import EndToEnd, polar
from dln_geometry.support import Depth

# In place of the infinite tangent of a right angle.
_LARGE = 1e8
DEEPEST = 1e8
"""Above this depth turns of the spaces lose digits: a relative error of about 0.1 N eps."""
# Bounds the memory of the geodesics that a derivative takes, to about half a gigabyte.
_MOST_ENTRIES = 70000


@dataclass(frozen=True)
class Chart:
    """A chart: maps points near `point` to tangent vectors and back."""

    point: EndToEnd

    @cached_property
    def start(self) -> Rooted:
        """The roots of the point."""
        return Rooted.of(self.point)

    @cached_property
    def differences(self) -> Differences:
        """Divided differences at the singular values of the point."""
        return Differences(self.point.s, self.point.depth, self.point.normalized)

    @cached_property
    def secants(self) -> Tensor:
        """``(s_i - s_j)/(s_i^{1/N} - s_j^{1/N})``, shape (..., r, r)."""
        p = self.point
        return Roots(RootCoordinate(p.depth).of(p.s).flip(-1), p.depth).kernel.flip(-1, -2)

    @cached_property
    def size(self) -> Tensor:
        """Length of moves by the point itself, shape (...): rounding is relative to it."""
        p, k = self.point, self.differences
        kernel = k.kernel.diagonal(dim1=-2, dim2=-1)
        if (p.rank, p.rank) != p.shape and not p.depth.infinite:
            # Moves out of the range and corange are longer by sqrt(N).
            kernel = torch.minimum(kernel, k.mixed)
        return (p.s.square() / kernel).sum(-1).sqrt()

    def between(self, a: Rooted, q: Rooted, *, even: bool = False) -> Blocks:
        """Return the tangent vector that represents the difference of two points near each other.

        The frames of q are first turned to those of a, whose gauge is that of the chart or was
        carried from there. Turns are measured by twice the tangent of half their angles, which
        grows up to two right angles, or (`even`) by the angles.
        """

        def measured(turn: Tensor) -> Tensor:
            return _angles(turn) if even else turn

        p, frozen = self.point, self.point.depth.infinite
        q = _in_gauge_of(a, q, p.depth)
        rows, columns = p.s.unsqueeze(-1), p.s.unsqueeze(-2)
        core = measured(_half_tangents(a.u.mT @ q.u)) * columns + self.secants * (q.k - a.k)
        core = core + rows * measured(_half_tangents(q.v.mT @ a.v))
        left = right = None
        if p.shape[0] > p.rank and not frozen:
            left = measured(_departure(p.u, a.u, q.u)) * columns
        if p.shape[1] > p.rank and not frozen:
            right = rows * measured(_departure(p.vh.mT, a.v, q.v)).mT
        return Blocks(core, left, right)

    def coordinates(self, z: Blocks) -> Tensor:
        """Return orthonormal coordinates, shape (..., k)."""
        unit = apply(self.differences, z, -0.5)
        return torch.cat([part.flatten(-2) for part in unit if part is not None], -1)

    def blocks(self, coordinates: Tensor) -> Blocks:
        """Return the tangent vector with these coordinates."""
        (m, n), r, frozen = self.point.shape, self.point.rank, self.point.depth.infinite
        m, n = (0 if d == r or frozen else d for d in (m, n))
        core, left, right = coordinates.split([r * r, m * r, r * n], -1)
        left = left.unflatten(-1, (m, r)) if m else None
        right = right.unflatten(-1, (r, n)) if n else None
        return apply(self.differences, Blocks(core.unflatten(-1, (r, r)), left, right), 0.5)

    def matrix(self, coordinates: Tensor) -> Tensor:
        """Return the matrix of the tangent vector with these coordinates."""
        return tangent_matrix(self.point.u, self.point.vh, self.blocks(coordinates))

    def tangential(self, coordinates: Tensor) -> Tensor:
        """Remove from coordinates the parts of outer blocks along the range and corange."""
        p, (core, left, right) = self.point, self.blocks(coordinates)
        left = None if left is None else left - p.u @ (p.u.mT @ left)
        right = None if right is None else right - (right @ p.vh.mT) @ p.vh
        return self.coordinates(Blocks(core, left, right))


@dataclass(frozen=True)
class PointAim(Aim):
    """The aim from points, those of a chart, at others; see `Aim`."""

    chart: Chart
    goal: Rooted

    names, incomplete = "p to q", "the metric is"
    progress, patience, longest, dimensions = 0.5, (7, 4), 0.3, (40, 150)

    @property
    def size(self) -> Tensor:
        return self.chart.size

    def guess(self) -> Tensor:
        # Exact if the frames turn evenly.
        return self.chart.coordinates(self.chart.between(self.chart.start, self.goal, even=True))

    def shoot(self, velocity: Tensor, resolved: float) -> tuple[Tensor, Tensor, Tensor]:
        arrived, follows = _arrival(self.chart, velocity, resolved)
        miss = self.chart.coordinates(self.chart.between(arrived, self.goal))
        return miss, miss.norm(dim=-1), follows

    def crosses(self, velocity: Tensor, rtol: float) -> Tensor:
        p, length = self.chart.point, velocity.norm(dim=-1)
        # A geodesic through zero is at least as long as the distances of both ends from zero.
        coordinate = RootCoordinate(p.depth)
        ends = coordinate.of(p.s[..., -1]), torch.linalg.eigvalsh(self.goal.k)[..., 0]
        clear = sum(coordinate.roots(x) for x in ends)
        clear = 0.99 * (p.depth * p.depth.unit(p.normalized)) ** 0.5 * clear
        if p.depth.infinite or bool((length < clear).all()):
            return torch.zeros_like(length, dtype=torch.bool)
        box = Box(p, (self.chart.matrix(velocity),), None, None)
        lost = follow_geodesic(box, [1.0], max(rtol, 1e-8))[2]
        return torch.as_tensor(lost.which, device=velocity.device)

    def towards(self, part: float) -> PointAim:
        a = self.chart.start
        q = _in_gauge_of(a, self.goal, self.chart.point.depth)
        u, v = (polar((1.0 - part) * x + part * y) for x, y in ((a.u, q.u), (a.v, q.v)))
        return PointAim(self.chart, Rooted(u, (1.0 - part) * a.k + part * q.k, v))

    def of_samples(self, samples: Tensor) -> PointAim:
        start = Chart(self.chart.point.select(samples))
        return PointAim(start, self.goal.map(lambda x: x[samples]))

    def inverse_slope(self, velocity: Tensor) -> Tensor:
        return _inverse_slope(self.chart, velocity)


def _arrival(chart: Chart, velocity: Tensor, rtol: float) -> tuple[Rooted, Tensor]:
    """Return where geodesics arrive, through zero if need be, and whether they do."""
    box = Box(chart.point, (chart.matrix(velocity),), None, None)
    (end,), _, lost = follow_geodesic(box, [1.0], rtol, through=True)
    return end, torch.as_tensor(np.isnan(lost.times), device=velocity.device)


def _inverse_slope(chart: Chart, velocity: Tensor) -> Tensor:
    """Return the inverse of the derivative of the arrival, shape (B, k, k), by differences."""
    samples, k = velocity.shape
    most = max(1, _MOST_ENTRIES // (k * (k + 1)))
    if samples > most:
        parts = torch.arange(samples, device=velocity.device).split(most)
        return torch.cat([_inverse_slope(Chart(chart.point.select(i)), velocity[i]) for i in parts])
    h = 3e-4 * velocity.norm(dim=-1, keepdim=True).unsqueeze(-1)
    one = torch.eye(k + 1, k, dtype=velocity.dtype, device=velocity.device).roll(1, 0)
    index = torch.arange(samples, device=velocity.device).repeat_interleave(k + 1)
    wide = Chart(chart.point.select(index))
    moves = wide.tangential(one.repeat(samples, 1)).reshape(samples, k + 1, k)
    moved = velocity.unsqueeze(-2) + h * moves
    ends = _arrival(wide, moved.reshape(-1, k), 1e-7)[0]
    ends = ends.map(lambda x: x.unflatten(0, (samples, k + 1)))
    here, there = ends.map(lambda x: x[:, :1].expand(-1, k, -1, -1)), ends.map(lambda x: x[:, 1:])
    wide = Chart(chart.point.select(index.reshape(samples, k + 1)[:, 1:]))
    slope = wide.coordinates(wide.between(here, there)) / h
    # Use the identity outside the tangent space, and a pseudo-inverse of singular derivatives.
    tangential = moves[:, 1:]
    slope = tangential @ slope.mT.nan_to_num(0.0, 0.0, 0.0) @ tangential + (one[1:] - tangential)
    return torch.linalg.pinv(slope, rtol=1e-6)


def _in_gauge_of(a: Rooted, q: Rooted, depth: Depth) -> Rooted:
    """Return q in the gauge that is nearest to that of a."""
    overlap, roots = q.u.mT @ a.u + q.v.mT @ a.v, RootCoordinate(depth).matrix_roots
    left, _, right = small_svd(overlap if depth.infinite else roots(q.k) @ overlap @ roots(a.k))
    gauge = left @ right
    return Rooted(q.u @ gauge, gauge.mT @ q.k @ gauge, q.v @ gauge)


def _departure(base: Tensor, a: Tensor, q: Tensor) -> Tensor:
    """Return the turn of q out of the range of a, by twice the tangent of half the angle.

    The rotation that takes a to the base makes its columns orthogonal to the base.
    """
    one, overlap = a.new_ones(a.shape[-1]).diag(), a.mT @ q
    away = q - a @ overlap
    away = 2.0 * torch.linalg.solve_ex(one + overlap, away, left=False).result
    along = base.mT @ away
    return away - (a + base) @ torch.linalg.solve_ex(one + base.mT @ a, along).result


def _half_tangents(x: Tensor) -> Tensor:
    """Return twice the tangent of half the angles of a rotation: about the angles, if small."""
    one = x.new_ones(x.shape[-1]).diag()
    half = torch.linalg.solve_ex(x + one, x - one).result
    return half - half.mT


def _angles(x: Tensor) -> Tensor:
    """Return turns measured by their angles, from twice the tangents of half of these."""
    u, s, vh = small_svd(x.nan_to_num(0.0, _LARGE, -_LARGE))
    return (u * (2.0 * torch.atan(0.5 * s)).unsqueeze(-2)) @ vh
