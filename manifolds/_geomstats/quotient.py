"""The end-to-end matrices as the quotient of the balanced networks, for geomstats.

By the hidden rotations: it is the space of the matrices, with the metric of depth N.
"""

from __future__ import annotations

from typing import Any

from geomstats.geometry.manifold import register_quotient
from geomstats.geometry.quotient_metric import QuotientMetric
from geomstats.geometry.riemannian_metric import RiemannianMetric

from manifolds._geomstats.bundle import BalancedBundle
from manifolds._geomstats.metrics import DepthMetric
from manifolds._geomstats.networks import BalancedNetworks
from manifolds._geomstats.rotations import HiddenRotationAction
from manifolds._geomstats.upstairs import BalancedMetric

__all__ = ["BalancedQuotientMetric"]


class BalancedQuotientMetric(QuotientMetric, DepthMetric):
    """The metric of depth N on the end-to-end matrices, as the quotient of `BalancedMetric`.

    Inner products, geodesics and curvature come from upstairs; what geomstats leaves open for
    quotients (transport, matrices of the metric, Christoffel symbols) from `DepthMetric`. The
    curvature is O'Neill's formula with the signs of `RiemannianMetric`, which those of geomstats
    2.8's `QuotientMetric` are not.

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

    def __init__(self, space: Any, total_space: BalancedNetworks) -> None:
        self._total_space: Any = total_space
        self.base = space.base(equip=False) if isinstance(space, BalancedNetworks) else space
        DepthMetric.__init__(self, self.base, depth=total_space.depth)

    def curvature(
        self, tangent_vec_a: Any, tangent_vec_b: Any, tangent_vec_c: Any, base_point: Any = None
    ) -> Any:
        """Return ``R(A, B) C`` as what the curvature upstairs and O'Neill's tensor leave of it.

        ``dphi(R(X, Y) Z) + 2 A_Z A_X Y - A_X A_Y Z + A_Y A_X Z`` of the horizontal lifts: the
        quotient is curved no less than what it is a quotient of.

        Parameters
        ----------
        tangent_vec_a, tangent_vec_b, tangent_vec_c : array-like, shape=[..., d_N, d_0]
        base_point : array-like, shape=[..., d_N, d_0]

        Returns
        -------
        curvature : array-like, shape=[..., d_N, d_0]

        References
        ----------
        O'Neill, The fundamental equations of a submersion, 1966.
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

    def curvature_derivative(
        self,
        tangent_vec_a: Any,
        tangent_vec_b: Any,
        tangent_vec_c: Any,
        tangent_vec_d: Any,
        base_point: Any = None,
    ) -> Any:
        """Return ``(nabla_A R)(B, C) D``, as `DepthMetric` does.

        Parameters
        ----------
        tangent_vec_a, tangent_vec_b : array-like, shape=[..., d_N, d_0]
        tangent_vec_c, tangent_vec_d : array-like, shape=[..., d_N, d_0]
        base_point : array-like, shape=[..., d_N, d_0]

        Returns
        -------
        curvature_derivative : array-like, shape=[..., d_N, d_0]
        """
        vectors = tangent_vec_a, tangent_vec_b, tangent_vec_c, tangent_vec_d
        return DepthMetric.curvature_derivative(self, *vectors, base_point)

    def directional_curvature_derivative(
        self, tangent_vec_a: Any, tangent_vec_b: Any, base_point: Any = None
    ) -> Any:
        """Return ``(nabla_A R)(B, A) B``.

        Parameters
        ----------
        tangent_vec_a, tangent_vec_b : array-like, shape=[..., d_N, d_0]
        base_point : array-like, shape=[..., d_N, d_0]

        Returns
        -------
        curvature_derivative : array-like, shape=[..., d_N, d_0]
        """
        vectors = tangent_vec_a, tangent_vec_b, tangent_vec_a, tangent_vec_b
        return self.curvature_derivative(*vectors, base_point)

    def sectional_curvature(
        self, tangent_vec_a: Any, tangent_vec_b: Any, base_point: Any = None
    ) -> Any:
        """Return the sectional curvature of the plane of two tangent vectors.

        Parameters
        ----------
        tangent_vec_a, tangent_vec_b : array-like, shape=[..., d_N, d_0]
        base_point : array-like, shape=[..., d_N, d_0]

        Returns
        -------
        sectional_curvature : array-like, shape=[...,]
        """
        return RiemannianMetric.sectional_curvature(self, tangent_vec_a, tangent_vec_b, base_point)


register_quotient(
    Space=BalancedNetworks,
    Metric=BalancedMetric,
    GroupAction=HiddenRotationAction,
    FiberBundle=BalancedBundle,
    QuotientMetric=BalancedQuotientMetric,
)
