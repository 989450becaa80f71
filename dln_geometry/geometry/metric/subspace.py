"""The small space in which a geodesic stays: at most twice the rank on either side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import Differences
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import broadcast_shapes


@dataclass(frozen=True)
class Box:
    """A point and tangent vectors in the small space in which their geodesic stays.

    `left` holds orthonormal columns (m x m') and `right` orthonormal rows (n' x n) that lead back
    to the whole space; None on a side where the box is the whole space.
    """

    point: EndToEnd
    vectors: tuple[Tensor, ...]
    left: Tensor | None
    right: Tensor | None

    @classmethod
    def around(cls, p: EndToEnd, *vectors: Tensor, frozen: bool = False) -> Box:
        """Return the box of a point and tangent vectors at it; r x r if these turn no space."""
        batch = broadcast_shapes(p.batch_shape, *(v.shape[:-2] for v in vectors))
        p, r, (m, n), frozen = p.expand(batch), p.rank, p.shape, frozen or p.depth.infinite
        vectors = tuple(v.expand(*batch, *v.shape[-2:]) for v in vectors)
        u, vh, left, right = p.u, p.vh, None, None
        if m > r * (len(vectors) + 1) or (m > r and frozen):
            left = u if frozen else _box_basis(u, [v @ vh.mH for v in vectors])
            vectors = tuple(left.mH @ v for v in vectors)
            u = left.mH @ u
        if n > r * (len(vectors) + 1) or (n > r and frozen):
            right = vh if frozen else _box_basis(vh.mH, [v.mH @ u for v in vectors]).mH
            vectors = tuple(v @ right.mH for v in vectors)
            vh = vh @ right.mH
        return cls(p.replace(u=u, vh=vh, check=False), vectors, left, right)

    def embed(self, point: EndToEnd) -> EndToEnd:
        """Return a point of the box in the whole space."""
        u = point.u if self.left is None else self.left @ point.u
        vh = point.vh if self.right is None else point.vh @ self.right
        return point.replace(u=u, vh=vh, check=False)

    def embed_matrix(self, x: Tensor) -> Tensor:
        """Return a matrix of the box in the whole space."""
        x = x if self.left is None else self.left @ x
        return x if self.right is None else x @ self.right

    def differences(self, s: Tensor) -> Differences:
        """Return the divided differences at these singular values."""
        return Differences(s, self.point.depth, self.point.normalized)


def _box_basis(u: Tensor, moves: list[Tensor]) -> Tensor:
    """Return an orthonormal basis that begins with the columns of `u` up to their signs."""
    return torch.linalg.qr(torch.cat([u, *moves], -1)).Q
