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
from dln_geometry.geometry.points import Network
from dln_geometry.geometry.submersion import (
    horizontal_frame,
    second_fundamental_form,
    vertical_frame,
)
from manifolds._geomstats.arrays import (
    as_layers,
    as_tensor,
    batched,
    check_one_point,
    direction_of,
    to_backend,
    to_padded,
)
from manifolds._geomstats.networks.layers import frobenius


class BalancedMetric(RiemannianMetric):
    """The metric that the Frobenius norm of the layers induces on the balanced networks.

    Geodesics solve ``W'' = II(W', W')``, with the second fundamental form in closed form;
    logarithms are found by shooting. The curvature is that of the Gauss equation.

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
        x, v = self._tensors(base_point, tangent_vec)
        return self._padded(balanced_geodesic(self._layers(x), self._layers(v), rtol=self._rtol(x)))

    def log(self, point: Any, base_point: Any) -> Any:
        """Return the velocity of the geodesic from one network to another, by shooting.

        A GeodesicError says that no shot arrived: the balanced networks have components which no
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
        direction = direction_of(self, base_point, direction, end_point)
        x, v, w = (self._layers(a) for a in self._tensors(base_point, direction, tangent_vec))
        return self._padded(balanced_transport(x, v, w, rtol=self._rtol(x[0]))[1])

    def curvature(
        self, tangent_vec_a: Any, tangent_vec_b: Any, tangent_vec_c: Any, base_point: Any = None
    ) -> Any:
        """Return ``R(A, B) C`` by the Gauss equation, with the sign of `RiemannianMetric`.

        ``<R(A, B) C, D> = <II(A, D), II(B, C)> - <II(A, C), II(B, D)>``, so that
        ``<R(A, B) B, A>`` has the sign of the sectional curvature.
        """
        x, a, b, c = self._tensors(base_point, tangent_vec_a, tangent_vec_b, tangent_vec_c)
        network, wide = self._network(x), self._network(x.unsqueeze(-4))
        parts = zip(horizontal_frame(network), vertical_frame(network), strict=True)
        along = to_padded([torch.cat(p, -3) for p in parts], x.shape[-1])
        bc, ac = (self._bend(network, v, c).flatten(-3) for v in (b, a))
        ad, bd = (self._bend(wide, v.unsqueeze(-4), along).flatten(-3) for v in (a, b))
        coefficients = torch.einsum("...km,...m->...k", ad, bc)
        coefficients = coefficients - torch.einsum("...km,...m->...k", bd, ac)
        return to_backend(torch.einsum("...k,...kpde->...pde", coefficients, along))

    def random_unit_tangent_vec(self, base_point: Any = None, n_vectors: int = 1) -> Any:
        """Draw unit tangent vectors of uniform direction, by geomstats' generator.

        The method of geomstats draws vectors that need not be tangent.
        """
        x = as_tensor(base_point)
        check_one_point(n_vectors, x.shape[:-3])
        normal = gs.random.normal(size=batched(tuple(x.shape), n_vectors))
        z = as_tensor(self._space.to_tangent(normal, base_point), like=x)
        return to_backend(z / z.flatten(-3).norm(dim=-1)[..., None, None, None])

    def _geodesic_ivp(self, initial_point: Any, initial_tangent_vec: Any) -> Any:
        x, v = self._tensors(initial_point, initial_tangent_vec)
        start, velocity = self._network(x), self._layers(v)

        def path(t: Any) -> Any:
            times = torch.atleast_1d(as_tensor(t, like=x))
            layers = balanced_geodesic(start, velocity, times, rtol=self._rtol(x))
            # geomstats has the times last of the leading dimensions.
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
        """Return the tolerance, or the smallest one that the precision of an array allows."""
        return max(self.rtol, torch.finfo(x.dtype).eps ** 0.75)

    def _bend(self, network: Network, v: Tensor, w: Tensor) -> Tensor:
        """Return ``II(v, w)`` as one tensor."""
        normal = second_fundamental_form(network, self._layers(v), self._layers(w))
        return to_padded(normal, self._space.shape[-1])
