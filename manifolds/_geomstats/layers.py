"""Networks as geomstats holds them: one array each, a vector space with the Frobenius metric.

geomstats wants a point to be one array. A network of widths ``(d_0, ..., d_N)`` is the array of
shape (N, D, D), D the largest width, that holds W_p in the first ``d_p`` rows and ``d_{p-1}``
columns of slice ``p - 1`` and zeros elsewhere. With equal widths these are the stacked layers;
with others products of slices are still products of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geomstats.backend as gs  # pyright: ignore[reportMissingImports]
import torch
from geomstats.geometry.base import VectorSpace
from geomstats.geometry.euclidean import EuclideanMetric

from dln_geometry.support import as_width_sequence
from manifolds._geomstats.arrays import as_layers, as_tensor, to_backend, to_padded

__all__ = ["FrobeniusMetric", "LayeredNetworks", "frobenius"]


class FrobeniusMetric(EuclideanMetric):
    """The flat metric ``sum_p <V_p, W_p>`` of the space of all networks."""

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

    def squared_norm(self, vector: Any, base_point: Any = None) -> Any:
        """Return ``sum_p |V_p|^2``."""
        return frobenius(vector, vector, base_point)

    def norm(self, vector: Any, base_point: Any = None) -> Any:
        """Return ``sqrt(sum_p |V_p|^2)``."""
        return gs.sqrt(self.squared_norm(vector, base_point))


class LayeredNetworks(VectorSpace):
    """The vector space of all networks of given widths, balanced or not.

    Parameters
    ----------
    widths : sequence of int
        ``(d_0, ..., d_N)``, the width of the input first.
    equip : bool
        If True, equip with the Frobenius metric.
    """

    def __init__(self, widths: Sequence[int], equip: bool = True) -> None:
        self.widths = as_width_sequence(widths)
        self.depth = len(self.widths) - 1
        side = max(self.widths)
        eye = [torch.ones(d, e) for e, d in zip(self.widths, self.widths[1:], strict=False)]
        self._filled = to_padded(eye, side) > 0
        super().__init__(shape=(self.depth, side, side), dim=int(self._filled.sum()), equip=equip)

    def new(self, equip: bool = True) -> LayeredNetworks:
        """Return a space with the same parameters."""
        return LayeredNetworks(self.widths, equip)

    @staticmethod
    def default_metric() -> Any:
        """Metric to equip the space with if equip is True."""
        return FrobeniusMetric

    def stack(self, layers: Sequence[Any]) -> Any:
        """Return layers ``(W_1, ..., W_N)``, input side first, as one point.

        Parameters
        ----------
        layers : sequence of array-like, W_p of shape=[..., d_p, d_{p-1}]

        Returns
        -------
        point : array-like, shape=[..., N, D, D]

        Raises
        ------
        ValueError
            If the layers do not have the widths of the space.
        """
        tensors = [as_tensor(w) for w in layers]
        found = [tuple(w.shape[-2:]) for w in tensors]
        wanted = list(zip(self.widths[1:], self.widths, strict=False))
        if found != wanted:
            raise ValueError(f"layers must have the shapes {wanted}, got {found}")
        return to_backend(to_padded(tensors, self.shape[-1]))

    def layers(self, point: Any) -> tuple[Any, ...]:
        """Return the layers ``(W_1, ..., W_N)`` of a point, input side first.

        Parameters
        ----------
        point : array-like, shape=[..., N, D, D]

        Returns
        -------
        layers : tuple of array-like, W_p of shape=[..., d_p, d_{p-1}]
        """
        return tuple(to_backend(w) for w in as_layers(point, self.widths))

    def belongs(self, point: Any, atol: float = gs.atol) -> Any:
        """Tell whether an array has the right shape and vanishes outside the layers.

        Parameters
        ----------
        point : array-like, shape=[..., N, D, D]
        atol : float
            Tolerance on the entries outside the layers.

        Returns
        -------
        belongs : array-like, shape=[...,]
        """
        right_shape = super().belongs(point, atol)
        if not gs.all(right_shape):
            return right_shape
        x = as_tensor(point)
        padding = torch.where(self._filled.to(x.device), torch.zeros_like(x), x)
        return to_backend((padding.abs() <= atol).flatten(-3).all(-1))

    def projection(self, point: Any) -> Any:
        """Set the entries outside the layers to zero.

        Parameters
        ----------
        point : array-like, shape=[..., N, D, D]

        Returns
        -------
        projected : array-like, shape=[..., N, D, D]
        """
        x = as_tensor(point)
        return to_backend(torch.where(self._filled.to(x.device), x, torch.zeros_like(x)))

    def random_point(self, n_samples: int = 1, bound: float = 1.0) -> Any:
        """Draw networks with independent uniform entries in ``[-bound, bound]``.

        Parameters
        ----------
        n_samples : int
            Number of networks; no leading dimension if 1.
        bound : float
            Largest entry.

        Returns
        -------
        samples : array-like, shape=[..., N, D, D]
        """
        size = self.shape if n_samples == 1 else (n_samples, *self.shape)
        return self.projection(2 * bound * (gs.random.rand(*size) - 0.5))

    def _create_basis(self) -> Any:
        where = torch.nonzero(self._filled.flatten()).squeeze(-1)
        rows = torch.eye(self._filled.numel(), dtype=as_tensor(gs.zeros(1)).dtype)[where]
        return to_backend(rows.reshape(-1, *self.shape))


def frobenius(a: Any, b: Any, base_point: Any) -> Any:
    """Return ``sum_p <A_p, B_p>``, with the leading dimensions of a point if there is one.

    Parameters
    ----------
    a, b : array-like, shape=[..., N, D, D]
    base_point : array-like, shape=[..., N, D, D], or None
    """
    a = as_tensor(a)
    product = (a * as_tensor(b, like=a)).sum((-3, -2, -1))
    if base_point is not None:
        leading = as_tensor(base_point).shape[:-3]
        product = product.expand(torch.broadcast_shapes(product.shape, leading))
    return to_backend(product)
