"""The metric of depth N on spaces of end-to-end matrices, for geomstats."""

from __future__ import annotations

from typing import Any

import torch

from dln_geometry.geometry.geodesics import distance, geodesic, logarithm, parallel_transport
from dln_geometry.geometry.metric import cometric, cometric_sqrt, connection, inner, metric
from manifolds._geomstats.arrays import as_tensor, direction_of, normal_vectors, to_backend
from manifolds._geomstats.matrices.curvatures import DepthCurvature


class DepthMetric(DepthCurvature):
    """The metric ``g^N(Z, Z) = <Z, A^{-1} Z>`` of a deep linear network of depth N.

    ``A(G) = sum_p (X X^T)^{(N-p)/N} G (X^T X)^{(p-1)/N}``. Everything is in closed form but
    geodesics, which are integrated, and logarithms, found by shooting. Autograd differentiates
    `dist`, `exp`, `log` and geodesics once; transport and curvatures refuse gradients. Metric and
    cometric matrices, Christoffel symbols and curvature tensors are in the coordinates of the
    flattened matrix, row by row; at fixed rank and between fixed spaces they are zero outside the
    tangent space.

    At depth 1 it is the Frobenius metric, flat at full rank. At infinite depth it is the limit of
    ``N g^N``, and finite only for fixed column and row spaces.

    Parameters
    ----------
    space : Manifold
        `FullRankEndToEnd`, `FixedRankEndToEnd`, `FixedSpacesEndToEnd`, or any space of m x n
        matrices of full rank.
    depth : float
        Real depth N >= 1, or ``math.inf`` on `FixedSpacesEndToEnd` and square matrices of full
        rank; elsewhere most tangent vectors have infinite length then, a ValueError.
    normalized : bool, optional
        Divide the cometric by N; `None` does so at infinite depth only.
    rtol : float, optional
        Relative tolerance of geodesics.


    References
    ----------
    Menon, arXiv 2411.09004; Arora, Cohen, Hazan 2018; Cohen, Menon, Veraszto, arXiv 2210.12497.

    Examples
    --------
    >>> import geomstats.backend as gs
    >>> from manifolds.geomstats_dln import DepthMetric, FullRankEndToEnd
    >>> space = FullRankEndToEnd(2, 2, positive_det=True)
    >>> _ = space.equip_with_metric(DepthMetric, depth=3)
    >>> round(float(space.metric.dist(gs.eye(2), 8.0 * gs.eye(2))), 4)  # sqrt(2 N) (8^{1/N} - 1)
    2.4495
    """

    def inner_product(self, tangent_vec_a: Any, tangent_vec_b: Any, base_point: Any = None) -> Any:
        p, a, b = self._at(base_point, tangent_vec_a, tangent_vec_b)
        return to_backend(inner(p, a, b))

    def inner_coproduct(
        self, cotangent_vec_a: Any, cotangent_vec_b: Any, base_point: Any = None
    ) -> Any:
        """Return ``<A, A_X B>`` of covectors, such as Euclidean gradients."""
        p, a, b = self._at_covectors(base_point, cotangent_vec_a, cotangent_vec_b)
        return to_backend((a * cometric(p, b)).sum((-2, -1)))

    def sharp(self, cotangent_vec: Any, base_point: Any) -> Any:
        """Return the tangent vector of a covector: a Riemannian gradient of a Euclidean one."""
        p, g = self._at_covectors(base_point, cotangent_vec)
        return self._matrix(cometric(p, g))

    def flat(self, tangent_vec: Any, base_point: Any) -> Any:
        """Return the covector of a tangent vector."""
        p, z = self._at(base_point, tangent_vec)
        return self._matrix(metric(p, z))

    def random_unit_tangent_vec(self, base_point: Any = None, n_vectors: int = 1) -> Any:
        """Draw unit tangent vectors, uniform in the metric; those of geomstats are not tangent."""
        p = self._point(base_point)
        normal = normal_vectors(n_vectors, p.batch_shape, p.shape)
        z = cometric_sqrt(p, as_tensor(normal, like=p.s))
        return self._matrix(z / inner(p, z, z).sqrt()[..., None, None])

    def geodesic_equation(self, state: Any) -> Any:
        """Return velocity and acceleration, ``(X', -Gamma(X', X'))``, shape (..., 2, m, n)."""
        y = as_tensor(state)
        p, v = self._at(y[..., 0, :, :], y[..., 1, :, :])
        return self._matrix(torch.stack((v, -connection(p, v, v)), -3))

    def exp(self, tangent_vec: Any, base_point: Any) -> Any:
        """Return the end of a geodesic; `GeodesicError` if it meets matrices of lower rank."""
        p, z = self._at(base_point, tangent_vec)
        return self._matrix(geodesic(p, z, 1.0, rtol=self.rtol).matrix)

    def log(self, point: Any, base_point: Any) -> Any:
        """Return the velocity of the geodesic from one matrix to another.

        A ValueError says that square matrices of full rank, or cores, have determinants of opposite
        signs (at depth above 1), a GeodesicError that shooting failed.
        """
        p, q = self._point(base_point), self._point(point, "point")
        return self._matrix(logarithm(p, q, rtol=self.rtol))

    def dist(self, point_a: Any, point_b: Any) -> Any:
        """Return the length of the geodesic of `log`; errors as there."""
        p, q = self._point(point_a, "point_a"), self._point(point_b, "point_b")
        return to_backend(distance(p, q, rtol=self.rtol))

    def squared_dist(self, point_a: Any, point_b: Any) -> Any:
        return self.dist(point_a, point_b) ** 2

    def parallel_transport(
        self, tangent_vec: Any, base_point: Any, direction: Any = None, end_point: Any = None
    ) -> Any:
        direction = direction_of(self, base_point, direction, end_point)
        p, z, w = self._at(base_point, direction, tangent_vec)
        return self._matrix(parallel_transport(p, z, w, rtol=self.rtol)[1])

    def _geodesic_ivp(self, initial_point: Any, initial_tangent_vec: Any) -> Any:
        p, z = self._at(initial_point, initial_tangent_vec)

        def path(t: Any) -> Any:
            times = torch.atleast_1d(as_tensor(t)).double()
            return self._matrix(geodesic(p, z, times, rtol=self.rtol).matrix.movedim(0, -3))

        return path
