"""Networks as geomstats holds them: one array each, a vector space with the Frobenius metric.

A network of widths ``(d_0, ..., d_N)`` is the array of shape (N, D, D), D the largest width, that
holds W_p in the first ``d_p`` rows and ``d_{p-1}`` columns of slice ``p - 1`` and zeros elsewhere,
so that products of slices are products of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import geomstats.backend as gs  # pyright: ignore[reportMissingImports]
import torch
from geomstats.geometry.base import VectorSpace
from geomstats.geometry.euclidean import EuclideanMetric

from dln_geometry.support import as_flag, as_width_sequence, broadcast_shapes
from manifolds._geomstats.arrays import (
    as_layers,
    as_tensor,
    batched,
    is_zero,
    to_backend,
    to_padded,
)


class FrobeniusMetric(EuclideanMetric):
    """The flat metric ``sum_p <V_p, W_p>`` of the space of all networks.

    Examples
    --------
    >>> from manifolds.geomstats_dln import LayeredNetworks
    >>> networks = LayeredNetworks((2, 3, 2))
    >>> point = networks.random_point()
    >>> float(networks.metric.dist(point, point))
    0.0
    """

    def inner_product(self, tangent_vec_a: Any, tangent_vec_b: Any, base_point: Any = None) -> Any:
        return frobenius(tangent_vec_a, tangent_vec_b, base_point)


class LayeredNetworks(VectorSpace):
    """The vector space of all networks of given widths, balanced or not.

    Random points have independent uniform entries in ``[-bound, bound]``.

    Parameters
    ----------
    widths : sequence of int
        ``(d_0, ..., d_N)``, the width of the input first.
    equip : bool
        If True, equip with `FrobeniusMetric`.

    Examples
    --------
    >>> from manifolds.geomstats_dln import LayeredNetworks
    >>> networks = LayeredNetworks((2, 3, 2))
    >>> networks.dim, networks.random_point().shape  # padded by zeros to the largest width
    (12, (2, 3, 3))
    """

    def __init__(self, widths: Sequence[int], equip: bool = True) -> None:
        self.widths, equip = as_width_sequence(widths), as_flag(equip, "equip")
        self.depth = len(self.widths) - 1
        side = max(self.widths)
        ones = [torch.ones(after, before, device="cpu") for before, after in pairwise(self.widths)]
        self._filled = to_padded(ones, side) > 0
        super().__init__(shape=(self.depth, side, side), dim=int(self._filled.sum()), equip=equip)

    def new(self, equip: bool = True) -> LayeredNetworks:
        """Return a space with the same parameters."""
        return LayeredNetworks(self.widths, equip)

    @staticmethod
    def default_metric() -> Any:
        """Metric to equip the space with if equip is True."""
        return FrobeniusMetric

    def stack(self, layers: Sequence[Any]) -> Any:
        """Return layers ``(W_1, ..., W_N)``, W_p of shape (..., d_p, d_{p-1}), as one point."""
        tensors = [as_tensor(w) for w in layers]
        found = [tuple(w.shape[-2:]) for w in tensors]
        if found != (wanted := [(after, before) for before, after in pairwise(self.widths)]):
            raise ValueError(f"layers must have the shapes {wanted}, got {found}")
        return to_backend(to_padded(tensors, self.shape[-1]))

    def layers(self, point: Any) -> tuple[Any, ...]:
        """Return the layers ``(W_1, ..., W_N)`` of a point, the inverse of `stack`."""
        return tuple(to_backend(w) for w in as_layers(point, self.widths))

    def belongs(self, point: Any, atol: float = gs.atol) -> Any:
        """Tell whether an array has the right shape and vanishes outside the layers."""
        right_shape = super().belongs(point, atol)
        if not gs.all(right_shape):
            return right_shape
        x = as_tensor(point)
        return is_zero(x.masked_fill(self._filled.to(x.device), 0.0), atol, 3)

    def projection(self, point: Any) -> Any:
        """Set the entries outside the layers to zero."""
        x = as_tensor(point)
        return to_backend(x.masked_fill(~self._filled.to(x.device), 0.0))

    def random_point(self, n_samples: int = 1, bound: float = 1.0) -> Any:
        uniform = gs.random.rand(*batched(self.shape, n_samples))
        return self.projection(2 * bound * (uniform - 0.5))

    def _create_basis(self) -> Any:
        where = torch.nonzero(self._filled.flatten()).squeeze(-1)
        like = as_tensor(gs.zeros(1))
        rows = torch.eye(self._filled.numel(), dtype=like.dtype, device=like.device)[where]
        return to_backend(rows.reshape(-1, *self.shape))


def frobenius(a: Any, b: Any, base_point: Any) -> Any:
    """Return ``sum_p <A_p, B_p>``, with the leading dimensions of a point if there is one."""
    a = as_tensor(a)
    total = (a * as_tensor(b, like=a)).sum((-3, -2, -1))
    leading = () if base_point is None else as_tensor(base_point).shape[:-3]
    return to_backend(total.expand(broadcast_shapes(total.shape, leading)))
