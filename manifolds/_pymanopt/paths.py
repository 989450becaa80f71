r"""Geodesics between points in thin form: exponential map and logarithm.

A geodesic of matrices of rank r stays in the spans of the frames of its point and of its velocity,
2r dimensions on either side: the library integrates it there. Matrices of rank one are a cone over
two spheres, ``g^N = d rho^2 + (rho^2/N) (|du|^2 + |dv|^2)`` with ``rho = sqrt(N) s^{1/N}``: their
geodesics have closed forms.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from dln_geometry.geometry.geodesics import GeodesicError, exponential, logarithm
from dln_geometry.geometry.kernel import log_kernel_of_log
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import Depth
from manifolds._pymanopt.frame import Frame
from manifolds._pymanopt.vectors import FixedRankPoint, FixedRankTangent


def geodesic_end(frame: Frame, z: FixedRankTangent, depth: Depth) -> FixedRankPoint:
    """Return the point at time 1 of the geodesic with velocity Z; `depth` as of `depth_at_rank`."""
    (u, s, vt), (up, core, vp), r = frame.point, z, len(frame.point.s)
    if r == 1:
        return _cone_end(frame, z)
    left, right = _span(frame, u, up), _span(frame, vt.T, vp)
    move = np.zeros((left.shape[1], right.shape[1]), s.dtype)
    move[:r, :r] = core
    move[r:, :r], move[:r, r:] = left[:, r:].T @ up, vp.T @ right[:, r:]
    end = exponential(_start_in(left, right, frame, depth), torch.from_numpy(move.astype(float)))
    parts = left @ end.u.numpy(), end.s.numpy(), end.vh.numpy() @ right.T
    return FixedRankPoint(*(part.astype(s.dtype) for part in parts))


def geodesic_velocity(frame: Frame, other: Frame, depth: Depth) -> FixedRankTangent:
    """Return the velocity of a geodesic that is at the other point at time 1."""
    (u, s, vt), (end_u, end_s, end_vt), r = frame.point, other.point, len(frame.point.s)
    if r == 1:
        return _cone_velocity(frame, other)
    left = _span(frame, u, end_u - u @ (u.T @ end_u))
    right = _span(frame, vt.T, end_vt.T - vt.T @ (vt @ end_vt.T))
    end = _in_library(frame, (left.T @ end_u, end_s, end_vt @ right), depth)
    move = logarithm(_start_in(left, right, frame, depth), end).numpy()
    up, vp = left[:, r:] @ move[r:, :r], right[:, r:] @ move[:r, r:].T
    return FixedRankTangent(*(part.astype(s.dtype) for part in (up, move[:r, :r], vp)))


def chart_velocity(frame: Frame, other: Frame) -> FixedRankTangent:
    """Return a velocity towards another point in closed form.

    Both points are ``U K V^T`` with symmetric K, in the gauge in which U and V turn least. The
    frames and the N-th root of K (its logarithm at infinite depth) move by their differences: the
    logarithm where the singular vectors agree, near it for near points.
    """
    (u, s, vt), (end_u, end_s, end_vt) = frame.point, other.point
    overlap = end_u.T @ u + end_vt @ vt.T
    root, end_root = frame.depth.root(s), frame.depth.root(end_s)
    if not frame.depth.infinite:
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
    return _within(frame, (end_u - u @ left) * s, core, (end_v - vt.T @ right) * s)


def chord_velocity(frame: Frame, other: Frame) -> FixedRankTangent:
    """Return the projection of ``X_b - X_a`` on the tangent space at a."""
    (u, s, vt), (end_u, end_s, end_vt) = frame.point, other.point
    left, right = u.T @ end_u, end_vt @ vt.T
    up, vp = (end_u - u @ left) * end_s @ right, (end_vt.T - vt.T @ right.T) * end_s @ left.T
    return _within(frame, up, (left * end_s) @ right - np.diag(s), vp)


def _within(frame: Frame, up: np.ndarray, core: np.ndarray, vp: np.ndarray) -> FixedRankTangent:
    """Return a tangent vector, at infinite depth without moves of the frozen spaces."""
    if frame.depth.infinite:
        up, vp = np.zeros_like(up), np.zeros_like(vp)
    return FixedRankTangent(up, core, vp)


def check_connected(frame: Frame, other: Frame) -> None:
    """Refuse points that lie on different manifolds."""
    (u, s, vt), (end_u, _, end_vt) = frame.point, other.point
    left, right = u.T @ end_u, end_vt @ vt.T
    frozen = frame.depth.infinite
    if frozen:
        gap = max(np.abs(end_u - u @ left).max(), np.abs(end_vt - right @ vt).max())
        if gap > math.sqrt(np.finfo(u.dtype).eps):
            raise ValueError(
                "points must have the same row and column spaces at infinite depth, got spaces "
                f"that differ by {float(gap):.1e}: their distance is infinite"
            )
    # Only the flat geodesics of depth 1 cross the singular matrices.
    whole = u.shape[0] == vt.shape[1] == len(s) and frame.depth > 1.0
    if (frozen or whole) and np.linalg.det(left) * np.linalg.det(right) < 0:
        raise ValueError(
            "points must have determinants of one sign, got opposite ones: matrices of lower rank "
            "lie between them"
        )


def _span(frame: Frame, q: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the columns of q, which come first, and of their move."""
    size, r = q.shape
    if size == r or frame.depth.infinite:
        return q
    if size <= 2 * r:
        return np.hstack((q, np.linalg.qr(q, mode="complete")[0][:, r:]))
    more = np.linalg.qr(move)[0]
    # Where the move has a smaller rank the rest of the basis is arbitrary, and not orthogonal to q.
    return np.hstack((q, np.linalg.qr(more - q @ (q.T @ more))[0]))


def _start_in(left: np.ndarray, right: np.ndarray, frame: Frame, depth: Depth) -> EndToEnd:
    """Return the point in bases that begin with its own frames."""
    s = frame.point.s
    parts = np.eye(left.shape[1], len(s)), s, np.eye(len(s), right.shape[1])
    return _in_library(frame, parts, depth)


def _in_library(frame: Frame, parts: tuple[np.ndarray, ...], depth: Depth) -> EndToEnd:
    """Return a point of the library, in double precision: the work is small."""
    u, s, vt = (torch.from_numpy(np.array(part, float, order="C")) for part in parts)
    return EndToEnd(u, s, vt, depth, frame.normalized, check=False)


def _cone_end(frame: Frame, z: FixedRankTangent) -> FixedRankPoint:
    (u, s, vt), (up, core, vp), depth = frame.point, z, float(frame.depth)
    rate = core[0] / s
    if frame.depth.infinite:
        return FixedRankPoint(u.copy(), s * np.exp(rate), vt.copy())
    size = math.sqrt(float((up**2).sum() + (vp**2).sum()))
    # In units of rho: a straight line in the plane that the cone unrolls to.
    along, across = 1.0 + rate / depth, size / (s * math.sqrt(depth))
    if size == 0 and along <= 0:
        raise GeodesicError(
            "the geodesic must keep its rank, but it runs straight into the zero matrix"
        )
    angle = math.sqrt(depth) * np.arctan2(across, along)
    length = np.hypot(along, across) ** depth
    unit = 1.0 / size if size > 0 else 0.0
    parts = []
    for q, move in ((u, up), (vt.T, vp)):
        share = math.sqrt(float((move**2).sum())) * unit
        direction = move / (share * size) if share > 0 else move
        parts.append(np.cos(angle * share) * q + np.sin(angle * share) * direction)
    return FixedRankPoint(parts[0], s * length, parts[1].T)


def _cone_velocity(frame: Frame, other: Frame) -> FixedRankTangent:
    (u, s, vt), (end_u, end_s, end_vt), depth = frame.point, other.point, float(frame.depth)
    if frame.depth.infinite:
        core = (s * np.log(end_s / s))[:, None]
        return FixedRankTangent(np.zeros_like(u), core, np.zeros_like(vt.T))
    moves = []
    for sign in (1.0, -1.0):
        turns = [_great_circle(u, sign * end_u), _great_circle(vt.T, sign * end_vt.T)]
        if all(turn is not None for turn in turns):
            moves.append(turns)
    if not moves:
        raise GeodesicError("the only geodesic between the points runs through zero")
    up, vp = min(moves, key=lambda turns: sum(float((turn**2).sum()) for turn in turns))
    angle = math.sqrt(float((up**2).sum() + (vp**2).sum())) / math.sqrt(depth)
    ratio = (end_s / s) ** (1.0 / depth)
    along, across = ratio * math.cos(angle) - 1.0, ratio * math.sin(angle)
    # across / angle is the speed of a turn by one radian.
    speed = s * (across / angle if angle > 0 else ratio)
    return FixedRankTangent(speed * up, (depth * s * along)[:, None], speed * vp)


def _great_circle(q: np.ndarray, end: np.ndarray) -> np.ndarray | None:
    """Return the velocity on the sphere from one unit vector to another, None for opposite ones."""
    cosine = float((q * end).sum())
    rest = end - cosine * q
    sine = float(np.linalg.norm(rest))
    if sine == 0:
        return rest if cosine > 0 else None
    return rest * (math.atan2(sine, cosine) / sine)
