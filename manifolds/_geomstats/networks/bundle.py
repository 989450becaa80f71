"""The balanced networks as a bundle over their end-to-end matrices, for geomstats.

The fibres are the orbits of the hidden rotations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geomstats.backend as gs  # pyright: ignore[reportMissingImports]
import torch
from geomstats.geometry.fiber_bundle import FiberBundle
from torch import Tensor

from dln_geometry.geometry.points import (
    EndToEnd,
    balanced_factors,
    balanced_frames,
    chain_from_frames,
    polar,
    product,
)
from dln_geometry.geometry.submersion import (
    horizontal,
    horizontal_lift,
    integrability,
    pushforward,
    vertical,
)
from manifolds._geomstats.arrays import as_layers, as_tensor, is_zero, to_backend, to_padded
from manifolds._geomstats.matrices import DepthMetric, without_roundings
from manifolds._geomstats.networks.balanced import BalancedNetworks


class BalancedBundle(FiberBundle):
    """The balanced networks over their end-to-end matrices, a Riemannian submersion.

    Points and vectors of the total space have the shape (..., N, D, D), those of the base
    (..., d_N, d_0). A vector is horizontal or vertical if its projection changes no entry by more
    than the tolerance.

    Parameters
    ----------
    total_space : BalancedNetworks
        Equipped with `BalancedMetric`.

    References
    ----------
    Menon, arXiv 2411.09004; Menon, Yu, arXiv 2509.09088.
    """

    def __init__(self, total_space: BalancedNetworks) -> None:
        super().__init__(total_space=total_space)
        self._widths = total_space.widths
        self._below = DepthMetric(total_space.base(equip=False), depth=total_space.depth)

    def riemannian_submersion(self, point: Any) -> Any:
        """Return the end-to-end matrix ``W_N ... W_1``."""
        return to_backend(product(as_layers(point, self._widths)))

    def lift(self, point: Any) -> Any:
        """Return balanced factors of a matrix, in the canonical gauge."""
        p = EndToEnd.of(as_tensor(point), len(self._widths) - 1, rank=self._total_space.rank)
        return self._padded(balanced_factors(p, widths=self._widths))

    def tangent_riemannian_submersion(self, tangent_vec: Any, base_point: Any) -> Any:
        """Return the differential of the product."""
        return to_backend(pushforward(*self._both(base_point, tangent_vec)))

    def horizontal_projection(self, tangent_vec: Any, base_point: Any) -> Any:
        """Project orthogonally on the horizontal space, in closed form."""
        return self._padded(horizontal(*self._both(base_point, tangent_vec)))

    def vertical_projection(self, tangent_vec: Any, base_point: Any) -> Any:
        """Project orthogonally on the vertical space, the tangent space of the orbit."""
        return self._padded(vertical(*self._both(base_point, tangent_vec)))

    def is_horizontal(self, tangent_vec: Any, base_point: Any, atol: float = gs.atol) -> Any:
        return self._is_kept(tangent_vec, self.horizontal_projection, base_point, atol)

    def is_vertical(self, tangent_vec: Any, base_point: Any, atol: float = gs.atol) -> Any:
        return self._is_kept(tangent_vec, self.vertical_projection, base_point, atol)

    def horizontal_lift(
        self, tangent_vec: Any, base_point: Any = None, fiber_point: Any = None
    ) -> Any:
        """Return the horizontal vector over a tangent vector of the matrices.

        At `fiber_point`, or at the `lift` of `base_point` if there is none.
        """
        if fiber_point is None:
            if base_point is None:
                raise ValueError("base_point or fiber_point must be given, got neither")
            fiber_point = self.lift(base_point)
        layers = as_layers(fiber_point, self._widths)
        vector = as_tensor(tangent_vec, like=layers[0])
        if self._total_space.rank < min(vector.shape[-2:]):
            p = EndToEnd.of(product(layers), len(layers), rank=self._total_space.rank)
            vector = without_roundings(p, vector)
        return self._padded(horizontal_lift(layers, vector))

    def align(self, point: Any, base_point: Any) -> Any:
        """Return the point of the same orbit that a shortest geodesic across the fibres reaches.

        The shortest geodesic of the end-to-end matrices is lifted to start at `base_point`; its end
        gives the gauge.
        """
        layers, start = self._both(point, base_point)
        if len(layers) == 1:
            # Nothing is hidden: the orbits are points.
            return self._padded(torch.broadcast_tensors(*layers, *start)[:1])
        velocity = self._below.log(to_backend(product(layers)), to_backend(product(start)))
        across = self.horizontal_lift(velocity, fiber_point=base_point)
        end = self._total_space.metric.exp(across, base_point)
        return self._in_gauge_of(layers, as_layers(end, self._widths, like=layers[0]))

    def integrability_tensor(self, tangent_vec_a: Any, tangent_vec_b: Any, base_point: Any) -> Any:
        layers, a = self._both(base_point, tangent_vec_a)
        b = as_layers(tangent_vec_b, self._widths, like=layers[0])
        return self._padded(integrability(layers, a, b))

    def _both(self, base_point: Any, vector: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        layers = as_layers(base_point, self._widths)
        return layers, as_layers(vector, self._widths, like=layers[0])

    def _padded(self, layers: Sequence[Tensor]) -> Any:
        return to_backend(to_padded(layers, max(self._widths)))

    def _is_kept(self, vector: Any, projection: Any, base_point: Any, atol: float) -> Any:
        v = as_tensor(vector)
        return is_zero(v - as_tensor(projection(vector, base_point), like=v), atol, 3)

    def _in_gauge_of(self, layers: tuple[Tensor, ...], goal: tuple[Tensor, ...]) -> Any:
        """Return the point of the orbit whose hidden frames are those of another network."""
        batch = torch.broadcast_shapes(layers[0].shape[:-2], goal[0].shape[:-2])
        frames, lam = balanced_frames([w.expand(*batch, *w.shape[-2:]) for w in layers])
        gauge = [frames[0]]
        for w in goal[:-1]:
            # The polar factor is right for every choice of the singular vectors of equal values.
            gauge.append(polar((w @ gauge[-1]) / lam.unsqueeze(-2)))
        return self._padded(chain_from_frames([*gauge, frames[-1]], lam ** len(layers)))
