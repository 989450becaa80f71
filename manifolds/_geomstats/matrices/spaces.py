"""Spaces of end-to-end matrices for geomstats: of full rank, and of one fixed rank."""

from __future__ import annotations

from typing import Any

import geomstats.backend as gs  # pyright: ignore[reportMissingImports]
import torch
from geomstats.geometry.base import VectorSpaceOpenSet
from geomstats.geometry.manifold import Manifold
from geomstats.geometry.matrices import Matrices
from torch import Tensor

from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import as_count, as_flag, as_rank, broadcast_shapes
from manifolds._geomstats.arrays import as_samples, as_tensor, batched, is_zero, to_backend
from manifolds._geomstats.matrices.metrics import DepthMetric
from manifolds._geomstats.matrices.tangents import tangent_part


class FullRankEndToEnd(VectorSpaceOpenSet):
    """End-to-end matrices of full rank, an open set of the m x n matrices.

    Square ones have two components, told apart by the sign of the determinant: no geodesic of a
    depth above 1 joins them, so distances and logarithms want ``positive_det=True``. Random points
    have normal entries of standard deviation `bound`.

    Parameters
    ----------
    m, n : int
        Shape of the matrices: width of the output and of the input of the network.
    positive_det : bool
        Keep to the matrices of positive determinant; of square ones only.
    equip : bool
        If True, equip with `DepthMetric` of depth 2.

    Examples
    --------
    >>> from manifolds.geomstats_dln import FullRankEndToEnd
    >>> space = FullRankEndToEnd(3, 3, positive_det=True)
    >>> space.dim, bool(space.belongs(space.random_point()))
    (9, True)
    """

    def __init__(self, m: int, n: int, positive_det: bool = False, equip: bool = True) -> None:
        m, n, equip = as_count(m, "m"), as_count(n, "n"), as_flag(equip, "equip")
        positive_det = as_flag(positive_det, "positive_det")
        if positive_det and m != n:
            raise ValueError(f"positive_det must be False unless m = n, got shape {(m, n)}")
        self.m, self.n, self.rank, self.positive_det = m, n, min(m, n), positive_det
        embedding = Matrices(m, n, equip=False)
        super().__init__(dim=m * n, embedding_space=embedding, equip=equip)

    def new(self, equip: bool = True) -> FullRankEndToEnd:
        """Return a space with the same parameters."""
        return FullRankEndToEnd(self.m, self.n, self.positive_det, equip)

    @staticmethod
    def default_metric() -> Any:
        """Metric to equip the space with if equip is True."""
        return DepthMetric

    def belongs(self, point: Any, atol: float = gs.atol) -> Any:
        """Tell whether the smallest singular value (and the determinant) is above the tolerance."""
        right_shape = self.embedding_space.belongs(point, atol)
        if not gs.all(right_shape):
            return right_shape
        x = as_tensor(point)
        inside = torch.linalg.svdvals(x)[..., -1] > atol
        if self.positive_det:
            inside = inside & (torch.linalg.slogdet(x).sign > 0)
        return to_backend(inside)

    def projection(self, point: Any) -> Any:
        """Return the nearest matrix whose singular values are at least twice the tolerance.

        With ``positive_det`` the smallest singular value of a matrix of negative determinant
        changes its sign.
        """
        x = as_tensor(point)
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        sign = torch.ones_like(s)
        if self.positive_det:
            turned = (torch.linalg.det(u) * torch.linalg.det(vh) < 0).unsqueeze(-1)
            sign = torch.cat((sign[..., :-1], torch.where(turned, -1.0, sign[..., -1:])), -1)
        outside = (s[..., -1:] < 2 * gs.atol) | (sign[..., -1:] < 0)
        lifted = (u * (sign * s.clamp_min(2 * gs.atol)).unsqueeze(-2)) @ vh
        return to_backend(torch.where(outside.unsqueeze(-1), lifted, x))

    def random_point(self, n_samples: int = 1, bound: float = 1.0) -> Any:
        n_samples, bound = as_samples(n_samples, bound)
        size = batched((self.m, self.n), n_samples)
        return self.projection(bound * gs.random.normal(size=size))


class FixedRankEndToEnd(Manifold):
    """End-to-end matrices of one rank r, a manifold of dimension ``r (m + n - r)``.

    The depth of the metric is finite: see `FixedSpacesEndToEnd` for infinite depth. Random points
    are `bound` times the product of an m x r and an r x n normal matrix, over ``sqrt(r)``.
    Parameters other than `rank` as in `FullRankEndToEnd`.

    Examples
    --------
    >>> from manifolds.geomstats_dln import FixedRankEndToEnd
    >>> space = FixedRankEndToEnd(4, 3, rank=2)
    >>> space.dim, bool(space.belongs(space.random_point()))
    (10, True)
    """

    def __init__(self, m: int, n: int, rank: int, equip: bool = True) -> None:
        self.m, self.n = m, n = as_count(m, "m"), as_count(n, "n")
        equip = as_flag(equip, "equip")
        self.rank = r = as_rank(rank, min(m, n), "min(m, n)")
        self.embedding_space = Matrices(m, n, equip=False)
        super().__init__(dim=r * (m + n - r), shape=(m, n), intrinsic=False, equip=equip)

    def new(self, equip: bool = True) -> FixedRankEndToEnd:
        """Return a space with the same parameters."""
        return FixedRankEndToEnd(self.m, self.n, self.rank, equip)

    @staticmethod
    def default_metric() -> Any:
        """Metric to equip the space with if equip is True."""
        return DepthMetric

    def belongs(self, point: Any, atol: float = gs.atol) -> Any:
        """Tell whether r singular values are above the tolerance and the others within it."""
        right_shape = self.embedding_space.belongs(point, atol)
        if not gs.all(right_shape):
            return right_shape
        s = torch.linalg.svdvals(as_tensor(point))
        return to_backend((s > atol).sum(-1) == self.rank)

    def projection(self, point: Any) -> Any:
        """Return the nearest matrix of rank r with singular values at least twice the tolerance."""
        p = EndToEnd.of(as_tensor(point), 1.0, rank=self.rank)
        return to_backend(p.replace(s=p.s.clamp_min(2 * gs.atol), check=False).matrix)

    def to_tangent(self, vector: Any, base_point: Any) -> Any:
        return to_backend(self._tangent(vector, base_point)[1])

    def is_tangent(self, vector: Any, base_point: Any, atol: float = gs.atol) -> Any:
        right_shape = self.embedding_space.is_tangent(vector, base_point, atol)
        if not gs.all(right_shape):
            return right_shape
        z, inside = self._tangent(vector, base_point)
        return is_zero(z - inside, atol, 2)

    def random_point(self, n_samples: int = 1, bound: float = 1.0) -> Any:
        n_samples, bound = as_samples(n_samples, bound)
        left = gs.random.normal(size=batched((self.m, self.rank), n_samples))
        right = gs.random.normal(size=batched((self.rank, self.n), n_samples))
        return self.projection(bound * gs.matmul(left, right) / self.rank**0.5)

    def _tangent(self, vector: Any, base_point: Any) -> tuple[Tensor, Tensor]:
        """Return vectors, one for every point, and their projections on the tangent spaces."""
        x = as_tensor(base_point)
        z = as_tensor(vector, like=x)
        z = z.expand(broadcast_shapes(z.shape, x.shape)).clone()
        return z, tangent_part(EndToEnd.of(x, 1.0, rank=self.rank), z)
