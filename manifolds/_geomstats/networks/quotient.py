"""The end-to-end matrices as the quotient of the balanced networks by the hidden rotations.

The quotient is the space of the matrices, with the metric of depth N.
"""

from __future__ import annotations

from typing import Any

from geomstats.geometry.manifold import register_quotient
from geomstats.geometry.quotient_metric import QuotientMetric
from geomstats.geometry.riemannian_metric import RiemannianMetric

from manifolds._geomstats.matrices import DepthMetric
from manifolds._geomstats.networks.balanced import BalancedNetworks
from manifolds._geomstats.networks.bundle import BalancedBundle
from manifolds._geomstats.networks.metric import BalancedMetric
from manifolds._geomstats.networks.rotations import HiddenRotationAction


class BalancedQuotientMetric(QuotientMetric, DepthMetric):
    """The metric of depth N on the end-to-end matrices, as the quotient of `BalancedMetric`.

    Inner products, geodesics and curvature come from upstairs. geomstats leaves open the transport,
    the matrices of the metric and the Christoffel symbols of quotients: these come from
    `DepthMetric`, as do derivatives of the curvature, for which geomstats asks for derivatives of
    O'Neill's tensor. The curvature is O'Neill's formula with the signs of `RiemannianMetric`; those
    of geomstats 2.8's `QuotientMetric` differ.

    Parameters
    ----------
    space : FullRankEndToEnd or FixedRankEndToEnd
        The base; given a `BalancedNetworks`, its base.
    total_space : BalancedNetworks
        Equipped with `BalancedMetric` and `BalancedBundle`.

    Attributes
    ----------
    base : FullRankEndToEnd or FixedRankEndToEnd
        The space that the metric is of.
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
        """Return ``R(A, B) C`` from the curvature upstairs and O'Neill's tensor.

        ``dphi(R(X, Y) Z) + 2 A_Z A_X Y - A_X A_Y Z + A_Y A_X Z`` of the horizontal lifts (O'Neill,
        The fundamental equations of a submersion, 1966): no sectional curvature of the quotient is
        smaller than that of the lifted plane.
        """
        bundle = self._fiber_bundle
        w = bundle.lift(base_point)
        x, y, z = (
            bundle.horizontal_lift(v, fiber_point=w)
            for v in (tangent_vec_a, tangent_vec_b, tangent_vec_c)
        )
        turn = bundle.integrability_tensor
        total = (
            self._total_space.metric.curvature(x, y, z, w)
            + 2.0 * turn(z, turn(x, y, w), w)
            - turn(x, turn(y, z, w), w)
            + turn(y, turn(x, z, w), w)
        )
        return bundle.tangent_riemannian_submersion(total, w)


register_quotient(
    Space=BalancedNetworks,
    Metric=BalancedMetric,
    GroupAction=HiddenRotationAction,
    FiberBundle=BalancedBundle,
    QuotientMetric=BalancedQuotientMetric,
)
