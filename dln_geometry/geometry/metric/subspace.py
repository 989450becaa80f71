"""The small space in which a geodesic stays: at most twice the rank on either side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import Differences
from dln_geometry.geometry.points import EndToEnd

__all__ = ["Box"]


@dataclass(frozen=True)
class Box:
    """A point and tangent vectors in the small space in which their geodesic stays.

    Attributes
    ----------
    point : EndToEnd
        The point in the box.
    vectors : tuple of Tensor
        Tangent vectors in the box.
    left : Tensor, shape (..., m, m'), or None
        Orthonormal columns; None where the box is the whole space.
    right : Tensor, shape (..., n', n), or None
        Orthonormal rows.
    """

    point: EndToEnd
    vectors: tuple[Tensor, ...]
    left: Tensor | None
    right: Tensor | None

    @classmethod
    def around(cls, p: EndToEnd, *vectors: Tensor) -> Box:
        """Return the box of a point and tangent vectors at it."""
        batch = torch.broadcast_shapes(p.s.shape[:-1], *(v.shape[:-2] for v in vectors))
        u, s, vh = (
            part.expand(*batch, *part.shape[-k:]) for part, k in ((p.u, 2), (p.s, 1), (p.vh, 2))
        )
        vectors = tuple(v.expand(*batch, *v.shape[-2:]) for v in vectors)
        r, (m, n) = p.rank, p.shape
        left = right = None
        if m > r * (len(vectors) + 1) or (m > r and math.isinf(p.depth)):
            left = u if math.isinf(p.depth) else _span(u, [v @ vh.mT for v in vectors])
            vectors = tuple(left.mT @ v for v in vectors)
            u = left.mT @ u
        if n > r * (len(vectors) + 1) or (n > r and math.isinf(p.depth)):
            rows = vh if math.isinf(p.depth) else _span(vh.mT, [v.mT @ u for v in vectors]).mT
            right = rows
            vectors = tuple(v @ right.mT for v in vectors)
            vh = vh @ right.mT
        return cls(EndToEnd(u, s, vh, p.depth, p.normalized), vectors, left, right)

    def embed(self, point: EndToEnd) -> EndToEnd:
        """Return a point of the box in the whole space."""
        u = point.u if self.left is None else self.left @ point.u
        vh = point.vh if self.right is None else point.vh @ self.right
        return EndToEnd(u, point.s, vh, point.depth, point.normalized)

    def embed_matrix(self, x: Tensor) -> Tensor:
        """Return a matrix of the box in the whole space."""
        x = x if self.left is None else self.left @ x
        return x if self.right is None else x @ self.right

    def frames(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the frames of the nearest matrix of the rank of the point."""
        r = self.point.rank
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        return u[..., :r], s[..., :r], vh[..., :r, :]

    def point_of(self, x: Tensor) -> EndToEnd:
        """Return the nearest matrix of the rank of the point, as a point of the box."""
        return EndToEnd(*self.frames(x), self.point.depth, self.point.normalized)

    def differences(self, s: Tensor) -> Differences:
        """Return the divided differences at these singular values."""
        return Differences(s, self.point.depth, self.point.normalized)


def _span(u: Tensor, moves: list[Tensor]) -> Tensor:
    """Return an orthonormal basis that begins with the columns of `u` up to their signs."""
    return torch.linalg.qr(torch.cat([u, *moves], -1)).Q
