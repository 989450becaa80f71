r"""From derivatives of a cost of ``(u, s, vt)`` to gradients and Hessians in the depth metric.

A cost is a function of ``X = u diag(s) vt``. Many motions of the three arguments move X by a
tangent vector Z, and all give the same derivative. `motion_of` divides neither by differences of
singular values, as the motion of the true singular vectors does, nor by the smaller one of a pair.
Its adjoint maps the derivatives by u, s, vt to the covector; second derivatives lose those of the
product itself.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from manifolds._pymanopt.frame import Frame
from manifolds._pymanopt.vectors import FixedRankTangent

_Derivative = tuple[np.ndarray, np.ndarray, np.ndarray]


class _Blocks(NamedTuple):
    """A covector: ``U^T G V``, ``(1 - U U^T) G V`` and ``(1 - V V^T) G^T U``."""

    core: np.ndarray
    left: np.ndarray
    right: np.ndarray


def motion_of(frame: Frame, z: FixedRankTangent) -> _Derivative:
    """Return motions ``(du, ds, dvt)`` of the three arguments that move their product by Z."""
    (u, s, vt), (left, right), (up, core, vp) = frame.point, frame.sides, z
    return u @ (left * core) + up / s, core.diagonal().copy(), (right * core) @ vt + (vp / s).T


def gradient(frame: Frame, derivative: Any) -> FixedRankTangent:
    """Return the Riemannian gradient: the cometric of the derivative of the cost.

    `derivative` is a tuple of the derivatives by u, s and vt, or the one in X of shape (m, n), of
    any type that multiplies arrays from the left and has a transpose.
    """
    u, s, vt = frame.point
    gu, gs, gvt = _derivative(frame, derivative, "euclidean_gradient")
    weights, outside = frame.gradient_weights
    utgu, gvtv = u.T @ gu, gvt @ vt.T
    core = weights * np.where(frame.by_u, utgu, gvtv)
    mismatch = _mismatch(s, utgu, gvtv)
    np.fill_diagonal(mismatch, 0)
    # Some costs, like |X|^2 as the sum of s^2, use that u and vt are orthonormal.
    if mismatch.max() > _precision(s) ** 2 * float(s[0] * np.abs(utgu).max()):
        size = _size(s, gu, gs, gvt)
        if mismatch.max() > _precision(s) ** 2 * size:
            core = _general_core(frame, core, utgu, gvtv, mismatch / size)
    np.fill_diagonal(core, frame.kernel.diagonal() * gs)
    up, vp = gu - u @ utgu, (gvt - gvtv @ vt).T
    up *= outside
    vp *= outside
    return FixedRankTangent(up, core, vp)


def hessian(
    frame: Frame, derivative: Any, derivative_along: Any, z: FixedRankTangent
) -> FixedRankTangent:
    r"""Return the Riemannian Hessian applied to Z.

    ``A( l^*(h) - <G, d^2 pi(l Z, l .)> - <G, Gamma(Z, .)> )`` with l Z the motion of Z, h the
    derivative of the derivatives by u, s, vt along it, and ``pi(u, s, vt) = u diag(s) vt``. The
    normal parts of the last two terms cancel. `derivative_along` is the derivative of `derivative`
    along `motion_of` z, of its kind.
    """
    u, s, vt = frame.point
    if _is_matrix(derivative) != _is_matrix(derivative_along):
        raise ValueError(
            "euclidean_gradient and euclidean_hessian must both be matrices of the shape of X, or "
            "both be derivatives by (u, s, vt)"
        )
    hu, hs, hvt = _derivative_along(frame, derivative, derivative_along, z)
    gu, gs, gvt = _derivative(frame, derivative, "euclidean_gradient")
    g = _blocks(frame, gu, gs, gvt)
    left, right = frame.sides
    alpha, beta, ds = left * z.M, right * z.M, z.M.diagonal()
    up_left, right_vp = z.up.T @ g.left, g.right.T @ z.vp

    by_u = u.T @ hu - (g.core * ds + (g.core @ beta.T) * s + right_vp)
    by_vt = hvt @ vt.T - ((alpha * s).T @ g.core + ds[:, None] * g.core + up_left)
    core = left * by_u + right * by_vt
    by_s = hs - ((alpha * g.core).sum(0) + (g.core * beta).sum(1))
    by_s = by_s - (right_vp.diagonal() + up_left.diagonal()) / s
    np.fill_diagonal(core, by_s)
    above = hu / s - (g.left * (ds / s) + g.left @ beta.T)
    below = hvt.T / s - (g.right * (ds / s) + g.right @ alpha)
    if frame.depth > 1.0:
        v, outside = frame.christoffel
        core = core + np.einsum("ikj,ij,ik->kj", v, g.core, z.M)
        core = core + np.einsum("ikj,ij,kj->ik", v, g.core, z.M)
        core = core + outside * up_left + (outside * right_vp.T).T
        above = above + g.left @ (outside * z.M).T
        below = below + g.right @ (outside.T * z.M)
    above, below = above - u @ (u.T @ above), below - vt.T @ (vt @ below)
    return FixedRankTangent(above * frame.mixed, core * frame.kernel, below * frame.mixed)


def _blocks(frame: Frame, gu: np.ndarray, gs: np.ndarray, gvt: np.ndarray) -> _Blocks:
    """Return the covector of the derivatives of a function of the product."""
    u, s, vt = frame.point
    left, right = frame.sides
    utgu, gvtv = u.T @ gu, gvt @ vt.T
    mismatch = _mismatch(s, utgu, gvtv)
    np.fill_diagonal(mismatch, s * np.abs(utgu.diagonal() - s * gs))
    if mismatch.max() > _precision(s) * _size(s, gu, gs, gvt):
        raise ValueError(
            "cost must be a function of the product u @ diag(s) @ vt for a Hessian, got "
            "derivatives by u, s and vt that do not belong together: write |X|^2, say, by the "
            "product as well"
        )
    core = left * utgu + right * gvtv
    np.fill_diagonal(core, gs)
    return _Blocks(core, (gu - u @ utgu) / s, (gvt.T - vt.T @ gvtv.T) / s)


def _mismatch(s: np.ndarray, utgu: np.ndarray, gvtv: np.ndarray) -> np.ndarray:
    """Return the size of ``S U^T gu - gvt V S``, zero for functions of the product."""
    return np.abs(s[:, None] * utgu - gvtv * s)


def _size(s: np.ndarray, gu: np.ndarray, gs: np.ndarray, gvt: np.ndarray) -> float:
    """Return the size to which a mismatch is compared."""
    weighted = s * gs
    total = float(np.vdot(gu, gu) + np.vdot(gvt, gvt) + weighted @ weighted)
    return float(s.max()) * math.sqrt(total) + float(np.finfo(s.dtype).tiny)


def _precision(s: np.ndarray) -> float:
    """Return a relative size above which a mismatch is no rounding error.

    Rounding errors are relative to the residual, which may be far larger than the gradient.
    """
    return float(np.finfo(s.dtype).eps) ** 0.25


def _general_core(
    frame: Frame, core: np.ndarray, utgu: np.ndarray, gvtv: np.ndarray, mismatch: np.ndarray
) -> np.ndarray:
    """Return the core of the gradient where a cost uses that u and vt are orthonormal.

    Only the antisymmetric parts of ``U^T gu`` and ``V^T gvt^T`` count then, derivatives along
    motions of the singular vectors: all but the symmetric part between equal singular values.
    """
    s = frame.point.s
    precision = _precision(s)
    difference = (s - s[:, None]) * (s + s[:, None])
    if bool(((difference == 0) & (mismatch > precision)).any()):
        raise ValueError(
            "cost must be a function of the product u @ diag(s) @ vt where singular values are "
            "equal, got derivatives by u and vt that do not determine the gradient"
        )
    general = (mismatch > precision**2) & (difference != 0)
    turn_u, turn_v = utgu - utgu.T, gvtv.T - gvtv
    safe = np.where(general, difference, 1)
    return np.where(general, frame.kernel * (turn_u * s + s[:, None] * turn_v) / safe, core)


def _derivative(frame: Frame, derivative: Any, name: str) -> _Derivative:
    """Return derivatives by u, s and vt, of a matrix those of ``<G, u diag(s) vt>``."""
    u, s, vt = frame.point
    if _is_matrix(derivative):
        shape = tuple(getattr(derivative, "shape", ()))
        if shape != (len(u), vt.shape[1]):
            raise ValueError(
                f"{name} must be a matrix of the shape {(len(u), vt.shape[1])} of X, got {shape}"
            )
        gv, gu = derivative @ vt.T, (derivative.T @ u).T
        return gv * s, np.einsum("ik,ik->k", u, gv), s[:, None] * gu
    parts = tuple(np.asarray(part) for part in derivative)
    if tuple(part.shape for part in parts) != (u.shape, s.shape, vt.shape):
        raise ValueError(
            f"{name} must have the shapes of (u, s, vt), {u.shape}, {s.shape} and {vt.shape}, or "
            f"that of X, got {' and '.join(str(part.shape) for part in parts)}"
        )
    return parts  # pyright: ignore[reportReturnType]


def _derivative_along(
    frame: Frame, derivative: Any, derivative_along: Any, z: FixedRankTangent
) -> _Derivative:
    """Return the derivative of `_derivative` along the motion of Z."""
    h = _derivative(frame, derivative_along, "euclidean_hessian")
    if not _is_matrix(derivative):
        return h
    (u, s, vt), (du, ds, dvt) = frame.point, motion_of(frame, z)
    gv, gu = derivative @ vt.T, (derivative.T @ u).T
    gdv, gdu = derivative @ dvt.T, (derivative.T @ du).T
    by_s = np.einsum("ik,ik->k", du, gv) + np.einsum("ik,ik->k", u, gdv)
    return h[0] + gdv * s + gv * ds, h[1] + by_s, h[2] + s[:, None] * gdu + ds[:, None] * gu


def _is_matrix(derivative: Any) -> bool:
    return not isinstance(derivative, tuple | list)
