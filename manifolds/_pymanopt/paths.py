r"""Geodesics between points in thin form: exponential map and logarithm.

A geodesic of matrices of rank r stays in the spans of the frames of its point and of its velocity,
2r dimensions on either side: it is found there. Matrices of rank one are a cone over two spheres,
``g^N = d rho^2 + (rho^2/N) (|du|^2 + |dv|^2)`` with ``rho = sqrt(N) s^{1/N}``, and have their
geodesics in closed form.
"""

from __future__ import annotations

import math

import numpy as np

from dln_geometry.geometry.geodesics import exponential as geodesics
from dln_geometry.geometry.geodesics import logarithm
from dln_geometry.geometry.kernel import log_kernel_of_log
from dln_geometry.geometry.points import EndToEnd
from manifolds._convert import to_numpy, to_torch
from manifolds._depth import depth_at_rank
from manifolds._pymanopt.frame import Frame
from manifolds._pymanopt.vectors import FixedRankPoint, FixedRankTangent

__all__ = ["chart_of", "check_connected", "chord_of", "exponential", "logarithm_of"]


def exponential(frame: Frame, z: FixedRankTangent) -> FixedRankPoint:
    """Return the point at time 1 of the geodesic with velocity Z."""
    (u, s, vt), (up, core, vp) = frame.point, z
    if len(s) == 1:
        return _cone_exponential(frame, z)
    left, right = _basis(frame, u, up), _basis(frame, vt.T, vp)
    r = len(s)
    move = np.zeros((left.shape[1], right.shape[1]), s.dtype)
    move[:r, :r] = core
    move[r:, :r], move[:r, r:] = left[:, r:].T @ up, vp.T @ right[:, r:]
    eye = [np.eye(basis.shape[1], r, dtype=s.dtype) for basis in (left, right)]
    start = _point(frame, (eye[0], s, eye[1].T))
    end = geodesics.exponential(start, to_torch(move.astype(float)))
    parts = left @ to_numpy(end.u), to_numpy(end.s), to_numpy(end.vh) @ right.T
    return FixedRankPoint(*(part.astype(s.dtype) for part in parts))


def logarithm_of(frame: Frame, other: Frame) -> FixedRankTangent:
    """Return the velocity of a geodesic that is at the other point at time 1."""
    (u, s, vt), (end_u, end_s, end_vt) = frame.point, other.point
    if len(s) == 1:
        return _cone_logarithm(frame, other)
    r = len(s)
    left = _basis(frame, u, end_u - u @ (u.T @ end_u))
    right = _basis(frame, vt.T, end_vt.T - vt.T @ (vt @ end_vt.T))
    eye = [np.eye(basis.shape[1], r, dtype=s.dtype) for basis in (left, right)]
    start = _point(frame, (eye[0], s, eye[1].T))
    end = _point(frame, (left.T @ end_u, end_s, end_vt @ right))
    move = to_numpy(logarithm.logarithm(start, end))
    up, vp = left[:, r:] @ move[r:, :r], right[:, r:] @ move[:r, r:].T
    return FixedRankTangent(*(part.astype(s.dtype) for part in (up, move[:r, :r], vp)))


def chart_of(frame: Frame, other: Frame) -> FixedRankTangent:
    """Return a velocity towards another point in closed form, as if geodesics were straight.

    Both are written ``U K V^T`` with symmetric K, in the gauge in which U and V turn least. The
    frames then turn, and the N-th root of K (its logarithm at infinite depth) moves, by their
    differences: the logarithm where the singular vectors agree, near it for near points.
    """
    (u, s, vt), (end_u, end_s, end_vt) = frame.point, other.point
    frozen = math.isinf(frame.depth)
    overlap = end_u.T @ u + end_vt @ vt.T
    root, end_root = (np.log(x) if frozen else x ** (1.0 / frame.depth) for x in (s, end_s))
    if not frozen:
        overlap = end_root[:, None] * overlap * root
    a, _, bt = np.linalg.svd(overlap)
    gauge = a @ bt
    end_u, end_v = end_u @ gauge, end_vt.T @ gauge
    left, right = u.T @ end_u, vt @ end_v
    change = (gauge.T * end_root) @ gauge - np.diag(root)
    # (s_i - s_j)/(s_i^{1/N} - s_j^{1/N}) is the depth kernel of the square roots.
    with np.errstate(divide="ignore", invalid="ignore"):
        secant = np.exp(log_kernel_of_log(0.5 * np.log(s), frame.depth, False))
    core = 0.5 * ((left - left.T) * s - s[:, None] * (right - right.T)) + secant * change
    up, vp = (end_u - u @ left) * s, (end_v - vt.T @ right) * s
    if frozen:
        up, vp = np.zeros_like(up), np.zeros_like(vp)
    return FixedRankTangent(up, core, vp)


def chord_of(frame: Frame, other: Frame) -> FixedRankTangent:
    """Return the projection of ``X_b - X_a`` on the tangent space at a."""
    (u, s, vt), (end_u, end_s, end_vt) = frame.point, other.point
    left, right = u.T @ end_u, end_vt @ vt.T
    up, vp = (end_u - u @ left) * end_s @ right, (end_vt.T - vt.T @ right.T) * end_s @ left.T
    core = (left * end_s) @ right - np.diag(s)
    if math.isinf(frame.depth):
        up, vp = np.zeros_like(up), np.zeros_like(vp)
    return FixedRankTangent(up, core, vp)


def check_connected(frame: Frame, other: Frame) -> None:
    """Refuse points that lie on different manifolds."""
    (u, s, vt), (end_u, _, end_vt) = frame.point, other.point
    left, right = u.T @ end_u, end_vt @ vt.T
    frozen = math.isinf(frame.depth)
    if frozen:
        gap = max(np.abs(end_u - u @ left).max(), np.abs(end_vt - right @ vt).max())
        if gap > math.sqrt(np.finfo(u.dtype).eps):
            raise ValueError(
                "points must have the same row and column spaces at infinite depth, got spaces "
                f"that differ by {float(gap):.1e}: their distance is infinite"
            )
    # The flat matrices of depth 1 alone have geodesics through the singular ones.
    whole = u.shape[0] == vt.shape[1] == len(s) and frame.depth > 1.0
    if (frozen or whole) and np.linalg.det(left) * np.linalg.det(right) < 0:
        raise ValueError(
            "points must have determinants of one sign, got opposite ones: matrices of lower rank "
            "lie between them"
        )


def _basis(frame: Frame, q: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the columns of q, which come first, and of their move."""
    size, r = q.shape
    if size == r or math.isinf(frame.depth):
        return q
    if size <= 2 * r:
        return np.hstack((q, np.linalg.qr(q, mode="complete")[0][:, r:]))
    more = np.linalg.qr(move)[0]
    # Where the move has a smaller rank the rest of the basis is arbitrary, and not orthogonal to q.
    return np.hstack((q, np.linalg.qr(more - q @ (q.T @ more))[0]))


def _point(frame: Frame, parts: tuple[np.ndarray, ...]) -> EndToEnd:
    """Return a point of the library, in double precision: the work is small."""
    u, s, vt = (to_torch(np.ascontiguousarray(part, dtype=float)) for part in parts)
    depth = depth_at_rank(frame.depth, len(s), (u.shape[0], vt.shape[1]))
    return EndToEnd(u, s, vt, depth, frame.normalized)


def _cone_exponential(frame: Frame, z: FixedRankTangent) -> FixedRankPoint:
    (u, s, vt), (up, core, vp) = frame.point, z
    rate = core[0] / s
    if math.isinf(frame.depth):
        return FixedRankPoint(u.copy(), s * np.exp(rate), vt.copy())
    size = math.sqrt(float((up**2).sum() + (vp**2).sum()))
    # In units of rho: a straight line in the plane that the cone unrolls to.
    along, across = 1.0 + rate / frame.depth, size / (s * math.sqrt(frame.depth))
    if size == 0 and along <= 0:
        raise geodesics.GeodesicError(
            "the geodesic must keep its rank, but it runs straight into the zero matrix"
        )
    angle = math.sqrt(frame.depth) * np.arctan2(across, along)
    length = np.hypot(along, across) ** frame.depth
    unit = 1.0 / size if size > 0 else 0.0
    parts = []
    for q, move in ((u, up), (vt.T, vp)):
        share = math.sqrt(float((move**2).sum())) * unit
        direction = move / (share * size) if share > 0 else move
        parts.append(np.cos(angle * share) * q + np.sin(angle * share) * direction)
    return FixedRankPoint(parts[0], s * length, parts[1].T)


def _cone_logarithm(frame: Frame, other: Frame) -> FixedRankTangent:
    (u, s, vt), (end_u, end_s, end_vt) = frame.point, other.point
    zero = np.zeros_like
    if math.isinf(frame.depth):
        return FixedRankTangent(zero(u), (s * np.log(end_s / s))[:, None], zero(vt.T))
    moves = []
    for sign in (1.0, -1.0):
        turns = [_turn(u, sign * end_u), _turn(vt.T, sign * end_vt.T)]
        if all(turn is not None for turn in turns):
            moves.append(turns)
    if not moves:
        raise geodesics.GeodesicError("the only geodesic between the points runs through zero")
    up, vp = min(moves, key=lambda turns: sum(float((turn**2).sum()) for turn in turns))
    turned = math.sqrt(float((up**2).sum() + (vp**2).sum()))
    angle = turned / math.sqrt(frame.depth)
    ratio = (end_s / s) ** (1.0 / frame.depth)
    along, across = ratio * math.cos(angle) - 1.0, ratio * math.sin(angle)
    # across / angle is the speed of a turn by one radian.
    speed = s * (across / angle if angle > 0 else ratio)
    return FixedRankTangent(speed * up, (frame.depth * s * along)[:, None], speed * vp)


def _turn(q: np.ndarray, end: np.ndarray) -> np.ndarray | None:
    """Return the velocity on the sphere from one unit vector to another, None if there is none."""
    cosine = float((q * end).sum())
    rest = end - cosine * q
    sine = float(np.linalg.norm(rest))
    if sine == 0:
        return rest if cosine > 0 else None
    return rest * (math.atan2(sine, cosine) / sine)
