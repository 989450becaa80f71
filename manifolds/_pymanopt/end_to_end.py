"""The matrices of rank r with the depth metric, for pymanopt."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np

from dln_geometry.support import as_depth, as_flag, as_normalized
from manifolds._convert import as_random
from manifolds._depth import depth_at_rank
from manifolds._pymanopt import conversion, paths, steps
from manifolds._pymanopt.fixed_rank import FixedRankMatrices
from manifolds._pymanopt.frame import Frame, frame_of
from manifolds._pymanopt.vectors import FixedRankPoint, FixedRankTangent


class EndToEndManifold(FixedRankMatrices):
    r"""Matrices of rank r with the metric ``g^N`` of the end-to-end matrices of a linear network.

    ``g^N(Z, Z) = <Z, A^{-1} Z>`` with ``A(G) = sum_p (X X^T)^{(N-p)/N} G (X^T X)^{(p-1)/N}``: the
    metric for which the product of N balanced layers, with their Frobenius metric, is a Riemannian
    submersion. Depth 1 is the metric of `pymanopt.manifolds.FixedRankEmbedded`. All arrays have the
    size of thin factors; singular values may be equal, and the rank may be full.

    A point is a named tuple ``(u, s, vt)``, a tangent vector ``(up, M, vp)`` stands for
    ``u @ M @ vt + up @ vt + u @ vp.T`` with ``u.T @ up = 0`` and ``vt @ vp = 0``. A cost is a
    function of ``(u, s, vt)`` through ``u @ diag(s) @ vt``, of which it may compute only the
    entries observed. (Gradients are right, too, for costs that otherwise use that u and vt are
    orthonormal, as long as singular values differ.) Derivatives given by hand may be those by u, s
    and vt, or the one in X: an array or sparse array.

    At infinite depth the metric is the limit of ``N g^N``. There the row and column spaces of X are
    frozen, at infinite distance from all others: ``up`` and ``vp`` are zero, and the dimension is
    r^2. All random points have the same spaces.

    Square matrices of full rank, at infinite depth all matrices, have two components, told apart by
    the sign of a determinant: random points lie on one.

    Parameters
    ----------
    m, n, rank : int
        Shape and rank of X.
    depth : float
        Real depth N >= 1, or ``math.inf``.
    normalized : bool, optional
        Divide A by N; `None` does so at infinite depth only, where `False` is refused.
    exact_log : bool
        Find logarithms by shooting geodesics. Otherwise `log`, `dist` and `pair_mean` use a chart
        in closed form, exact where the singular vectors agree: a thousand times faster, for
        Nelder-Mead and particle swarms, which ask for hundreds in every iteration.
    rng : numpy.random.Generator or int, optional
        Source of random points and tangent vectors, or its seed; never numpy's global generator.

    References
    ----------
    Menon, arXiv 2411.09004 (metric); Vandereycken 2013 (the thin representation at depth 1).

    Examples
    --------
    >>> from manifolds.pymanopt_dln import EndToEndManifold
    >>> manifold = EndToEndManifold(4, 3, 2, depth=3)
    >>> manifold.dim
    10
    >>> point = manifold.point([[8.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> point.s
    array([8., 1.])
    """

    def __init__(
        self,
        m: int,
        n: int,
        rank: int,
        depth: float,
        *,
        normalized: bool | None = None,
        exact_log: bool = True,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        self._depth = as_depth(depth)
        self._normalized = as_normalized(normalized, self._depth)
        self._exact_log = as_flag(exact_log, "exact_log")
        self._spaces: tuple[np.ndarray, np.ndarray] | None = None
        self._rng = as_random(rng)
        name = (
            f"End-to-end {m}x{n} matrices of rank {rank} with the metric of depth {self._depth:g}"
        )
        super().__init__(m, n, rank, frozen=self._depth.infinite, name=name)
        self._geodesic_depth = depth_at_rank(self._depth, self._r, (self._m, self._n))

    @property
    def depth(self) -> float:
        """The depth N of the metric."""
        return self._depth

    @property
    def typical_dist(self) -> float:
        """The distance from zero of r equal singular values with the Frobenius norm `dim`.

        ``sqrt(N r) s^{1/N}``; ``sqrt(r) (1 + log s)`` at infinite depth, infinitely far from zero.
        """
        depth, s = self._depth, max(self.dim / math.sqrt(self._r), 1.0)
        root = float(depth.root(np.array(s)))
        if depth.infinite:
            return math.sqrt(self._r) * (1.0 + root)
        return math.sqrt(depth * depth.unit(self._normalized) * self._r) * root

    def inner_product(
        self, point: Any, tangent_vector_a: FixedRankTangent, tangent_vector_b: FixedRankTangent
    ) -> float:
        frame = self._frame(point)
        (up_a, core_a, vp_a), (up_b, core_b, vp_b) = tangent_vector_a, tangent_vector_b
        total = ((core_a / frame.kernel) * core_b).sum()
        if not self._depth.infinite:
            outside = np.einsum("ik,ik->k", up_a, up_b) + np.einsum("ik,ik->k", vp_a, vp_b)
            total = total + (outside / frame.mixed).sum()
        return float(total)

    def norm(self, point: Any, tangent_vector: FixedRankTangent) -> float:
        return math.sqrt(self.inner_product(point, tangent_vector, tangent_vector))

    def embedding(self, point: Any, tangent_vector: FixedRankTangent) -> tuple[np.ndarray, ...]:
        """Return a motion ``(du, ds, dvt)`` that moves X by Z, for Euclidean Hessians.

        u and vt need not stay orthonormal: motions of the singular vectors have no limit at equal
        singular values.
        """
        return conversion.motion_of(self._frame(point), tangent_vector)

    def euclidean_to_riemannian_gradient(
        self, point: Any, euclidean_gradient: Any
    ) -> FixedRankTangent:
        """Return ``A(E'(X))`` from the derivatives by u, s and vt, or from the matrix ``E'(X)``."""
        return conversion.gradient(self._frame(point), euclidean_gradient)

    def euclidean_to_riemannian_hessian(
        self,
        point: Any,
        euclidean_gradient: Any,
        euclidean_hessian: Any,
        tangent_vector: FixedRankTangent,
    ) -> FixedRankTangent:
        """Return the Hessian of a function of ``u @ diag(s) @ vt`` applied to a tangent vector.

        From the derivatives by u, s and vt and their derivative along `embedding`, or from the
        matrices ``E'(X)`` and ``E''(X)[Z]``.
        """
        return conversion.hessian(
            self._frame(point), euclidean_gradient, euclidean_hessian, tangent_vector
        )

    def retraction(self, point: Any, tangent_vector: FixedRankTangent) -> FixedRankPoint:
        """Move the layers along a horizontal line and multiply them: of second order.

        At depth 1 this is the nearest matrix of rank r to ``X + Z``. At depths other than integers
        up to 16 a few factors stand for all layers, and correct their error of second order.
        """
        return steps.retract(self._frame(point), tangent_vector)

    def exp(self, point: Any, tangent_vector: FixedRankTangent) -> FixedRankPoint:
        """Integrate a geodesic; ArithmeticError if it meets matrices of lower rank."""
        frame = self._frame(point)
        if not any(np.any(part) for part in tangent_vector):
            return frame.point
        return paths.geodesic_end(frame, tangent_vector, self._geodesic_depth)

    def log(self, point_a: Any, point_b: Any) -> FixedRankTangent:
        """Return the velocity at a of a geodesic that is at b at time 1.

        Found by shooting, in closed form at rank 1; the shortest one for points not far apart.
        With ``exact_log=False`` an approximation of it.

        A ValueError says that there is none (square matrices of full rank with determinants of
        opposite signs, at infinite depth other row or column spaces), an ArithmeticError that none
        was found.
        """
        a, b = self._frame(point_a), self._frame(point_b)
        # Optimizers ask for the distance and the logarithm.
        if b.last_log is not None:
            ref, exact, z = b.last_log
            if ref() is a and exact == self._exact_log:
                return z * 1.0
        paths.check_connected(a, b)
        if self._exact_log:
            z = paths.chord_velocity(a, b)
            # For points nearer than sqrt(eps) the chord errs by roundings only.
            nearest = math.sqrt(float((a.point.s**2 / a.kernel.diagonal()).min()))
            if self.norm(a.point, z) > math.sqrt(np.finfo(z.M.dtype).eps) * nearest:
                z = paths.geodesic_velocity(a, b, self._geodesic_depth)
        else:
            z = paths.chart_velocity(a, b)
        b.last_log = (weakref.ref(a), self._exact_log, z)
        # A copy: the caller may change it.
        return z * 1.0

    def dist(self, point_a: Any, point_b: Any) -> float:
        """Return the length of the geodesic of `log`; errors as there."""
        return self.norm(point_a, self.log(point_a, point_b))

    def pair_mean(self, point_a: Any, point_b: Any) -> FixedRankPoint:
        """Return the point half way on the geodesic of `log`; errors as there."""
        half = self.log(point_a, point_b) * 0.5
        return self.exp(point_a, half) if self._exact_log else self.retraction(point_a, half)

    def transport(
        self, point_a: Any, point_b: Any, tangent_vector_a: FixedRankTangent
    ) -> FixedRankTangent:
        """Return ``A_b^{1/2} P A_a^{-1/2} Z``, P the orthogonal projection on the tangents at b.

        It never lengthens a vector, and at full rank it is an isometry.
        """
        a, b = self._frame(point_a), self._frame(point_b)
        up, core, vp = tangent_vector_a
        core = core / np.sqrt(a.kernel)
        if self._depth.infinite:
            left, right = b.point.u.T @ a.point.u, a.point.vt @ b.point.vt.T
            core = np.sqrt(b.kernel) * (left @ core @ right)
            return FixedRankTangent(np.zeros_like(up), core, np.zeros_like(vp))
        root = np.sqrt(a.mixed)
        up, vp = up / root, vp / root
        (ua, _, vta), (ub, _, vtb) = a.point, b.point
        left = ua @ core + up
        zv = left @ (vta @ vtb.T) + ua @ (vp.T @ vtb.T)
        ztu = vta.T @ (left.T @ ub) + vp @ (ua.T @ ub)
        core, root = ub.T @ zv, np.sqrt(b.mixed)
        return FixedRankTangent(
            (zv - ub @ core) * root, np.sqrt(b.kernel) * core, (ztu - vtb.T @ core.T) * root
        )

    def random_point(self) -> FixedRankPoint:
        """Return a point with Haar singular vectors and singular values in [1/2, 3/2]."""
        u, v = (self._stiefel(size) for size in (self._m, self._n))
        if self._depth.infinite:
            if self._spaces is None:
                self._spaces = u, v
            turns = [self._stiefel(self._r) for _ in self._spaces]
            u, v = (q @ turn for q, turn in zip(self._spaces, turns, strict=True))
            sign = np.prod([np.linalg.det(turn) for turn in turns])
        else:
            square = self._m == self._n == self._r
            sign = np.linalg.det(u) * np.linalg.det(v) if square else 1.0
        if sign < 0:
            u[:, -1] *= -1
        s = np.sort(self._rng.uniform(0.5, 1.5, self._r))[::-1].copy()
        return FixedRankPoint(u, s, np.ascontiguousarray(v.T))

    def random_tangent_vector(self, point: Any) -> FixedRankTangent:
        """Return a tangent vector of length 1 whose direction is uniform in the metric."""
        frame, r, draw = self._frame(point), self._r, self._rng.standard_normal
        root = np.sqrt(frame.mixed)
        up, core = draw((self._m, r)) * root, draw((r, r)) * np.sqrt(frame.kernel)
        z = FixedRankTangent(up, core, draw((self._n, r)) * root)
        z = self.to_tangent_space(point, z)
        return z / self.norm(point, z)

    def _frame(self, point: Any) -> Frame:
        frame = frame_of(point, self._depth, self._normalized)
        u, s, vt = frame.point
        shapes = (self._m, self._r), (self._r,), (self._r, self._n)
        if (u.shape, s.shape, vt.shape) != shapes:
            raise ValueError(
                f"point must be (u, s, vt) of shapes {shapes[0]}, {shapes[1]} and {shapes[2]}, got "
                f"{u.shape}, {s.shape} and {vt.shape}"
            )
        return frame

    def _stiefel(self, size: int) -> np.ndarray:
        """Draw Haar orthonormal columns: QR with a positive diagonal of R."""
        q, upper = np.linalg.qr(self._rng.standard_normal((size, self._r)))
        return q * np.where(upper.diagonal() < 0, -1.0, 1.0)
