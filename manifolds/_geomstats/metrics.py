"""The metric of depth N on spaces of end-to-end matrices, for geomstats."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.connection import connection
from dln_geometry.geometry.curvature import (
    riemann_curvature,
    scalar_curvature,
    sectional_curvature,
)
from dln_geometry.geometry.geodesics import geodesic, parallel_transport
from dln_geometry.geometry.logarithm import distance, logarithm
from dln_geometry.geometry.metric import cometric, inner, metric
from dln_geometry.geometry.point import EndToEnd
from manifolds._geomstats.arrays import as_tensor, to_backend
from manifolds._geomstats.coordinates import DepthTensors

__all__ = ["DepthMetric"]


class DepthMetric(DepthTensors):
    """The metric ``g^N(Z, Z) = <Z, A^{-1} Z>`` of a deep linear network of depth N.

    ``A(G) = sum_p (X X^T)^{(N-p)/N} G (X^T X)^{(p-1)/N}``. Everything is in closed form but
    geodesics, which are integrated (flat where no singular vector turns), and logarithms, found
    by shooting; neither they nor curvatures are differentiable by autograd. Matrices of metric
    and cometric, Christoffel symbols and curvature tensors are in the coordinates of the
    flattened matrix, row by row; at fixed rank they are those of the tangent space, extended by
    zero to what is orthogonal to it.

    Parameters
    ----------
    space : Manifold
        `FullRankEndToEnd`, `FixedRankEndToEnd`, or any space of m x n matrices of full rank.
    depth : float
        Real depth N >= 1, or ``math.inf`` (square matrices of full rank).
    normalized : bool, optional
        Divide the cometric by N; `None` does so at infinite depth only.
    rtol : float, optional
        Relative tolerance of geodesics.

    Raises
    ------
    ValueError
        If the depth is below 1; if it is 1 at fixed rank, where geodesics are straight lines that
        leave the space; if it is infinite and the matrices are not square or not of full rank,
        where most tangent vectors have infinite length.

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
        p, a, b = self._at(base_point, cotangent_vec_a, cotangent_vec_b)
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
        p, g = self._at(base_point, cotangent_vec)
        return to_backend(cometric(p, g))

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
        return to_backend(metric(p, z))

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
        v = y[..., 1, :, :]
        gamma = connection(self._point(y[..., 0, :, :]), v, v)
        return to_backend(torch.stack((v, -gamma), -3))

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
        return to_backend(geodesic(p, z, 1.0, rtol=self.rtol).matrix)

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
            If square matrices of full rank have determinants of opposite signs (depth above 1).
        GeodesicError
            If no geodesic was found.
        """
        p, q = self._point(base_point), self._point(point)
        return to_backend(logarithm(p, q, rtol=self.rtol))

    def dist(self, point_a: Any, point_b: Any) -> Any:
        """Return the length of the geodesic of `log`.

        Parameters
        ----------
        point_a, point_b : array-like, shape=[..., m, n]

        Returns
        -------
        dist : array-like, shape=[...,]
        """
        p, q = self._point(point_a), self._point(point_b)
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
        return to_backend(parallel_transport(p, z, w, rtol=self.rtol)[1])

    def curvature(
        self, tangent_vec_a: Any, tangent_vec_b: Any, tangent_vec_c: Any, base_point: Any = None
    ) -> Any:
        """Return ``R(A, B) C``, with the sign of which ``<R(A, B) B, A>`` is that of the sphere.

        Parameters
        ----------
        tangent_vec_a, tangent_vec_b, tangent_vec_c : array-like, shape=[..., m, n]
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        curvature : array-like, shape=[..., m, n]
        """
        p, a, b, c = self._at(base_point, tangent_vec_a, tangent_vec_b, tangent_vec_c)
        return to_backend(self._curvature(p, a, b, c).unflatten(-1, p.shape))

    def sectional_curvature(
        self, tangent_vec_a: Any, tangent_vec_b: Any, base_point: Any = None
    ) -> Any:
        """Return the sectional curvature of the plane of two tangent vectors.

        Parameters
        ----------
        tangent_vec_a, tangent_vec_b : array-like, shape=[..., m, n]
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        sectional_curvature : array-like, shape=[...,]
        """
        return to_backend(sectional_curvature(*self._at(base_point, tangent_vec_a, tangent_vec_b)))

    def scalar_curvature(self, base_point: Any = None) -> Any:
        """Return the scalar curvature.

        Parameters
        ----------
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        scalar_curvature : array-like, shape=[...,]
        """
        return to_backend(scalar_curvature(self._point(base_point)))

    def _curvature(self, p: EndToEnd, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Return ``R(A, B) C`` flattened: its products with the covectors of the entries."""
        wide = self._wide(p)
        raised = cometric(
            wide, torch.eye(math.prod(p.shape), dtype=p.s.dtype).unflatten(-1, p.shape)
        )
        a, b, c = (x.unsqueeze(-3) for x in (a, b, c))
        return riemann_curvature(wide, a, b, c, raised)

    def _geodesic_ivp(self, initial_point: Any, initial_tangent_vec: Any) -> Any:
        p, z = self._at(initial_point, initial_tangent_vec)

        def path(t: Any) -> Any:
            times = torch.atleast_1d(as_tensor(t)).double()
            return to_backend(geodesic(p, z, times, rtol=self.rtol).matrix.movedim(0, -3))

        return path
