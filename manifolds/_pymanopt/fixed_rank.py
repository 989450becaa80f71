"""Matrices of rank r in thin form, whatever their metric: points, tangent vectors, projections."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

import numpy as np
from pymanopt.manifolds.manifold import Manifold

from dln_geometry.support import as_count, as_float_tensor, as_rank, read_array
from manifolds._pymanopt.vectors import FixedRankPoint, FixedRankTangent


class FixedRankMatrices(Manifold, metaclass=ABCMeta):
    """Points and tangent vectors of m x n matrices of rank r, for manifolds with a metric.

    If `frozen`, row and column spaces do not move: ``up`` and ``vp`` of tangent vectors are zero.
    """

    def __init__(self, m: int, n: int, rank: int, *, frozen: bool, name: str) -> None:
        self._m, self._n = m, n = as_count(m, "m"), as_count(n, "n")
        self._r = r = as_rank(rank, min(m, n), "min(m, n)")
        self._frozen = frozen
        super().__init__(name, r * r if frozen else r * (m + n - r), point_layout=3)

    @property
    def rank(self) -> int:
        """The rank r of the matrices."""
        return self._r

    def point(self, x: Any) -> FixedRankPoint:
        """Return the point of a matrix of shape (m, n), its r leading singular values positive."""
        given, own = read_array(x, "x")
        x = as_float_tensor(given if own and given.is_floating_point() else given.double(), "x")
        x = x.detach().cpu().numpy()
        if x.shape != (self._m, self._n):
            raise ValueError(f"x must have shape ({self._m}, {self._n}), got {x.shape}")
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        r = self._r
        if not s[r - 1] > np.finfo(s.dtype).eps * max(x.shape) * s[0]:
            raise ValueError(f"x must have rank {r}, got singular values {s}")
        return FixedRankPoint(u[:, :r].copy(), s[:r].copy(), vt[:r].copy())

    def matrix(self, point: Any) -> np.ndarray:
        """Return the matrix ``u @ diag(s) @ vt`` of a point, shape (m, n)."""
        u, s, vt = point
        return (u * s) @ vt

    def tangent_matrix(self, point: Any, tangent_vector: FixedRankTangent) -> np.ndarray:
        """Return a tangent vector as a matrix of shape (m, n)."""
        (u, _, vt), (up, core, vp) = point, tangent_vector
        return (u @ core + up) @ vt + u @ vp.T

    def projection(self, point: Any, vector: Any) -> FixedRankTangent:
        """Return the tangent vector nearest to a matrix in the Frobenius norm.

        The matrix is an array, a sparse array, or a tuple ``(A, B, C)`` for ``A @ B @ C.T``.
        """
        u, _, vt = point
        if isinstance(vector, tuple | list):
            left, middle, right = vector
            zv, ztu = left @ (middle @ (right.T @ vt.T)), right @ (middle.T @ (left.T @ u))
        else:
            if tuple(np.shape(vector)) != (self._m, self._n):
                raise ValueError(
                    f"vector must have shape ({self._m}, {self._n}), got {np.shape(vector)}"
                )
            zv, ztu = vector @ vt.T, vector.T @ u
        return self.to_tangent_space(point, FixedRankTangent(zv, u.T @ zv, ztu))

    def to_tangent_space(self, point: Any, vector: FixedRankTangent) -> FixedRankTangent:
        """Drop the parts of ``up`` and ``vp`` that lie in the spaces of u and of vt."""
        (u, _, vt), (up, core, vp) = point, vector
        if self._frozen:
            return FixedRankTangent(np.zeros_like(up), core, np.zeros_like(vp))
        return FixedRankTangent(up - u @ (u.T @ up), core, vp - vt.T @ (vt @ vp))

    def zero_vector(self, point: Any) -> FixedRankTangent:
        sizes, dtype = (self._m, self._r, self._n), np.asarray(point[1]).dtype
        return FixedRankTangent(*(np.zeros((size, self._r), dtype) for size in sizes))
