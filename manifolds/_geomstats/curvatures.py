"""The curvature of the metric of depth N, for geomstats."""

from __future__ import annotations

from typing import Any

import torch

from dln_geometry.geometry.curvature import (
    ricci_curvature,
    riemann_curvature,
    scalar_curvature,
    sectional_curvature,
)
from dln_geometry.geometry.metric import cometric
from manifolds._geomstats.arrays import to_backend
from manifolds._geomstats.coordinates import DepthTensors
from manifolds._geomstats.curvature_vectors import curvature_derivative, curvature_vector
from manifolds._geomstats.tangents import widened

__all__ = ["DepthCurvature"]


class DepthCurvature(DepthTensors):
    """What `DepthMetric` knows of curvature, as vectors, numbers and tensors in coordinates.

    Parameters and errors as there.
    """

    def curvature(
        self, tangent_vec_a: Any, tangent_vec_b: Any, tangent_vec_c: Any, base_point: Any = None
    ) -> Any:
        """Return ``R(A, B) C``, with the sign of which ``<R(A, B) B, A>`` is that of the sphere.

        Parameters
        ----------
        tangent_vec_a, tangent_vec_b, tangent_vec_c : array-like, shape=[..., m, n]
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        curvature : array-like, shape=[..., m, n]
        """
        p, a, b, c = self._at(base_point, tangent_vec_a, tangent_vec_b, tangent_vec_c)
        return self._matrix(curvature_vector(p, a, b, c))

    def curvature_derivative(
        self,
        tangent_vec_a: Any,
        tangent_vec_b: Any,
        tangent_vec_c: Any,
        tangent_vec_d: Any,
        base_point: Any = None,
    ) -> Any:
        """Return ``(nabla_A R)(B, C) D``, to a few digits less than the curvature is known.

        Parameters
        ----------
        tangent_vec_a, tangent_vec_b, tangent_vec_c, tangent_vec_d : array-like, shape=[..., m, n]
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        curvature_derivative : array-like, shape=[..., m, n]
        """
        vectors = tangent_vec_a, tangent_vec_b, tangent_vec_c, tangent_vec_d
        return self._matrix(curvature_derivative(*self._at(base_point, *vectors)))

    def sectional_curvature(
        self, tangent_vec_a: Any, tangent_vec_b: Any, base_point: Any = None
    ) -> Any:
        """Return the sectional curvature of the plane of two tangent vectors.

        Parameters
        ----------
        tangent_vec_a, tangent_vec_b : array-like, shape=[..., m, n]
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        sectional_curvature : array-like, shape=[...,]
        """
        return to_backend(sectional_curvature(*self._at(base_point, tangent_vec_a, tangent_vec_b)))

    def scalar_curvature(self, base_point: Any = None) -> Any:
        """Return the scalar curvature.

        Parameters
        ----------
        base_point : array-like, shape=[..., m, n]

        Returns
        -------
        scalar_curvature : array-like, shape=[...,]
        """
        return to_backend(scalar_curvature(self._point(base_point)))

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
        e = self._basis(widened(p))
        # <R(e_j, e_k) e_i, e_l> changes its sign with (j, k) and with (i, l).
        size = e.shape[-3]
        j, k = torch.triu_indices(size, size, 1, device=e.device)
        one, two = e[..., j, :, :], e[..., k, :, :]
        wide = widened(widened(p))
        pairs = riemann_curvature(
            wide, one.unsqueeze(-3), two.unsqueeze(-3), one.unsqueeze(-4), two.unsqueeze(-4)
        )
        lowered = pairs.new_zeros((*pairs.shape[:-2], size, size, len(j)))
        lowered[..., j, k, :], lowered[..., k, j, :] = pairs, -pairs
        every = pairs.new_zeros((*pairs.shape[:-2], *(size,) * 4))
        every[..., j, k], every[..., k, j] = lowered, -lowered
        # Axes (j, k, i, l) so far; the index l is raised.
        cometric_matrix = cometric(widened(p), e).flatten(-2)
        raised = torch.einsum("...jkil,...lm->...ijkm", every, cometric_matrix)
        return self._tensor(raised, 4)

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
        e = self._basis(widened(p))
        wide = widened(widened(p))
        return self._tensor(ricci_curvature(wide, e.unsqueeze(-3), e.unsqueeze(-4)), 2)
