r"""What the depth metric is made of at one point: small tables, each made once.

In the frames of ``X = U diag(s) V^T``, with the depth kernel a (``a_i = s_i^{2-2/N}`` outside the
range or corange), the geodesic with the velocity ``Z = (up, M, vp)`` begins as ``X + t Z + t^2 B``,

``B = sum_k v_ikj M_ik M_kj`` within the range, ``up (l o M)`` and ``vp (l o M^T)`` outwards,
``v_ikj = s_k a_ij D_ikj`` and ``l_kj = s_k a_j D_0kj``,

where ``-D`` is the second divided difference of ``N p^{1/N}`` (``log p`` at infinite depth) at the
squares ``p = s^2``, and a is divided by N. It is the second derivative of the product of the layers
along a horizontal line upstairs: the geodesics there bend normally to the balanced manifold, which
the product does not see. B with its polarisation is minus the Christoffel symbol, without a
difference of nearly equal singular values anywhere.
"""

from __future__ import annotations

import math
import weakref
from functools import cached_property
from typing import Any

import numpy as np
import torch

from dln_geometry.geometry.derivative import log_second_difference
from dln_geometry.geometry.kernel import log_kernel_of_log, log_mixed_kernel
from dln_geometry.geometry.step import layers_of_step
from manifolds._convert import to_torch
from manifolds._pymanopt.vectors import FixedRankPoint, FixedRankTangent

__all__ = ["Frame", "christoffel_tables", "frame_of"]

_MOST_LAYERS = 16


class Frame:
    """Tables of one point; `frame_of` keeps them with the point."""

    def __init__(self, point: FixedRankPoint, depth: float, normalized: bool) -> None:
        self.point, self.depth, self.normalized = point, depth, normalized
        if not point.s.min() > 0:
            raise ValueError(
                "point must have positive singular values, got "
                f"{float(point.s.min())}: the metric is infinite where the rank drops"
            )
        self._x = to_torch(point.s).log()
        # The singular values (an array, by its identity) of the point from which the last logarithm
        # to this one was taken, and that logarithm.
        self.last_log: tuple[weakref.ref[np.ndarray], FixedRankTangent] | None = None

    @cached_property
    def _logs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logarithms of s, of the kernel, and of it between the range and what is outside."""
        x = self._x
        inside = log_kernel_of_log(x, self.depth, self.normalized)
        outside = log_mixed_kernel(x, self.depth, self.normalized)
        return x.numpy(), inside.numpy(), outside.numpy()

    @cached_property
    def kernel(self) -> np.ndarray:
        """The kernel ``a_ij``, shape (r, r)."""
        return np.exp(self._logs[1])

    @cached_property
    def mixed(self) -> np.ndarray:
        """The kernel between the range and what is outside it, shape (r,); 0 at infinite depth."""
        return np.exp(self._logs[2])

    @cached_property
    def by_u(self) -> np.ndarray:
        """Where the columns of u move rather than the rows of vt; shape (r, r), of truth values.

        ``u diag(s) vt`` moves by the entry (i, j) if column j of u moves by ``u_i / s_j``, or row i
        of vt by ``vt_j / s_i``: the larger value is divided by.
        """
        s = self.point.s
        return s >= s[:, None]

    @cached_property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """The inverse singular values of `by_u`, zero elsewhere and on the diagonal."""
        s, zero = self.point.s, np.zeros((), dtype=self.point.s.dtype)
        left, right = np.where(self.by_u, 1 / s, zero), np.where(self.by_u, zero, 1 / s[:, None])
        np.fill_diagonal(left, 0)
        return left, right

    @cached_property
    def gradient_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The cometric over the singular value of `by_u`, and over that outside the range.

        As one exponential, which no small singular value takes out of the range of numbers.
        """
        x, inside, outside = self._logs
        return np.exp(inside - np.maximum(x, x[:, None])), np.exp(outside - x)

    @cached_property
    def christoffel(self) -> tuple[np.ndarray, np.ndarray]:
        """The tables v, shape (r, r, r), and l, shape (r, r)."""
        return christoffel_tables(self._x, self.depth)

    @cached_property
    def roots(self) -> tuple[np.ndarray, np.ndarray]:
        """Square roots of the kernel, within and outside the range: units of orthonormal moves."""
        return np.sqrt(self.kernel), np.sqrt(self.mixed)

    @cached_property
    def layers(self) -> int:
        """Number q of factors of a product step: the depth itself if it is a small integer."""
        return layers_of_step(self.depth)

    @cached_property
    def step_weights(self) -> np.ndarray:
        """What a move puts into every factor, ``l_i^{q-b} l_j^{b-1} / a_ij(q)``, ``l = s^{1/q}``.

        First factor first; shape (q, r, r).
        """
        q, x = self.layers, self._logs[0]
        inside = self._logs[1]
        if self.depth != q or self.normalized:
            inside = log_kernel_of_log(self._x, float(q), False).numpy()
        after = np.arange(q, dtype=x.dtype)[:, None, None] / q
        return np.exp((1 - 1 / q - after) * x[:, None] + after * x - inside)

    @cached_property
    def step_correction(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What the tables of the depth have more than those of the factors of a product step.

        `None` where the step has one factor for every layer. On the diagonal the factors move
        exactly.
        """
        if self.depth == self.layers:
            return None
        pairs = zip(self.christoffel, christoffel_tables(self._x, float(self.layers)), strict=True)
        core, outside = (a - b for a, b in pairs)
        k = np.arange(len(self.point.s))
        core[k, k, k] = 0
        outside[k, k] = 0
        return core, outside


def frame_of(point: Any, depth: float, normalized: bool) -> Frame:
    """Return the tables of a point, which keeps them for the next call."""
    frame: Frame | None = getattr(point, "_frame", None)
    if frame is None or (frame.depth, frame.normalized) != (depth, normalized):
        if not isinstance(point, FixedRankPoint):
            point = FixedRankPoint(*(np.asarray(part) for part in point))
        frame = Frame(point, depth, normalized)
        point._frame = frame
    return frame


def christoffel_tables(x: torch.Tensor, depth: float) -> tuple[np.ndarray, np.ndarray]:
    """Return v and l of the module's text from ``x = log s``."""
    if depth.is_integer() and 2 <= depth <= _MOST_LAYERS:
        core = _integer_table(x, int(depth))
    else:
        kernel = log_kernel_of_log(x, depth, True)
        xi, xk, xj = 2 * x[:, None, None], 2 * x[:, None], 2 * x
        core = log_second_difference(xi, xk, xj, depth) + x[:, None] + kernel.unsqueeze(-2)
        core = core.exp().numpy()
    # With two of three values zero the differences are those of p^{1-1/N}, relative to those of p.
    gap = 2 * (x.unsqueeze(-1) - x).abs()
    apart = gap > 0
    rate = 1 - 1 / depth
    safe = torch.where(apart, gap, 1.0)
    ratio = torch.where(apart, torch.expm1(-rate * safe) / torch.expm1(-safe), rate)
    lead = 0.0 if math.isinf(depth) else 2 / depth
    outside = (lead * (x.unsqueeze(-1) - torch.maximum(x.unsqueeze(-1), x)) - x.unsqueeze(-1)).exp()
    return core, (outside * ratio).numpy()


def _integer_table(x: torch.Tensor, depth: int) -> np.ndarray:
    """Return v by sums of positive numbers, ``s_k h_{N-2}(y_i, y_k, y_j) / (a_ik a_kj)``.

    h are the complete homogeneous symmetric polynomials of ``y = s^{2/N}``: what the double sum
    over pairs of layers comes to. Much quicker than the differences of real depths.
    """
    kernel = log_kernel_of_log(x, float(depth), False).numpy()
    log_s = x.numpy()
    y = np.exp(log_s * (2 / depth))
    pair, total = np.ones((len(y), len(y)), y.dtype), np.ones((len(y),) * 3, y.dtype)
    power = np.ones_like(y)
    for _ in range(depth - 2):
        power = power * y
        pair = y[:, None] * pair + power
        total = y[:, None, None] * total + pair
    return np.exp(np.log(total) + log_s[:, None] - kernel[:, :, None] - kernel)
