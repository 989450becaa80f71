"""The space of end-to-end matrices with one column space and one row space, for geomstats."""

from __future__ import annotations

import math
from typing import Any

import geomstats.backend as gs  # pyright: ignore[reportMissingImports]
import torch
from geomstats.geometry.manifold import Manifold
from geomstats.geometry.matrices import Matrices
from torch import Tensor

from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import as_flag, as_float_tensor, broadcast_shapes
from manifolds._geomstats.arrays import as_tensor, is_zero, to_backend
from manifolds._geomstats.matrices.frames import Frames
from manifolds._geomstats.matrices.metrics import DepthMetric
from manifolds._geomstats.matrices.spaces import FullRankEndToEnd


class FixedSpacesEndToEnd(Manifold):
    """End-to-end matrices ``X = U Y V^T`` of one column and one row space, Y any invertible core.

    A manifold of dimension ``r^2``: at infinite depth only Y moves. At finite depth the reflections
    ``2 U U^T - 1`` and ``2 V V^T - 1``, isometries of the matrices of rank r, leave it fixed: it is
    totally geodesic there, and isometric to `FullRankEndToEnd` of r x r matrices by ``X -> Y``. It
    has the two components of these, and the same random points.

    Parameters
    ----------
    left : array-like, shape=[m, r]
        Matrix whose independent columns span the column space; Gram-Schmidt makes them orthonormal.
    right : array-like, shape=[n, r]
        The same for the row space.
    positive_det : bool
        Keep to cores of positive determinant.
    equip : bool
        If True, equip with `DepthMetric` of infinite depth.

    Examples
    --------
    >>> from manifolds.geomstats_dln import FixedSpacesEndToEnd
    >>> space = FixedSpacesEndToEnd([[3.0], [4.0]], [[0.0], [2.0], [0.0]])
    >>> x = space.embed([[5.0]])
    >>> [round(float(entry), 6) for entry in x[:, 1]]
    [3.0, 4.0]
    >>> round(float(space.metric.dist(x, 2.0 * x)), 6)  # log 2
    0.693147
    """

    def __init__(
        self, left: Any, right: Any, positive_det: bool = False, equip: bool = True
    ) -> None:
        positive_det, equip = as_flag(positive_det, "positive_det"), as_flag(equip, "equip")
        self.frames = Frames.of(left, right)
        self.rank = self.frames.rank
        self.positive_det = positive_det
        self.cores = FullRankEndToEnd(self.rank, self.rank, positive_det, equip=False)
        self.m, self.n = self.frames.shape
        self.embedding_space = Matrices(self.m, self.n, equip=False)
        super().__init__(dim=self.rank**2, shape=self.frames.shape, intrinsic=False, equip=equip)

    @classmethod
    def of(
        cls, point: Any, rank: int | None = None, positive_det: bool = False, equip: bool = True
    ) -> FixedSpacesEndToEnd:
        """Return the space of the matrices with the spaces of one, whose core is positive.

        Parameters
        ----------
        point : array-like, shape=[m, n]
            A matrix; it belongs to its space whatever `positive_det`.
        rank : int, optional
            The default is ``min(m, n)``.
        positive_det, equip : bool
            As in the class.
        """
        x = as_float_tensor(as_tensor(point, name="point"), "point")
        if x.ndim != 2 or x.numel() == 0:
            raise ValueError(f"point must be one matrix, got shape {tuple(x.shape)}")
        p = EndToEnd.of(x, 1.0, rank=rank)
        if float(p.s[-1]) <= max(p.shape) * torch.finfo(p.dtype).eps * float(p.s[0]):
            raise ValueError(
                f"point must have rank {p.rank}, got singular values {p.s.tolist()}: give its rank"
            )
        return cls(to_backend(p.u), to_backend(p.vh.mT), positive_det, equip)

    @property
    def left(self) -> Any:
        """Orthonormal basis U of the column space, array-like, shape=[m, r]."""
        return to_backend(self.frames.left)

    @property
    def right(self) -> Any:
        """Orthonormal basis V of the row space, array-like, shape=[n, r]."""
        return to_backend(self.frames.right)

    def new(self, equip: bool = True) -> FixedSpacesEndToEnd:
        """Return a space with the same parameters."""
        return FixedSpacesEndToEnd(self.left, self.right, self.positive_det, equip)

    @staticmethod
    def default_metric() -> Any:
        """Metric to equip the space with if equip is True."""
        return DepthMetric, {"depth": math.inf}

    def core(self, point: Any) -> Any:
        """Return the core ``Y = U^T X V``, shape (..., r, r), of a point or a tangent vector."""
        return to_backend(self.frames.core(as_tensor(point)))

    def embed(self, core: Any) -> Any:
        """Return the matrix ``X = U Y V^T`` of a core, the inverse of `core`."""
        return to_backend(self.frames.embed(as_tensor(core)))

    def belongs(self, point: Any, atol: float = gs.atol) -> Any:
        """Tell whether nothing lies outside the spaces, and the core is invertible."""
        right_shape = self.embedding_space.belongs(point, atol)
        if not gs.all(right_shape):
            return right_shape
        inside = is_zero(self.frames.outside(as_tensor(point)), atol, 2)
        return gs.logical_and(inside, self.cores.belongs(self.core(point), atol))

    def projection(self, point: Any) -> Any:
        """Project the core as `FullRankEndToEnd` does."""
        return self.embed(self.cores.projection(self.core(point)))

    def to_tangent(self, vector: Any, base_point: Any = None) -> Any:
        """Project orthogonally, ``U U^T Z V V^T``: at every point the same."""
        projected = self.frames.embed(self.frames.core(as_tensor(vector)))
        return to_backend(_for_all(projected, base_point).clone())

    def is_tangent(self, vector: Any, base_point: Any = None, atol: float = gs.atol) -> Any:
        """Tell whether no part of a vector lies outside the spaces; the point does not matter."""
        right_shape = self.embedding_space.is_tangent(vector, base_point, atol)
        if not gs.all(right_shape):
            return right_shape
        return is_zero(self.frames.outside(_for_all(as_tensor(vector), base_point)), atol, 2)

    def random_point(self, n_samples: int = 1, bound: float = 1.0) -> Any:
        return self.embed(self.cores.random_point(n_samples, bound))


def _for_all(z: Tensor, base_point: Any) -> Tensor:
    """Return one vector for every point, if points are given."""
    if base_point is None:
        return z
    return z.expand(broadcast_shapes(z.shape, as_tensor(base_point).shape))
