"""The metric of depth N on spaces of end-to-end matrices, for geomstats."""

from __future__ import annotations

from typing import Any

import geomstats.backend as gs  # pyright: ignore[reportMissingImports]
import torch

from dln_geometry.geometry.geodesics import distance, geodesic, logarithm, parallel_transport
from dln_geometry.geometry.metric import cometric, cometric_sqrt, connection, inner, metric
from manifolds._geomstats.arrays import as_tensor, to_backend
from manifolds._geomstats.curvatures import DepthCurvature

__all__ = ["DepthMetric"]


class DepthMetric(DepthCurvature):
    """The metric ``g^N(Z, Z) = <Z, A^{-1} Z>`` of a deep linear network of depth N.

    ``A(G) = sum_p (X X^T)^{(N-p)/N} G (X^T X)^{(p-1)/N}``. Everything is in closed form but
    geodesics, which are integrated (flat where no singular vector turns), and logarithms, found
    by shooting. Of geodesics, logarithms and curvatures autograd has no derivatives; `dist` has its
    first one. Matrices of metric and cometric, Christoffel symbols and curvature tensors are in the
    coordinates of the flattened matrix, row by row; at fixed rank and between fixed spaces they are
    those of the tangent space, extended by zero to what is orthogonal to it.

    At depth 1 it is the Frobenius metric: flat on matrices of full rank, with straight geodesics;
    below full rank the induced metric of an embedded submanifold. At infinite depth it is the
    limit of ``N g^N``, and finite only where the column and row spaces stay as they are.

    Parameters
    ----------
    space : Manifold
        `FullRankEndToEnd`, `FixedRankEndToEnd`, `FixedSpacesEndToEnd`, or any space of m x n
        matrices of full rank.
    depth : float
        Real depth N >= 1, or ``math.inf`` (`FixedSpacesEndToEnd`, or square matrices of full rank).
    normalized : bool, optional
        Divide the cometric by N; `None` does so at infinite depth only.
    rtol : float, optional
        Relative tolerance of geodesics.

    Raises
    ------
    ValueError
        If the depth is below 1, or infinite on a space where most tangent vectors have infinite
        length.

    References
    ----------
    Menon, arXiv 2411.09004; Arora, Cohen, Hazan 2018; Cohen, Menon, Veraszto, arXiv 2210.12497.
    """

    def inner_product(self, tangent_vec_a: Any, tangent_vec_b: Any, base_point: Any = None) -> Any:
        """Return ``<A, A_X^{-1} B>``.

        Parameters
        ----------
        tangent_vec_a, tangent_vec_b : array-like, shape=[..., m, n]
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        inner_product : array-like, shape=[...,]
        """
        p, a, b = self._at(base_point, tangent_vec_a, tangent_vec_b)
        return to_backend(inner(p, a, b))

    def inner_coproduct(
        self, cotangent_vec_a: Any, cotangent_vec_b: Any, base_point: Any = None
    ) -> Any:
        """Return ``<A, A_X B>``.

        Parameters
        ----------
        cotangent_vec_a, cotangent_vec_b : array-like, shape=[..., m, n]
            Covectors, such as Euclidean gradients.
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        inner_coproduct : array-like, shape=[...,]
        """
        p, a, b = self._at_covectors(base_point, cotangent_vec_a, cotangent_vec_b)
        return to_backend((a * cometric(p, b)).sum((-2, -1)))

    def sharp(self, cotangent_vec: Any, base_point: Any) -> Any:
        """Return the tangent vector of a covector: a Riemannian gradient of a Euclidean one.

        Parameters
        ----------
        cotangent_vec : array-like, shape=[..., m, n]
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        tangent_vec : array-like, shape=[..., m, n]
        """
        p, g = self._at_covectors(base_point, cotangent_vec)
        return self._matrix(cometric(p, g))

    def flat(self, tangent_vec: Any, base_point: Any) -> Any:
        """Return the covector of a tangent vector, the inverse of `sharp`.

        Parameters
        ----------
        tangent_vec : array-like, shape=[..., m, n]
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        cotangent_vec : array-like, shape=[..., m, n]
        """
        p, z = self._at(base_point, tangent_vec)
        return self._matrix(metric(p, z))

    def random_unit_tangent_vec(self, base_point: Any = None, n_vectors: int = 1) -> Any:
        """Draw unit tangent vectors of uniform direction in the metric, by geomstats' generator.

        (What geomstats inherits draws vectors that need not be tangent.)

        Parameters
        ----------
        base_point : array-like, shape=[..., m, n]
        n_vectors : int
            Number of vectors, at one point if more than 1; no dimension of their own if 1.

        Returns
        -------
        normalized_vector : array-like, shape=[..., n_vectors, m, n]

        Raises
        ------
        ValueError
            If several vectors are asked of several points.
        """
        p, count = self._point(base_point), () if n_vectors == 1 else (n_vectors,)
        if count and p.s.ndim > 1:
            raise ValueError(
                f"n_vectors must be 1 at several points, got {n_vectors} at points of shape "
                f"{tuple(p.s.shape[:-1])}"
            )
        normal = gs.random.normal(size=(*count, *p.s.shape[:-1], *p.shape))
        z = cometric_sqrt(p, as_tensor(normal, like=p.s))
        return self._matrix(z / inner(p, z, z).sqrt()[..., None, None])

    def geodesic_equation(self, state: Any) -> Any:
        """Return velocity and acceleration, ``(X', -Gamma(X', X'))``.

        Parameters
        ----------
        state : array-like, shape=[..., 2, m, n]
            Position and velocity.

        Returns
        -------
        field : array-like, shape=[..., 2, m, n]
        """
        y = as_tensor(state)
        p, v = self._at(y[..., 0, :, :], y[..., 1, :, :])
        return self._matrix(torch.stack((v, -connection(p, v, v)), -3))

    def exp(self, tangent_vec: Any, base_point: Any) -> Any:
        """Return the end of the geodesic that starts with a velocity.

        Parameters
        ----------
        tangent_vec : array-like, shape=[..., m, n]
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        exp : array-like, shape=[..., m, n]

        Raises
        ------
        GeodesicError
            If the geodesic meets matrices of lower rank, where it ends.
        """
        p, z = self._at(base_point, tangent_vec)
        return self._matrix(geodesic(p, z, 1.0, rtol=self.rtol).matrix)

    def log(self, point: Any, base_point: Any) -> Any:
        """Return the velocity of the geodesic from one matrix to another.

        Parameters
        ----------
        point : array-like, shape=[..., m, n]
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        log : array-like, shape=[..., m, n]

        Raises
        ------
        ValueError
            If square matrices of full rank, or cores, have determinants of opposite signs (depth
            above 1).
        GeodesicError
            If no geodesic was found.
        """
        p, q = self._point(base_point), self._point(point, "point")
        return self._matrix(logarithm(p, q, rtol=self.rtol))

    def dist(self, point_a: Any, point_b: Any) -> Any:
        """Return the length of the geodesic of `log`.

        Parameters
        ----------
        point_a, point_b : array-like, shape=[..., m, n]

        Returns
        -------
        dist : array-like, shape=[...,]
        """
        p, q = self._point(point_a, "point_a"), self._point(point_b, "point_b")
        return to_backend(distance(p, q, rtol=self.rtol))

    def squared_dist(self, point_a: Any, point_b: Any) -> Any:
        """Return the square of `dist`.

        Parameters
        ----------
        point_a, point_b : array-like, shape=[..., m, n]

        Returns
        -------
        squared_dist : array-like, shape=[...,]
        """
        return self.dist(point_a, point_b) ** 2

    def parallel_transport(
        self, tangent_vec: Any, base_point: Any, direction: Any = None, end_point: Any = None
    ) -> Any:
        """Transport along the geodesic of a direction, or to an end point.

        Parameters
        ----------
        tangent_vec : array-like, shape=[..., m, n]
        base_point : array-like, shape=[..., m, n]
        direction : array-like, shape=[..., m, n], optional
            Initial velocity; the geodesic runs for unit time.
        end_point : array-like, shape=[..., m, n], optional
            Used if no direction is given.

        Returns
        -------
        transported : array-like, shape=[..., m, n]

        Raises
        ------
        ValueError
            If neither a direction nor an end point is given.
        """
        if direction is None:
            if end_point is None:
                raise ValueError("direction or end_point must be given, got neither")
            direction = self.log(end_point, base_point)
        p, z, w = self._at(base_point, direction, tangent_vec)
        return self._matrix(parallel_transport(p, z, w, rtol=self.rtol)[1])

    def _geodesic_ivp(self, initial_point: Any, initial_tangent_vec: Any) -> Any:
        p, z = self._at(initial_point, initial_tangent_vec)

        def path(t: Any) -> Any:
            times = torch.atleast_1d(as_tensor(t)).double()
            return self._matrix(geodesic(p, z, times, rtol=self.rtol).matrix.movedim(0, -3))

        return path
