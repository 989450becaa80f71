r"""Geodesics in the roots of the singular values, ``X = U K^N V^T``, by Hamilton's equations.

K is symmetric, and the frames turn oppositely, ``U' = U w + ..`` and ``V' = -V w + ..``. With the
momenta p of K, m of the turns, and e of the moves out of range and corange, the metric of `Roots`
gives ``K' = F o p``, ``w = C o m``, and moves out of the range by ``e/x^2`` (at great depth by
``e/(N lam^2)`` with the roots lam). The angular momenta of
the rotations, ``U m_U U^T + (e U^T - U e^T)/2`` and the same for V, are constant, and give
``m = m_U - m_V`` and e. All is regular where one singular value passes through zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.geometry.geodesics.rank_loss import Lost, rank_loss
from dln_geometry.geometry.geodesics.root_metric import RootCoordinate, Rooted, Roots
from dln_geometry.geometry.kernel import Differences, small_eigh
from dln_geometry.geometry.metric import (
    Blocks,
    Box,
    apply,
    blocks_of,
    connection_blocks,
    doubled,
    push_beyond,
    squared_length,
    tangent_matrix,
)
from dln_geometry.geometry.points import orthonormalized
from dln_geometry.ode import collocate
from dln_geometry.support import Depth, as_float_tensor, as_real, shown

# Bound for the error inside of a step over the root of rtol. The error at its end, about the
# square, was below 0.2 rtol at depths 1.5 to 64.
_INSIDE = 0.02


@dataclass(frozen=True)
class Flow:
    """The geodesics of a batch of points and velocities in a box, in double precision."""

    depth: Depth
    shape: tuple[int, int, int]  # m, n and the rank r
    left: Tensor  # (B, m, m): twice the constant angular momenta of U
    right: Tensor  # (B, n, n): and of V
    speed: Tensor  # (B,): length of the velocity
    resolved: Tensor  # (B,): the least length above rounding errors
    loads: Tensor  # (c, B): lengths of the transported vectors
    rounding: float  # rounding error of matrices, over the error allowed
    through: bool  # whether to follow geodesics through zero

    @classmethod
    def of(cls, box: Box, end: float, rtol: float, through: bool = False) -> tuple[Flow, Tensor]:
        """Return the flow along the first vector of a box, which transports others, and its start.

        The point is divided by its largest singular value, since geodesics scale with it.
        """
        p = doubled(box.point.flatten())
        (m, n), r, frozen = p.shape, p.rank, p.depth.infinite
        vectors = [v.double().reshape(-1, m, n) / p.s[:, :1, None] for v in box.vectors]
        s = (p.s / p.s[:, :1]).flip(-1)
        u, vh = p.u.flip(-1), p.vh.flip(-2)
        x, z = RootCoordinate(p.depth).of(s), blocks_of(u, vh, vectors[0], frozen)
        k = Roots(x, p.depth)
        # The covectors of K and of the turns, from the parts of U^T Z V.
        even, odd = 0.5 * (z.core + z.core.mT), 0.5 * (z.core - z.core.mT)
        momentum, turning = even * k.sums / k.power_sums, odd * k.sums / k.kernel
        gauge = momentum * x.unsqueeze(-2) - x.unsqueeze(-1) * momentum
        left = u @ (turning + gauge) @ u.mT
        right = vh.mT @ (gauge - turning) @ vh
        weight = k.roots.square() / (s * k.coordinate.slope)
        if z.left is not None:
            e = (z.left * weight.unsqueeze(-2)) @ u.mT
            left = left + (e - e.mT)
        if z.right is not None:
            e = (z.right * weight.unsqueeze(-1)).mT @ vh
            right = right + (e - e.mT)
        differences = Differences(s, p.depth, k.normalized)
        lengths = [squared_length(differences, blocks_of(u, vh, v, frozen)).sqrt() for v in vectors]
        # The length of the longest move of frames or roots by 1.
        outer = not frozen and (m > r or n > r)
        size = k.roots.norm(dim=-1) * (p.depth**0.5 if outer or not k.coordinate.deep else 1.0)
        speed, loads = lengths[0], torch.stack(lengths)[1:]
        eps, shape = torch.finfo(size.dtype).eps, (m, n, r)
        resolved, rounding = size * (10.0 * eps / rtol) / end, 250.0 * eps / rtol
        flow = cls(p.depth, shape, left, right, speed, resolved, loads, rounding, through)
        # Back in the descending order of the point.
        x, momentum = x.flip(-1), momentum.flip(-1, -2)
        parts = [u.flip(-1), vh.mT.flip(-1), torch.diag_embed(x), momentum, *vectors[1:]]
        return flow, torch.cat([part.flatten(1) for part in parts], -1)

    def parts(self, state: Tensor) -> list[Tensor]:
        """Return U, V, K, its momentum, and the transported vectors."""
        m, n, r = self.shape
        shapes = [(m, r), (n, r), (r, r), (r, r)] + [(m, n)] * len(self.loads)
        pieces = state.split([a * b for a, b in shapes], -1)
        return [piece.unflatten(-1, shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def field(self, state: Tensor) -> Tensor:
        """Return the derivative of states, shape (B, S, size)."""
        u, v, k, momentum, *carried = self.parts(state)
        m, n, r = self.shape
        x, basis = small_eigh(k)
        u, v, p = u @ basis, v @ basis, basis.mT @ momentum @ basis
        roots = Roots(x, self.depth)
        pulled_left, pulled_right = self.left[:, None] @ u, self.right[:, None] @ v
        inner_left, inner_right = u.mT @ pulled_left, v.mT @ pulled_right
        turning = 0.5 * (inner_left - inner_right)
        turn, slope = turning * roots.turn, roots.slope(p, turning)
        unit = self.depth if roots.coordinate.deep else 1.0
        square = unit * roots.roots.square().unsqueeze(-2)
        moved_left, moved_right = u @ turn, -v @ turn
        outer: list[Tensor | None] = [None, None]
        if not self.depth.infinite:
            barrier = torch.zeros_like(slope)
            if m > r:
                e = pulled_left - u @ inner_left
                barrier, outer[0] = barrier + e.mT @ e, e / square
                moved_left = moved_left + outer[0]
            if n > r:
                e = pulled_right - v @ inner_right
                barrier, outer[1] = barrier + e.mT @ e, e / square
                moved_right = moved_right + outer[1]
            if m > r or n > r:
                barrier = barrier / (unit * roots.roots.unsqueeze(-1) * square)
                slope = slope - 0.5 * (barrier + barrier.mT)
        moves = [moved_left, moved_right, basis @ (roots.stretch * p), -basis @ slope]
        moves = [move @ basis.mT for move in moves]
        if carried:
            s = roots.powers
            core = roots.kernel * roots.stretch * p + roots.power_sums * turn
            left, right = outer
            left = None if left is None else left * s.unsqueeze(-2)
            right = None if right is None else right.mT * s.unsqueeze(-1)
            z = Blocks(core, left, right)
            moves += [self._carry(u, s, v.mT, z, w) for w in carried]
        return torch.cat([move.flatten(-2) for move in moves], -1)

    def _carry(self, u: Tensor, s: Tensor, vh: Tensor, z: Blocks, w: Tensor) -> Tensor:
        """Return ``-Gamma(Z, W)``."""
        k, frozen = Differences(s, self.depth, self.depth.infinite), self.depth.infinite
        blocks = blocks_of(u, vh, w, frozen)
        turned = tangent_matrix(u, vh, connection_blocks(k, z, blocks))
        bent = push_beyond(k, z, apply(k, blocks, -1.0))
        return -turned if bent is None else bent - turned

    def coordinates_at(self, state: Tensor) -> Callable[[Tensor], Tensor]:
        """Return coordinates whose norm bounds an error's length over the distance travelled."""
        u, v, k, _, *carried = self.parts(state.unsqueeze(1))
        tiny, (m, n, r) = torch.finfo(state.dtype).tiny, self.shape
        frozen, coordinate = self.depth.infinite, RootCoordinate(self.depth)
        travelled = self.speed.maximum(self.resolved).clamp_min(tiny)[:, None, None]
        if carried:
            x, basis = torch.linalg.eigh(k)
            s = Roots(x, self.depth).powers
            u, vh = u @ basis, (v @ basis).mT
            metric = Differences(s, self.depth, coordinate.deep)
            # A matrix gives small singular values up to eps times the large ones, no better.
            known = (s[..., -1] / s[..., 0]).clamp_min(1.0) * self.rounding
            loads = self.loads.clamp_min(tiny).unsqueeze(-1) * known.clamp_min(1.0)

        def coordinates(difference: Tensor) -> Tensor:
            du, dv, dk, dp, *dw = self.parts(difference)
            root, lam = self.depth**0.5, coordinate.matrix_roots(k)
            if coordinate.deep:
                # Moves out of range and corange weigh sqrt(N) lam; turns within them about 2.
                moves = [
                    2 * x if frozen or d == r else root * (x @ lam) for x, d in ((du, m), (dv, n))
                ]
                parts = [*moves, dk, dp]
            else:
                parts = [du @ lam, dv @ lam, root * dk, dp]
            scaled = [part.flatten(-2) / travelled for part in parts]
            for part, load in zip(dw, loads if carried else (), strict=True):
                b = apply(metric, blocks_of(u, vh, part, frozen), -0.5)
                scaled += [c.flatten(-2) / load.unsqueeze(-1) for c in b if c is not None]
            return torch.cat(scaled, -1)

        return coordinates

    def restricted(self, samples: Tensor) -> Flow:
        """Return the equation of some of the samples, by their indices."""
        names = ("left", "right", "speed", "resolved")
        parts = {name: getattr(self, name)[samples] for name in names}
        return replace(self, loads=self.loads[:, samples], **parts)

    def ends(self, t: np.ndarray, h: np.ndarray, states: Tensor) -> np.ndarray:
        """Return when a singular value reaches zero in a step, or inf."""
        if self.through or self.depth.infinite:
            return np.full(len(t), math.inf)
        return rank_loss(t, h, RootCoordinate(self.depth).matrix_roots(self.parts(states)[2]))


def follow_geodesic(
    box: Box, times: list[float], rtol: float, *, through: bool = False
) -> tuple[list[Rooted], list[Tensor], Lost]:
    """Follow the geodesics of a box, with its first vector as velocity, to increasing times > 0.

    Returns the points there in the moving gauge (meaningless for lost samples), the other vectors
    transported to the last time, and the lost samples. `through` follows them through zero.
    """
    flow, state = Flow.of(box, times[-1], rtol, through)
    shortest = times[-1] * math.sqrt(torch.finfo(state.dtype).eps)
    inside = max(rtol, _INSIDE * math.sqrt(rtol)) if len(times) == 1 else rtol
    journey = collocate(flow, state, times, rtol=rtol, shortest=shortest, inside=inside)
    batch, scale = box.point.batch_shape, box.point.s[..., :1].double()
    points, coordinate = [], RootCoordinate(flow.depth)
    for state in journey.states:
        u, v, k, *_ = flow.parts(state.reshape(*batch, state.shape[-1]))
        k = coordinate.scaled(k, scale)
        points.append(Rooted(orthonormalized(u, 2), k, orthonormalized(v, 2)))
    carried = flow.parts(journey.states[-1].reshape(*batch, state.shape[-1]))[4:]
    vectors = [(w * scale.unsqueeze(-1)).to(box.point.s.dtype) for w in carried]
    lost = Lost(journey.lost.reshape(batch), journey.barred.reshape(batch))
    return points, vectors, lost


def as_times(t: Any) -> Tensor:
    """Return a time or a vector of times, in double precision."""
    times = as_float_tensor(t, "t", dtype=torch.float64, device="cpu")
    if times.ndim > 1 or times.numel() == 0:
        raise ValueError(f"t must be a number or a vector, got shape {tuple(times.shape)}")
    return times


def as_tolerance(rtol: float | None, dtype: torch.dtype) -> float:
    """Return a relative tolerance of the integration."""
    eps = torch.finfo(dtype).eps
    if rtol is None:
        return eps**0.75
    number = as_real(rtol, "rtol")
    if not eps <= number < 1.0:
        raise ValueError(f"rtol must lie between eps = {eps:.1e} and 1, got {shown(rtol)}")
    return number
