"""A chart of the matrices around one, by tangent vectors: what shooting compares points in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dln_geometry.geometry.differences import Differences
from dln_geometry.geometry.kernel import log_kernel_of_log
from dln_geometry.geometry.point import EndToEnd
from dln_geometry.geometry.variation import Blocks, apply

__all__ = ["Chart"]


@dataclass(frozen=True)
class Chart:
    """Tangent vectors at a point as names of the points around it."""

    point: EndToEnd
    differences: Differences

    @classmethod
    def at(cls, point: EndToEnd) -> Chart:
        """Return the chart around a point."""
        return cls(point, Differences(point.s, point.depth, point.normalized))

    def of(self, q: EndToEnd) -> Blocks:
        """Return the tangent vector of a point."""
        p = self.point
        u, vh, gauge = self.gauged(q)
        step = _root(q.s, q.depth)
        change = (gauge.mT * step.unsqueeze(-2)) @ gauge - torch.diag_embed(_root(p.s, p.depth))
        # (s_i - s_j)/(s_i^{1/N} - s_j^{1/N}) is the depth kernel of the square roots.
        change = change * torch.exp(log_kernel_of_log(0.5 * p.s.log(), p.depth, False))
        left, right = p.u.mT @ u, vh @ p.vh.mT
        turn_left, turn_right = 0.5 * (left - left.mT), 0.5 * (right - right.mT)
        rows, columns = p.s.unsqueeze(-1), p.s.unsqueeze(-2)
        core = turn_left * columns + change + rows * turn_right
        outer_left = outer_right = None
        frozen = math.isinf(p.depth)
        if p.shape[0] > p.rank and not frozen:
            outer_left = (u - p.u @ left) * columns
        if p.shape[1] > p.rank and not frozen:
            outer_right = rows * (vh - right @ p.vh)
        return Blocks(core, outer_left, outer_right)

    def gauged(self, q: EndToEnd) -> tuple[Tensor, Tensor, Tensor]:
        """Return the frames of a point turned as near as can be to those of the chart."""
        p = self.point
        one, two = (
            torch.ones_like(x.s) if math.isinf(p.depth) else _root(x.s, p.depth) for x in (p, q)
        )
        overlap = q.u.mT @ p.u + q.vh @ p.vh.mT
        a, _, bh = torch.linalg.svd(two.unsqueeze(-1) * overlap * one.unsqueeze(-2))
        gauge = a @ bh
        return q.u @ gauge, gauge.mT @ q.vh, gauge

    def towards(self, q: EndToEnd, part: float) -> EndToEnd:
        """Return a point on the way to q."""
        p = self.point
        u, vh, gauge = self.gauged(q)
        root = (gauge.mT * _root(q.s, q.depth).unsqueeze(-2)) @ gauge
        root = (1.0 - part) * torch.diag_embed(_root(p.s, p.depth)) + part * root
        values, basis = torch.linalg.eigh(root)
        values, basis = values.flip(-1), basis.flip(-1)
        s = values.exp() if math.isinf(p.depth) else values.clamp_min(0.0) ** p.depth
        left = _isometry((1.0 - part) * p.u + part * u) @ basis
        right = _isometry(((1.0 - part) * p.vh + part * vh).mT) @ basis
        return EndToEnd(left, s, right.mT, p.depth, p.normalized)

    def coordinates(self, z: Blocks) -> Tensor:
        """Return orthonormal coordinates, shape (..., k)."""
        unit = apply(self.differences, z, -0.5)
        return torch.cat([part.flatten(-2) for part in unit if part is not None], -1)

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


def _root(s: Tensor, depth: float) -> Tensor:
    """Return the flat coordinate ``s^{1/N}``, ``log s`` at infinite depth."""
    return s.log() if math.isinf(depth) else s ** (1.0 / depth)


def _isometry(x: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal columns."""
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh
