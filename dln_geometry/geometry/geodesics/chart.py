"""A chart of the matrices around one, by tangent vectors: what shooting compares points in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dln_geometry.geometry.geodesics.root_metric import Rooted
from dln_geometry.geometry.kernel import Differences, log_kernel_of_log
from dln_geometry.geometry.metric import Blocks, apply
from dln_geometry.geometry.points import EndToEnd

__all__ = ["Chart"]

# In the place of the infinite tangent of a right angle.
_LARGE = 1e8


@dataclass(frozen=True)
class Chart:
    """Tangent vectors at a point as names of the points around it."""

    point: EndToEnd
    differences: Differences

    @classmethod
    def at(cls, point: EndToEnd) -> Chart:
        """Return the chart around a point."""
        return cls(point, Differences(point.s, point.depth, point.normalized))

    @property
    def size(self) -> Tensor:
        """Length of the point itself as a velocity, shape (...): what roundings are relative to."""
        kernel = self.differences.kernel.diagonal(dim1=-2, dim2=-1)
        return (self.point.s.square() / kernel).sum(-1).sqrt()

    def flattened(self) -> Chart:
        """Return the charts of a batch in one row."""
        p = self.point
        u, s, vh = (x.reshape(-1, *x.shape[-k:]) for x, k in ((p.u, 2), (p.s, 1), (p.vh, 2)))
        return Chart.at(EndToEnd(u, s, vh, p.depth, p.normalized))

    def of_samples(self, samples: Tensor) -> Chart:
        """Return the charts of some samples of a row."""
        p = self.point
        return Chart.at(EndToEnd(p.u[samples], p.s[samples], p.vh[samples], p.depth, p.normalized))

    def guess(self, q: Rooted) -> Blocks:
        """Return the velocity at the point that would reach q if frames turned evenly."""
        return self.between(Rooted.of(self.point), q, even=True)

    def between(self, a: Rooted, q: Rooted, *, even: bool = False) -> Blocks:
        """Return the tangent vector that stands for the difference of two points.

        Zero if and only if they are the same, for points that are not far apart: the frames of q
        are turned to those of a, whose gauge is that of the chart or comes from there. Turns are
        measured by twice the tangent of half their angles, which grows up to two right angles, or
        (`even`) by the angles.
        """
        measure = _angles if even else _unchanged
        p = self.point
        q = _turned(a, q, math.isinf(p.depth))
        # (s_i - s_j)/(s_i^{1/N} - s_j^{1/N}) is the depth kernel of the square roots.
        change = torch.exp(log_kernel_of_log(0.5 * p.s.log(), p.depth, False)) * (q.k - a.k)
        rows, columns = p.s.unsqueeze(-1), p.s.unsqueeze(-2)
        core = measure(_turn(a.u.mT @ q.u)) * columns + change
        core = core + rows * measure(_turn(q.v.mT @ a.v))
        outer_left = outer_right = None
        frozen = math.isinf(p.depth)
        if p.shape[0] > p.rank and not frozen:
            outer_left = measure(_departure(p.u, a.u, q.u)) * columns
        if p.shape[1] > p.rank and not frozen:
            outer_right = rows * measure(_departure(p.vh.mT, a.v, q.v)).mT
        return Blocks(core, outer_left, outer_right)

    def towards(self, q: Rooted, part: float) -> Rooted:
        """Return a point on the way to q."""
        a = Rooted.of(self.point)
        q = _turned(a, q, math.isinf(self.point.depth))
        u, v = (_isometry((1.0 - part) * x + part * y) for x, y in ((a.u, q.u), (a.v, q.v)))
        return Rooted(u, (1.0 - part) * a.k + part * q.k, v)

    def coordinates(self, z: Blocks) -> Tensor:
        """Return orthonormal coordinates, shape (..., k)."""
        unit = apply(self.differences, z, -0.5)
        return torch.cat([part.flatten(-2) for part in unit if part is not None], -1)

    def tangential(self, coordinates: Tensor) -> Tensor:
        """Return the coordinates without what is along the range and corange in outer blocks."""
        p, (core, left, right) = self.point, self.blocks(coordinates)
        left = None if left is None else left - p.u @ (p.u.mT @ left)
        right = None if right is None else right - (right @ p.vh.mT) @ p.vh
        return self.coordinates(Blocks(core, left, right))

    def blocks(self, coordinates: Tensor) -> Blocks:
        """Return the tangent vector with these coordinates."""
        p, r = self.point, self.point.rank
        frozen = math.isinf(p.depth)
        shapes = [
            (r, r),
            (p.shape[0], r) if p.shape[0] > r and not frozen else None,
            (r, p.shape[1]) if p.shape[1] > r and not frozen else None,
        ]
        parts, begin = [], 0
        for shape in shapes:
            if shape is None:
                parts.append(None)
                continue
            size = shape[0] * shape[1]
            parts.append(coordinates[..., begin : begin + size].unflatten(-1, shape))
            begin += size
        return apply(self.differences, Blocks(*parts), 0.5)


def _turned(a: Rooted, q: Rooted, frozen: bool) -> Rooted:
    """Return q in the gauge that is nearest to that of a."""
    overlap = q.u.mT @ a.u + q.v.mT @ a.v
    left, _, right = torch.linalg.svd(overlap if frozen else q.k @ overlap @ a.k)
    gauge = left @ right
    return Rooted(q.u @ gauge, gauge.mT @ q.k @ gauge, q.v @ gauge)


def _departure(base: Tensor, a: Tensor, q: Tensor) -> Tensor:
    """Return how q leaves the range of a, where that is turned to the range of the base.

    Twice the tangent of half the angle; of columns orthogonal to the base, by the rotation that
    takes a to the base.
    """
    one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    overlap = a.mT @ q
    away = q - a @ overlap
    away = 2.0 * torch.linalg.solve_ex(one + overlap, away, left=False).result
    along = base.mT @ away
    return away - (a + base) @ torch.linalg.solve_ex(one + base.mT @ a, along).result


def _turn(x: Tensor) -> Tensor:
    """Return twice the tangent of half the angles of a rotation: the angles, where small."""
    one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    half = torch.linalg.solve_ex(x + one, x - one).result
    return half - half.mT


def _unchanged(x: Tensor) -> Tensor:
    return x


def _angles(x: Tensor) -> Tensor:
    """Return turns by their angles, from what is twice the tangents of half of these."""
    u, s, vh = torch.linalg.svd(x.nan_to_num(0.0, _LARGE, -_LARGE), full_matrices=False)
    return (u * (2.0 * torch.atan(0.5 * s)).unsqueeze(-2)) @ vh


def _isometry(x: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal columns."""
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh
