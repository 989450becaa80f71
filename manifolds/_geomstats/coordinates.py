"""The metric of depth N in coordinates: matrices and tensors on flattened matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
from geomstats.geometry.riemannian_metric import RiemannianMetric
from torch import Tensor

from dln_geometry.geometry.connection import connection
from dln_geometry.geometry.curvature import ricci_curvature, riemann_curvature
from dln_geometry.geometry.doors import as_depth, as_normalized
from dln_geometry.geometry.metric import cometric, metric
from dln_geometry.geometry.point import EndToEnd
from manifolds._geomstats.arrays import as_tensor, to_backend

__all__ = ["DepthTensors"]


class DepthTensors(RiemannianMetric):
    """What `DepthMetric` is in the coordinates of the flattened matrix, row by row.

    Parameters and errors as there.
    """

    def __init__(
        self,
        space: Any,
        depth: float = 2.0,
        normalized: bool | None = None,
        rtol: float | None = None,
    ) -> None:
        self.depth = as_depth(depth)
        self.normalized = as_normalized(normalized, self.depth)
        self.rtol = rtol
        m, n = space.shape
        self.rank = getattr(space, "rank", min(m, n))
        if self.depth == 1.0 and self.rank < min(m, n):
            raise ValueError(
                f"depth must be above 1 on the matrices of rank {self.rank}, got 1: its geodesics "
                "are straight lines, which leave them"
            )
        if math.isinf(self.depth) and not m == n == self.rank:
            raise ValueError(
                "depth must be finite unless the matrices are square and of full rank, got inf on "
                f"matrices of shape {(m, n)} and rank {self.rank}"
            )
        super().__init__(space)

    def metric_matrix(self, base_point: Any = None) -> Any:
        """Return the matrix of the inner product on flattened matrices.

        Parameters
        ----------
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        mat : array-like, shape=[..., m n, m n]
        """
        p = self._wide(self._point(base_point))
        return to_backend(metric(p, self._basis(p)).flatten(-2))

    def cometric_matrix(self, base_point: Any = None) -> Any:
        """Return the matrix of the coproduct: the inverse of `metric_matrix` on the tangent space.

        Parameters
        ----------
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        mat : array-like, shape=[..., m n, m n]
        """
        p = self._wide(self._point(base_point))
        return to_backend(cometric(p, self._basis(p)).flatten(-2))

    def christoffels(self, base_point: Any = None) -> Any:
        """Return the Christoffel symbols ``Gamma^k_ij``, the contravariant index k first.

        Parameters
        ----------
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        christoffels : array-like, shape=[..., m n, m n, m n]
        """
        return to_backend(self._gamma(self._point(base_point)).movedim(-1, -3))

    def inner_product_derivative_matrix(self, base_point: Any = None) -> Any:
        """Return the derivatives ``d_k g_ij`` of `metric_matrix`, the index k last.

        Parameters
        ----------
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        mat : array-like, shape=[..., m n, m n, m n]

        Raises
        ------
        ValueError
            At fixed rank: there the entries of the matrix are no coordinates.
        """
        if self.rank < min(self._space.shape):
            raise ValueError(
                "space must be of full rank for the derivatives of the metric matrix, got matrices "
                f"of rank {self.rank}"
            )
        p = self._point(base_point)
        wide = self._wide(p)
        # The connection keeps the metric: d_k g_ij = <Gamma_ki, e_j> + <e_i, Gamma_kj>.
        lowered = metric(self._wide(wide), self._gamma(p).unflatten(-1, p.shape)).flatten(-2)
        half = lowered.movedim(-3, -1)
        return to_backend(half + half.transpose(-3, -2))

    def riemann_tensor(self, base_point: Any = None) -> Any:
        """Return the curvature on flattened matrices, ``R(e_j, e_k) e_i`` in row (i, j, k).

        Parameters
        ----------
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        riemann_tensor : array-like, shape=[..., m n, m n, m n, m n]
        """
        p = self._point(base_point)
        e = self._basis(self._wide(p))
        # <R(e_j, e_k) e_i, e_l> changes its sign with (j, k) and with (i, l).
        size = e.shape[-3]
        j, k = torch.triu_indices(size, size, 1, device=e.device)
        one, two = e[..., j, :, :], e[..., k, :, :]
        wide = self._wide(self._wide(p))
        pairs = riemann_curvature(
            wide, one.unsqueeze(-3), two.unsqueeze(-3), one.unsqueeze(-4), two.unsqueeze(-4)
        )
        lowered = pairs.new_zeros((*pairs.shape[:-2], size, size, len(j)))
        lowered[..., j, k, :], lowered[..., k, j, :] = pairs, -pairs
        every = pairs.new_zeros((*pairs.shape[:-2], *(size,) * 4))
        every[..., j, k], every[..., k, j] = lowered, -lowered
        # Axes (j, k, i, l) so far; the index l is raised.
        cometric_matrix = cometric(self._wide(p), e).flatten(-2)
        return to_backend(torch.einsum("...jkil,...lm->...ijkm", every, cometric_matrix))

    def ricci_tensor(self, base_point: Any = None) -> Any:
        """Return the Ricci curvature on flattened matrices.

        Parameters
        ----------
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        ricci_tensor : array-like, shape=[..., m n, m n]
        """
        p = self._point(base_point)
        e = self._basis(self._wide(p))
        wide = self._wide(self._wide(p))
        return to_backend(ricci_curvature(wide, e.unsqueeze(-3), e.unsqueeze(-4)))

    def _point(self, base_point: Any) -> EndToEnd:
        return EndToEnd.of(
            as_tensor(base_point), self.depth, rank=self.rank, normalized=self.normalized
        )

    def _at(self, base_point: Any, *vectors: Any) -> tuple[Any, ...]:
        p = self._point(base_point)
        return p, *(as_tensor(v, like=p.s) for v in vectors)

    def _wide(self, p: EndToEnd) -> EndToEnd:
        """Return the point with one more leading dimension, for a basis of vectors."""
        u, s, vh = p.u.unsqueeze(-3), p.s.unsqueeze(-2), p.vh.unsqueeze(-3)
        return EndToEnd(u, s, vh, p.depth, p.normalized)

    def _basis(self, p: EndToEnd) -> Tensor:
        """Return the coordinate vectors, projected on the tangent space, (..., m n, m, n)."""
        m, n = p.shape
        e = torch.eye(m * n, dtype=p.s.dtype, device=p.s.device).unflatten(-1, (m, n))
        if p.rank == min(m, n):
            return e
        left = e - p.u @ (p.u.mT @ e)
        return e - left + (left @ p.vh.mT) @ p.vh

    def _gamma(self, p: EndToEnd) -> Tensor:
        """Return ``Gamma(e_i, e_j)``, shape (..., i, j, m n)."""
        wide = self._wide(p)
        e = self._basis(wide)
        return connection(self._wide(wide), e.unsqueeze(-3), e.unsqueeze(-4)).flatten(-2)
