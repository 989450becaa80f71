"""The metric of balanced networks for geomstats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from geomstats.geometry.riemannian_metric import RiemannianMetric
from torch import Tensor

from dln_geometry.geometry import network_geodesics, submersion
from dln_geometry.geometry.geodesics import GeodesicError
from dln_geometry.geometry.points import Network
from manifolds._geomstats.arrays import (
    as_inexact,
    as_layers,
    as_tensor,
    direction_of,
    normal_vectors,
    to_backend,
    to_padded,
)
from manifolds._geomstats.networks.layers import frobenius


class BalancedMetric(RiemannianMetric):
    """The metric that the Frobenius norm of the layers induces on the balanced networks.

    Geodesics solve ``W'' = II(W', W')`` with the relative tolerance `rtol`; the second fundamental
    form is in closed form, logarithms are found by shooting.

    References
    ----------
    Menon, arXiv 2411.09004.

    Examples
    --------
    >>> from manifolds.geomstats_dln import BalancedNetworks
    >>> networks = BalancedNetworks((2, 3, 2))
    >>> point = networks.random_point()
    >>> vector = networks.to_tangent(0.1 * point, point)
    >>> moved = networks.metric.exp(vector, point)
    >>> bool(networks.belongs(moved))
    True
    """

    def __init__(self, space: Any, rtol: float = 1e-10) -> None:
        super().__init__(space)
        self.rtol = as_inexact(rtol)

    def inner_product(self, tangent_vec_a: Any, tangent_vec_b: Any, base_point: Any = None) -> Any:
        """Return ``sum_p <A_p, B_p>``; only the leading dimensions of the point matter."""
        return frobenius(tangent_vec_a, tangent_vec_b, base_point)

    def second_fundamental_form(
        self, tangent_vec_a: Any, tangent_vec_b: Any, base_point: Any
    ) -> Any:
        """Return the normal part of the derivative of one tangent field along another."""
        x, a, b = self._tensors(base_point, tangent_vec_a, tangent_vec_b)
        return to_backend(self._bend(self._network(x), a, b))

    def geodesic_equation(self, state: Any) -> Any:
        """Return velocity and acceleration, ``(W', II(W', W'))``, shape (..., 2, N, D, D)."""
        y = as_tensor(state)
        x, v = y[..., 0, :, :, :], y[..., 1, :, :, :]
        return to_backend(torch.stack((v, self._bend(self._network(x), v, v)), -4))

    def exp(self, tangent_vec: Any, base_point: Any) -> Any:
        x, v = map(self._layers, self._tensors(base_point, tangent_vec))
        return self._padded(network_geodesics.balanced_geodesic(x, v, rtol=self._rtol(x[0])))

    def log(self, point: Any, base_point: Any) -> Any:
        """Return the velocity of the geodesic from one network to another, by shooting.

        A GeodesicError says that no shot arrived: no geodesic joins two components, and a geodesic
        may leave the balanced networks through one of smaller rank.
        """
        x, y = map(self._layers, self._tensors(base_point, point))
        try:
            found = network_geodesics.balanced_logarithm(x, y, rtol=self._rtol(x[0]))
        except (GeodesicError, ValueError) as reason:
            raise GeodesicError(
                "point must be joined to base_point by a geodesic within the balanced networks: "
                f"{reason}"
            ) from reason
        return self._padded(found)

    def parallel_transport(
        self, tangent_vec: Any, base_point: Any, direction: Any = None, end_point: Any = None
    ) -> Any:
        direction = direction_of(self, base_point, direction, end_point)
        x, v, w = map(self._layers, self._tensors(base_point, direction, tangent_vec))
        return self._padded(network_geodesics.balanced_transport(x, v, w, rtol=self._rtol(x[0]))[1])

    def curvature(
        self, tangent_vec_a: Any, tangent_vec_b: Any, tangent_vec_c: Any, base_point: Any = None
    ) -> Any:
        """Return ``R(A, B) C`` by the Gauss equation, with the sign of `RiemannianMetric`.

        ``<R(A, B) C, D> = <II(A, D), II(B, C)> - <II(A, C), II(B, D)>``.
        """
        x, a, b, c = self._tensors(base_point, tangent_vec_a, tangent_vec_b, tangent_vec_c)
        network, wide = self._network(x), self._network(x.unsqueeze(-4))
        bases = submersion.horizontal_frame(network), submersion.vertical_frame(network)
        along = to_padded([torch.cat(p, -3) for p in zip(*bases, strict=True)], x.shape[-1])
        bc, ac = (self._bend(network, v, c).flatten(-3) for v in (b, a))
        ad, bd = (self._bend(wide, v.unsqueeze(-4), along).flatten(-3) for v in (a, b))
        parts = [torch.einsum("...km,...m->...k", *pair) for pair in ((ad, bc), (bd, ac))]
        return to_backend(torch.einsum("...k,...kpde->...pde", parts[0] - parts[1], along))

    def random_unit_tangent_vec(self, base_point: Any = None, n_vectors: int = 1) -> Any:
        """Draw unit tangent vectors of uniform direction."""
        x = as_tensor(base_point)
        normal = normal_vectors(n_vectors, x.shape[:-3], x.shape[-3:])
        z = as_tensor(self._space.to_tangent(normal, base_point), like=x)
        return to_backend(z / z.flatten(-3).norm(dim=-1)[..., None, None, None])

    def _geodesic_ivp(self, initial_point: Any, initial_tangent_vec: Any) -> Any:
        x, v = self._tensors(initial_point, initial_tangent_vec)
        start, velocity = self._network(x), self._layers(v)

        def path(t: Any) -> Any:
            times = torch.atleast_1d(as_tensor(t, like=x))
            layers = network_geodesics.balanced_geodesic(start, velocity, times, rtol=self._rtol(x))
            # geomstats wants the times last of the leading dimensions.
            return to_backend(to_padded(layers, x.shape[-1]).movedim(0, -4))

        return path

    def _tensors(self, *arrays: Any) -> list[Tensor]:
        first = as_tensor(arrays[0])
        rest = [as_tensor(a, like=first) for a in arrays[1:]]
        return list(torch.broadcast_tensors(first, *rest))

    def _layers(self, x: Tensor) -> tuple[Tensor, ...]:
        return as_layers(x, self._space.widths)

    def _network(self, x: Tensor) -> Network:
        return Network.from_layers(self._layers(x))

    def _padded(self, layers: Sequence[Tensor]) -> Any:
        return to_backend(to_padded(layers, self._space.shape[-1]))

    def _rtol(self, x: Tensor) -> float:
        """Return the tolerance, but at least what the precision of an array allows."""
        return max(self.rtol, torch.finfo(x.dtype).eps ** 0.75)

    def _bend(self, network: Network, v: Tensor, w: Tensor) -> Tensor:
        """Return ``II(v, w)`` as one tensor."""
        normal = submersion.second_fundamental_form(network, self._layers(v), self._layers(w))
        return to_padded(normal, self._space.shape[-1])
