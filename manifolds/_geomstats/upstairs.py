"""The metric of balanced networks for geomstats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geomstats.backend as gs  # pyright: ignore[reportMissingImports]
import torch
from geomstats.geometry.riemannian_metric import RiemannianMetric
from torch import Tensor

from dln_geometry.geometry.geodesics import GeodesicError
from dln_geometry.geometry.network_geodesics import (
    balanced_geodesic,
    balanced_logarithm,
    balanced_transport,
)
from dln_geometry.geometry.submersion import (
    horizontal_frame,
    second_fundamental_form,
    vertical_frame,
)
from manifolds._geomstats.arrays import as_layers, as_tensor, to_backend, to_padded
from manifolds._geomstats.layers import frobenius

__all__ = ["BalancedMetric"]


class BalancedMetric(RiemannianMetric):
    """The metric that the Frobenius norm of the layers induces on the balanced networks.

    Geodesics solve ``W'' = II(W', W')``, with the second fundamental form in closed form;
    logarithms by shooting. The curvature is that of the Gauss equation.

    Parameters
    ----------
    space : BalancedNetworks
    rtol : float
        Relative tolerance of the geodesics.

    References
    ----------
    Menon, arXiv 2411.09004.
    """

    def __init__(self, space: Any, rtol: float = 1e-10) -> None:
        super().__init__(space)
        self.rtol = rtol

    def inner_product(self, tangent_vec_a: Any, tangent_vec_b: Any, base_point: Any = None) -> Any:
        """Return ``sum_p <A_p, B_p>``.

        Parameters
        ----------
        tangent_vec_a, tangent_vec_b : array-like, shape=[..., N, D, D]
        base_point : array-like, shape=[..., N, D, D], optional
            Only its leading dimensions matter.

        Returns
        -------
        inner_product : array-like, shape=[...,]
        """
        return frobenius(tangent_vec_a, tangent_vec_b, base_point)

    def second_fundamental_form(
        self, tangent_vec_a: Any, tangent_vec_b: Any, base_point: Any
    ) -> Any:
        """Return the normal part of the derivative of one tangent field along another.

        Parameters
        ----------
        tangent_vec_a, tangent_vec_b : array-like, shape=[..., N, D, D]
        base_point : array-like, shape=[..., N, D, D]

        Returns
        -------
        normal_vec : array-like, shape=[..., N, D, D]
        """
        x, a, b = self._tensors(base_point, tangent_vec_a, tangent_vec_b)
        return to_backend(self._bend(x, a, b))

    def geodesic_equation(self, state: Any) -> Any:
        """Return velocity and acceleration, ``(W', II(W', W'))``.

        Parameters
        ----------
        state : array-like, shape=[..., 2, N, D, D]
            Position and velocity.

        Returns
        -------
        field : array-like, shape=[..., 2, N, D, D]
        """
        y = as_tensor(state)
        x, v = y[..., 0, :, :, :], y[..., 1, :, :, :]
        return to_backend(torch.stack((v, self._bend(x, v, v)), -4))

    def exp(self, tangent_vec: Any, base_point: Any) -> Any:
        """Return the end of the geodesic that starts with a velocity.

        Parameters
        ----------
        tangent_vec : array-like, shape=[..., N, D, D]
        base_point : array-like, shape=[..., N, D, D]

        Returns
        -------
        exp : array-like, shape=[..., N, D, D]
        """
        x, v = self._tensors(base_point, tangent_vec)
        return self._padded(balanced_geodesic(self._layers(x), self._layers(v), rtol=self._rtol(x)))

    def log(self, point: Any, base_point: Any) -> Any:
        """Return the velocity of the geodesic from one network to another, by shooting.

        Parameters
        ----------
        point : array-like, shape=[..., N, D, D]
        base_point : array-like, shape=[..., N, D, D]

        Returns
        -------
        log : array-like, shape=[..., N, D, D]

        Raises
        ------
        GeodesicError
            If the shooting does not arrive: the balanced networks have components which no
            geodesic joins, and a geodesic may leave them through a network of smaller rank.
        """
        x, y = self._tensors(base_point, point)
        try:
            found = balanced_logarithm(self._layers(x), self._layers(y), rtol=self._rtol(x))
        except (GeodesicError, ValueError) as reason:
            raise GeodesicError(
                "point must be joined to base_point by a geodesic within the balanced networks: "
                f"{reason}"
            ) from reason
        return self._padded(found)

    def parallel_transport(
        self, tangent_vec: Any, base_point: Any, direction: Any = None, end_point: Any = None
    ) -> Any:
        """Transport along the geodesic of a direction, or to an end point: ``V' = II(W', V)``.

        Parameters
        ----------
        tangent_vec : array-like, shape=[..., N, D, D]
        base_point : array-like, shape=[..., N, D, D]
        direction : array-like, shape=[..., N, D, D], optional
            Initial velocity; the geodesic runs for unit time.
        end_point : array-like, shape=[..., N, D, D], optional
            Used if no direction is given.

        Returns
        -------
        transported : array-like, shape=[..., N, D, D]

        Raises
        ------
        ValueError
            If neither a direction nor an end point is given.
        """
        if direction is None:
            if end_point is None:
                raise ValueError("direction or end_point must be given, got neither")
            direction = self.log(end_point, base_point)
        x, v, w = (self._layers(a) for a in self._tensors(base_point, direction, tangent_vec))
        return self._padded(balanced_transport(x, v, w, rtol=self._rtol(x[0]))[1])

    def curvature(
        self, tangent_vec_a: Any, tangent_vec_b: Any, tangent_vec_c: Any, base_point: Any = None
    ) -> Any:
        """Return ``R(A, B) C`` by the Gauss equation, with the sign of `RiemannianMetric`.

        ``<R(A, B) C, D> = <II(A, D), II(B, C)> - <II(A, C), II(B, D)>``, so that
        ``<R(A, B) B, A>`` has the sign of the sectional curvature.

        Parameters
        ----------
        tangent_vec_a, tangent_vec_b, tangent_vec_c : array-like, shape=[..., N, D, D]
        base_point : array-like, shape=[..., N, D, D]

        Returns
        -------
        curvature : array-like, shape=[..., N, D, D]
        """
        x, a, b, c = self._tensors(base_point, tangent_vec_a, tangent_vec_b, tangent_vec_c)
        frame = self._frame(x)
        along = frame.reshape(*frame.shape[:-1], *x.shape[-3:])
        wide = x.unsqueeze(-4)
        bc, ac = self._bend(x, b, c).flatten(-3), self._bend(x, a, c).flatten(-3)
        ad = self._bend(wide, a.unsqueeze(-4), along).flatten(-3)
        bd = self._bend(wide, b.unsqueeze(-4), along).flatten(-3)
        coefficients = torch.einsum("...km,...m->...k", ad, bc)
        coefficients = coefficients - torch.einsum("...km,...m->...k", bd, ac)
        return to_backend(torch.einsum("...k,...km->...m", coefficients, frame).reshape(x.shape))

    def random_unit_tangent_vec(self, base_point: Any = None, n_vectors: int = 1) -> Any:
        """Draw unit tangent vectors of uniform direction, by geomstats' generator.

        (What geomstats inherits draws vectors that need not be tangent.)

        Parameters
        ----------
        base_point : array-like, shape=[..., N, D, D]
        n_vectors : int
            Number of vectors, at one point if more than 1; no dimension of their own if 1.

        Returns
        -------
        normalized_vector : array-like, shape=[..., n_vectors, N, D, D]

        Raises
        ------
        ValueError
            If several vectors are asked of several points.
        """
        x, count = as_tensor(base_point), () if n_vectors == 1 else (n_vectors,)
        if count and x.ndim > 3:
            raise ValueError(
                f"n_vectors must be 1 at several points, got {n_vectors} at points of shape "
                f"{tuple(x.shape[:-3])}"
            )
        normal = gs.random.normal(size=(*count, *x.shape))
        z = as_tensor(self._space.to_tangent(normal, base_point), like=x)
        return to_backend(z / z.flatten(-3).norm(dim=-1)[..., None, None, None])

    def _geodesic_ivp(self, initial_point: Any, initial_tangent_vec: Any) -> Any:
        x, v = self._tensors(initial_point, initial_tangent_vec)
        ends = self._layers(x), self._layers(v)

        def path(t: Any) -> Any:
            times = torch.atleast_1d(as_tensor(t, like=x))
            layers = balanced_geodesic(*ends, times, rtol=self._rtol(x))
            # geomstats has the times last of the leading dimensions.
            return to_backend(to_padded(layers, x.shape[-1]).movedim(0, -4))

        return path

    def _tensors(self, *arrays: Any) -> list[Tensor]:
        first = as_tensor(arrays[0])
        rest = [as_tensor(a, like=first) for a in arrays[1:]]
        return list(torch.broadcast_tensors(first, *rest))

    def _layers(self, x: Tensor) -> tuple[Tensor, ...]:
        return as_layers(x, self._space.widths)

    def _padded(self, layers: Sequence[Tensor]) -> Any:
        return to_backend(to_padded(layers, self._space.shape[-1]))

    def _rtol(self, x: Tensor) -> float:
        """Return the tolerance, or what the precision of an array allows."""
        return max(self.rtol, torch.finfo(x.dtype).eps ** 0.75)

    def _frame(self, x: Tensor) -> Tensor:
        """Return an orthonormal frame of the tangent space, shape (..., dim, N D D)."""
        layers = self._layers(x)
        parts = zip(horizontal_frame(layers), vertical_frame(layers), strict=True)
        return to_padded([torch.cat(p, -3) for p in parts], x.shape[-1]).flatten(-3)

    def _bend(self, x: Tensor, v: Tensor, w: Tensor) -> Tensor:
        x = x.expand(torch.broadcast_shapes(x.shape, v.shape, w.shape))
        normal = second_fundamental_form(self._layers(x), self._layers(v), self._layers(w))
        return to_padded(normal, x.shape[-1])
