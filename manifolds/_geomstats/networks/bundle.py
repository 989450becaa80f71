"""The balanced networks as a bundle over their end-to-end matrices, and the quotient metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geomstats.backend as gs  # pyright: ignore[reportMissingImports]
import torch
from geomstats.geometry.fiber_bundle import FiberBundle
from geomstats.geometry.manifold import register_quotient
from geomstats.geometry.quotient_metric import QuotientMetric
from geomstats.geometry.riemannian_metric import RiemannianMetric
from torch import Tensor

from dln_geometry.geometry import points, submersion
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import broadcast_shapes
from manifolds._geomstats.arrays import as_layers, as_tensor, is_zero, to_backend, to_padded
from manifolds._geomstats.matrices import DepthMetric, without_roundings
from manifolds._geomstats.networks.balanced import BalancedNetworks
from manifolds._geomstats.networks.metric import BalancedMetric
from manifolds._geomstats.networks.rotations import HiddenRotationAction


class BalancedBundle(FiberBundle):
    """The balanced networks over their end-to-end matrices, a Riemannian submersion.

    The fibres are the orbits of the hidden rotations. Points and vectors of the total space have
    the shape (..., N, D, D), those of the base (..., d_N, d_0). A vector is horizontal or vertical
    if its projection changes no entry by more than the tolerance.

    Parameters
    ----------
    total_space : BalancedNetworks
        Equipped with `BalancedMetric`.

    References
    ----------
    Menon, arXiv 2411.09004; Menon, Yu, arXiv 2509.09088.

    Examples
    --------
    >>> from manifolds.geomstats_dln import BalancedBundle, BalancedNetworks
    >>> networks = BalancedNetworks((2, 3, 2), positive_det=True)
    >>> point = networks.random_point()
    >>> BalancedBundle(networks).riemannian_submersion(point).shape
    (2, 2)
    """

    def __init__(self, total_space: BalancedNetworks) -> None:
        super().__init__(total_space=total_space)
        self._widths = total_space.widths
        self._below = DepthMetric(total_space.base(equip=False), depth=total_space.depth)

    def riemannian_submersion(self, point: Any) -> Any:
        """Return the end-to-end matrix ``W_N ... W_1``."""
        return to_backend(points.product(as_layers(point, self._widths)))

    def lift(self, point: Any) -> Any:
        """Return balanced factors of a matrix, in the canonical gauge."""
        p = EndToEnd.of(as_tensor(point), len(self._widths) - 1, rank=self._total_space.rank)
        return self._padded(points.balanced_factors(p, widths=self._widths))

    def tangent_riemannian_submersion(self, tangent_vec: Any, base_point: Any) -> Any:
        return to_backend(submersion.pushforward(*self._both(base_point, tangent_vec)))

    def horizontal_projection(self, tangent_vec: Any, base_point: Any) -> Any:
        return self._padded(submersion.horizontal(*self._both(base_point, tangent_vec)))

    def vertical_projection(self, tangent_vec: Any, base_point: Any) -> Any:
        return self._padded(submersion.vertical(*self._both(base_point, tangent_vec)))

    def is_horizontal(self, tangent_vec: Any, base_point: Any, atol: float = gs.atol) -> Any:
        return self._is_kept(tangent_vec, self.horizontal_projection, base_point, atol)

    def is_vertical(self, tangent_vec: Any, base_point: Any, atol: float = gs.atol) -> Any:
        return self._is_kept(tangent_vec, self.vertical_projection, base_point, atol)

    def horizontal_lift(
        self, tangent_vec: Any, base_point: Any = None, fiber_point: Any = None
    ) -> Any:
        """Return the horizontal lift of a vector at `fiber_point`, else at ``lift(base_point)``."""
        if fiber_point is None and base_point is None:
            raise ValueError("base_point or fiber_point must be given, got neither")
        fiber_point = self.lift(base_point) if fiber_point is None else fiber_point
        layers = as_layers(fiber_point, self._widths)
        vector = as_tensor(tangent_vec, like=layers[0])
        if self._total_space.rank < min(vector.shape[-2:]):
            p = EndToEnd.of(points.product(layers), len(layers), rank=self._total_space.rank)
            vector = without_roundings(p, vector)
        return self._padded(submersion.horizontal_lift(layers, vector))

    def align(self, point: Any, base_point: Any) -> Any:
        """Return the point of the same orbit that a shortest geodesic across the fibres reaches.

        The horizontal lift at `base_point` of the geodesic of the end-to-end matrices ends there.
        """
        layers, start = self._both(point, base_point)
        # Without hidden layers the orbits are points.
        if len(layers) == 1:
            return self._padded(torch.broadcast_tensors(*layers, *start)[:1])
        ends = (to_backend(points.product(w)) for w in (layers, start))
        velocity = self._below.log(*ends)
        across = self.horizontal_lift(velocity, fiber_point=base_point)
        end = self._total_space.metric.exp(across, base_point)
        return self._in_gauge_of(layers, as_layers(end, self._widths, like=layers[0]))

    def integrability_tensor(self, tangent_vec_a: Any, tangent_vec_b: Any, base_point: Any) -> Any:
        layers, a = self._both(base_point, tangent_vec_a)
        b = as_layers(tangent_vec_b, self._widths, like=layers[0])
        return self._padded(submersion.integrability(layers, a, b))

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
        batch = broadcast_shapes(layers[0].shape[:-2], goal[0].shape[:-2])
        frames, lam = points.balanced_frames([w.expand(*batch, *w.shape[-2:]) for w in layers])
        gauge = [frames[0]]
        for w in goal[:-1]:
            # The polar factor does not depend on the choice of singular vectors of equal values.
            gauge.append(points.polar((w @ gauge[-1]) / lam.unsqueeze(-2)))
        return self._padded(points.chain_from_frames([*gauge, frames[-1]], lam ** len(layers)))


class BalancedQuotientMetric(QuotientMetric, DepthMetric):
    """The metric of depth N on the end-to-end matrices, as the quotient of `BalancedMetric`.

    Inner products, geodesics and curvature come from the networks. The transport, the matrices of
    the metric, Christoffel symbols and derivatives of the curvature, which geomstats does not have
    for quotients, come from `DepthMetric`. The curvature is O'Neill's formula with the signs of
    `RiemannianMetric`; those of geomstats 2.8's `QuotientMetric` differ.

    Parameters
    ----------
    space : FullRankEndToEnd or FixedRankEndToEnd
        The base, the attribute `base`; given a `BalancedNetworks`, its base.
    total_space : BalancedNetworks
        Equipped with `BalancedMetric` and `BalancedBundle`.

    Examples
    --------
    >>> from manifolds.geomstats_dln import BalancedNetworks, HiddenRotationAction
    >>> networks = BalancedNetworks((2, 2, 2), positive_det=True)
    >>> _ = networks.equip_with_group_action(HiddenRotationAction(networks.widths))
    >>> quotient = networks.equip_with_quotient()
    >>> type(quotient.metric).__name__
    'BalancedQuotientMetric'
    """

    curvature_derivative: Any = DepthMetric.curvature_derivative
    directional_curvature_derivative = RiemannianMetric.directional_curvature_derivative
    sectional_curvature = RiemannianMetric.sectional_curvature

    def __init__(self, space: Any, total_space: BalancedNetworks) -> None:
        self._total_space: Any = total_space
        self.base = space.base(equip=False) if isinstance(space, BalancedNetworks) else space
        DepthMetric.__init__(self, self.base, depth=total_space.depth)

    def curvature(
        self, tangent_vec_a: Any, tangent_vec_b: Any, tangent_vec_c: Any, base_point: Any = None
    ) -> Any:
        """Return ``R(A, B) C`` from the curvature of the networks and O'Neill's tensor.

        ``dphi(R(X, Y) Z + 2 A_Z A_X Y - A_X A_Y Z + A_Y A_X Z)`` of the horizontal lifts (O'Neill,
        The fundamental equations of a submersion, 1966).
        """
        bundle = self._fiber_bundle
        w = bundle.lift(base_point)
        vectors = tangent_vec_a, tangent_vec_b, tangent_vec_c
        x, y, z = (bundle.horizontal_lift(v, fiber_point=w) for v in vectors)
        turn = bundle.integrability_tensor
        total = self._total_space.metric.curvature(x, y, z, w) + 2.0 * turn(z, turn(x, y, w), w)
        total = total - turn(x, turn(y, z, w), w) + turn(y, turn(x, z, w), w)
        return bundle.tangent_riemannian_submersion(total, w)


register_quotient(
    Space=BalancedNetworks,
    Metric=BalancedMetric,
    GroupAction=HiddenRotationAction,
    FiberBundle=BalancedBundle,
    QuotientMetric=BalancedQuotientMetric,
)
