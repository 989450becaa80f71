r"""The kernel and the Christoffel symbols of the depth metric at one point, each made once.

In the frames of ``X = U diag(s) V^T``, with the depth kernel a (``a_i = s_i^{2-2/N}`` outside the
range or corange), the geodesic with the velocity ``Z = (up, M, vp)`` begins as ``X + t Z + t^2 B``,

``B = sum_k v_ikj M_ik M_kj`` within the range, ``up (l o M)`` and ``vp (l o M^T)`` outwards,
``v_ikj = s_k a_ij D_ikj`` and ``l_kj = s_k a_j D_0kj``,

where ``-D`` is the second divided difference of ``N p^{1/N}`` (``log p`` at infinite depth) at the
squares ``p = s^2``, and a is divided by N. B is the second derivative of the product of the layers
along a horizontal line: geodesics of layers bend normally to the balanced manifold, which does not
change the product to second order. B with its polarisation is minus the Christoffel symbol; no
formula subtracts nearly equal singular values.
"""

from __future__ import annotations

import math
import weakref
from functools import cached_property
from typing import Any

import numpy as np

from dln_geometry.geometry.kernel import log_kernel_of_log, log_mixed_kernel, outer_ratios, ratios
from dln_geometry.geometry.metric import layers_of_step
from dln_geometry.support import Depth
from manifolds._pymanopt.vectors import FixedRankPoint, FixedRankTangent


class Frame:
    """Tables of one point; `frame_of` keeps them with the point."""

    def __init__(self, point: FixedRankPoint, depth: Depth, normalized: bool) -> None:
        self.point, self.depth, self.normalized = point, depth, normalized
        # Number q of factors of a product step.
        self.layers = layers_of_step(depth)
        if not point.s.min() > 0:
            raise ValueError(
                "point must have positive singular values, got "
                f"{float(point.s.min())}: the metric is infinite where the rank drops"
            )
        self._x = np.log(point.s)
        self._check_range()
        # The last logarithm to this point: the frame where it starts, whether it is exact, its Z.
        self.last_log: tuple[weakref.ref[Frame], bool, FixedRankTangent] | None = None

    def _check_range(self) -> None:
        """Refuse a point whose kernel is no number of its type: all lengths would be NaN."""
        info, (_, *kernels) = np.finfo(self.point.s.dtype), self._logs
        # At infinite depth the kernel from the range outwards is 0.
        logs = kernels[:1] if self.depth.infinite else kernels
        low, high = min(k.min() for k in logs), max(k.max() for k in logs)
        if not (math.log(info.tiny) < low and high < math.log(info.max)):
            raise ValueError(
                "point must have singular values whose powers s^(2-2/N) are in the range of "
                f"{info.dtype}, got {self.point.s.min():.3g} to {self.point.s.max():.3g}"
            )

    @cached_property
    def _logs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logarithms of s, of the kernel within the range, and of that from the range outwards."""
        x = self._x
        inside = _log_kernel(x, self.depth, self.normalized)
        return x, inside, log_mixed_kernel(x, self.depth, self.normalized)

    @cached_property
    def kernel(self) -> np.ndarray:
        """The kernel ``a_ij``, shape (r, r)."""
        return np.exp(self._logs[1])

    @cached_property
    def mixed(self) -> np.ndarray:
        """The kernel between range and complement, shape (r,); 0 at infinite depth."""
        return np.exp(self._logs[2])

    @cached_property
    def by_u(self) -> np.ndarray:
        """Whether u moves rather than vt, shape (r, r).

        ``u diag(s) vt`` moves by the entry (i, j) if column j of u moves by ``u_i / s_j``, or row i
        of vt by ``vt_j / s_i``: the one that divides by the larger value moves.
        """
        return self.point.s >= self.point.s[:, None]

    @cached_property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """The inverse singular values of `by_u`, zero elsewhere and on the diagonal."""
        s, zero = self.point.s, np.zeros((), dtype=self.point.s.dtype)
        left, right = np.where(self.by_u, 1 / s, zero), np.where(self.by_u, zero, 1 / s[:, None])
        np.fill_diagonal(left, 0)
        return left, right

    @cached_property
    def gradient_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The kernels over the singular value of `by_u`, and over that of the range."""
        x, inside, outside = self._logs
        # One exponential: neither factor over- or underflows alone.
        return np.exp(inside - np.maximum(x, x[:, None])), np.exp(outside - x)

    @cached_property
    def christoffel(self) -> tuple[np.ndarray, np.ndarray]:
        """The module's tables v, shape (r, r, r), and l, shape (r, r)."""
        return self._inner_christoffel, outer_christoffel(self._x, self.depth)

    @cached_property
    def _inner_christoffel(self) -> np.ndarray:
        log_kernel = self._logs[1]
        if not self.normalized and self.depth > 1.0:
            log_kernel = log_kernel - self.depth.log
        return inner_christoffel(self._x, self.depth, log_kernel)

    @cached_property
    def roots(self) -> tuple[np.ndarray, np.ndarray]:
        """Square roots of the kernels: the lengths of orthonormal moves."""
        return np.sqrt(self.kernel), np.sqrt(self.mixed)

    @cached_property
    def step_weights(self) -> np.ndarray:
        """Weights ``l_i^{q-b} l_j^{b-1} / a_ij(q)``, ``l = s^{1/q}``, of factor b; (q, r, r)."""
        q, x = self.layers, self._x
        after = np.arange(q, dtype=x.dtype)[:, None, None] / q
        return np.exp((1 - 1 / q - after) * x[:, None] + after * x - self._log_step_kernel)

    @cached_property
    def step_correction(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The Christoffel tables of the depth minus those of depth q, `None` if they are equal.

        On the diagonal the factors move exactly; at infinite depth nothing moves outside.
        """
        if self.depth == self.layers:
            return None
        x, q, k = self._x, Depth(self.layers), np.arange(len(self.point.s))
        log_kernel = self._log_step_kernel - q.log
        core = self._inner_christoffel - inner_christoffel(x, q, log_kernel)
        core[k, k, k] = 0
        if self.depth.infinite:
            return core, np.zeros_like(core[0])
        outside = outer_christoffel(x, self.depth) - outer_christoffel(x, q)
        outside[k, k] = 0
        return core, outside

    @cached_property
    def _log_step_kernel(self) -> np.ndarray:
        """The logarithm of the kernel of the depth q."""
        if self.depth == self.layers and not self.normalized:
            return self._logs[1]
        return _log_kernel(self._x, Depth(self.layers), False)


def frame_of(point: Any, depth: Depth, normalized: bool) -> Frame:
    """Return the tables of a point, and keep them with it."""
    frame: Frame | None = getattr(point, "frame", None)
    if frame is None or (frame.depth, frame.normalized) != (depth, normalized):
        if not isinstance(point, FixedRankPoint):
            point = FixedRankPoint(*(np.asarray(part) for part in point))
        frame = Frame(point, depth, normalized)
        point.frame = frame
    return frame


def inner_christoffel(x: np.ndarray, depth: Depth, log_kernel: np.ndarray) -> np.ndarray:
    """Return v of the module's text from ``x = log s`` and the logarithm of a kernel over N."""
    # Units of the largest value avoid over- and underflow.
    top = x.max()
    x, log_kernel = x - top, log_kernel - depth.exponent * top
    with np.errstate(divide="ignore", invalid="ignore"):
        table = ratios(x, depth, log_kernel)
    table *= np.exp(x[:, None] - log_kernel - top)
    return table


def outer_christoffel(x: np.ndarray, depth: Depth) -> np.ndarray:
    """Return l of the module's text from ``x = log s``."""
    return outer_ratios(x, depth, x[:, None])


def _log_kernel(x: np.ndarray, depth: Depth, normalized: bool) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return log_kernel_of_log(x, depth, normalized)
