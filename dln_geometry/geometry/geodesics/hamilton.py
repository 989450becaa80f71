r"""Geodesics in the roots of the singular values, ``X = U K^N V^T``, by Hamilton's equations.

K is symmetric, and the frames turn oppositely, ``U' = U w + ..`` and ``V' = -V w + ..``. With the
momentum p of K, that of the turns m, and those of leaving range and corange, the metric of `Roots`
has ``K' = F o p``, ``w = C o m``, and what leaves is ``e/x^2``. The angular momenta of the metric's
rotations, ``U m_U U^T + (e U^T - U e^T)/2`` and its like, are constants, from which
``m = m_U - m_V`` and e follow at every time. Nothing of this is singular where one singular value
passes through zero, and small ones are as precise as large ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from dln_geometry.geometry.geodesics.root_metric import Roots, root
from dln_geometry.geometry.kernel import Differences
from dln_geometry.geometry.metric import (
    Blocks,
    Box,
    apply,
    blocks_of,
    connection_blocks,
    push_beyond,
    squared_length,
    tangent_matrix,
)
from dln_geometry.ode import nodes_and_weights

__all__ = ["Flow"]

_HUGE = 1e100


@dataclass(frozen=True)
class Flow:
    """The geodesics of a batch of points and velocities in a box, in double precision.

    Attributes
    ----------
    depth : float
    shape : tuple of int
        m, n and the rank r.
    left, right : Tensor, shape (B, m, m), (B, n, n)
        Twice the constant angular momenta.
    speed, resolved : Tensor, shape (B,)
        Length of the velocity, and below which it is not resolved.
    loads : Tensor, shape (c, B)
        Lengths of the vectors that are carried.
    rounding : float
        Of matrices, over the error allowed.
    through : bool
        Whether geodesics are followed through zero.
    """

    depth: float
    shape: tuple[int, int, int]
    left: Tensor
    right: Tensor
    speed: Tensor
    resolved: Tensor
    loads: Tensor
    rounding: float
    through: bool

    @classmethod
    def of(
        cls, box: Box, duration: float, rtol: float, through: bool = False
    ) -> tuple[Flow, Tensor]:
        """Return the flow from the point of a box along its first vector, and its first state.

        Further vectors are carried along. The state is that of the point divided by its largest
        singular value: geodesics do not know about scale.
        """
        p = box.point
        m, n, r = *p.shape, p.rank
        u, s, vh = (
            p.u.reshape(-1, m, r).double(),
            p.s.reshape(-1, r).double(),
            p.vh.reshape(-1, r, n).double(),
        )
        vectors = [v.double().reshape(-1, m, n) / s[:, :1, None] for v in box.vectors]
        s = (s / s[:, :1]).flip(-1)
        u, vh = u.flip(-1), vh.flip(-2)
        frozen = math.isinf(p.depth)
        x = root(s, p.depth)
        k = Roots(x, p.depth)
        z = blocks_of(u, vh, vectors[0], frozen)
        # The covectors of K and of the turns, from the parts of U^T Z V.
        even, odd = 0.5 * (z.core + z.core.mT), 0.5 * (z.core - z.core.mT)
        momentum = even * k.sums / k.power_sums
        turning = odd * k.sums / k.kernel
        gauge = momentum * x.unsqueeze(-2) - x.unsqueeze(-1) * momentum
        left = u @ (turning + gauge) @ u.mT
        right = vh.mT @ (gauge - turning) @ vh
        if z.left is not None:
            e = (z.left * (x.square() / s).unsqueeze(-2)) @ u.mT
            left = left + (e - e.mT)
        if z.right is not None:
            e = (z.right * (x.square() / s).unsqueeze(-1)).mT @ vh
            right = right + (e - e.mT)
        differences = Differences(s, p.depth, frozen)
        lengths = [squared_length(differences, blocks_of(u, vh, v, frozen)).sqrt() for v in vectors]
        size = torch.full_like(lengths[0], r**0.5) if frozen else p.depth**0.5 * x.norm(dim=-1)
        flow = cls(
            p.depth,
            (m, n, r),
            left,
            right,
            lengths[0],
            size * (10.0 * torch.finfo(size.dtype).eps / rtol) / duration,
            torch.stack(lengths[1:]) if len(lengths) > 1 else size.new_zeros(0, len(size)),
            250.0 * torch.finfo(size.dtype).eps / rtol,
            through,
        )
        # In the order of the point again.
        x, momentum = x.flip(-1), momentum.flip(-1, -2)
        parts = [u.flip(-1), vh.mT.flip(-1), torch.diag_embed(x), momentum, *vectors[1:]]
        return flow, torch.cat([part.flatten(1) for part in parts], -1).unsqueeze(0)

    def parts(self, state: Tensor) -> list[Tensor]:
        """Return U, V, K, its momentum, and what is carried."""
        m, n, r = self.shape
        shapes = [(m, r), (n, r), (r, r), (r, r)] + [(m, n)] * len(self.loads)
        pieces = state.split([a * b for a, b in shapes], -1)
        return [piece.unflatten(-1, shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def field(self, state: Tensor) -> Tensor:
        """Return the derivative of states, shape (1, S, B, size)."""
        u, v, k, momentum, *carried = self.parts(state)
        m, n, r = self.shape
        x, basis = torch.linalg.eigh(k)
        u, v, p = u @ basis, v @ basis, basis.mT @ momentum @ basis
        roots = Roots(x, self.depth)
        pulled_left, pulled_right = self.left @ u, self.right @ v
        inner_left, inner_right = u.mT @ pulled_left, v.mT @ pulled_right
        turning = 0.5 * (inner_left - inner_right)
        turn = turning * roots.turn
        slope = roots.slope(p, turning)
        square = x.square().unsqueeze(-2)
        moved_left, moved_right = u @ turn, -v @ turn
        outer: list[Tensor | None] = [None, None]
        if not math.isinf(self.depth):
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
                barrier = barrier / (x.unsqueeze(-1) * square)
                slope = slope - 0.5 * (barrier + barrier.mT)
        moves = [
            moved_left @ basis.mT,
            moved_right @ basis.mT,
            basis @ (roots.stretch * p) @ basis.mT,
            -basis @ slope @ basis.mT,
        ]
        if carried:
            s = roots.powers
            core = roots.kernel * roots.stretch * p + roots.power_sums * turn
            left, right = outer
            z = Blocks(
                core,
                None if left is None else left * s.unsqueeze(-2),
                None if right is None else right.mT * s.unsqueeze(-1),
            )
            moves += [self._carry(u, s, v.mT, z, w) for w in carried]
        return torch.cat([move.flatten(-2) for move in moves], -1)

    def _carry(self, u: Tensor, s: Tensor, vh: Tensor, z: Blocks, w: Tensor) -> Tensor:
        """Return ``-Gamma(Z, W)``."""
        k, frozen = Differences(s, self.depth, math.isinf(self.depth)), math.isinf(self.depth)
        blocks = blocks_of(u, vh, w, frozen)
        turned = tangent_matrix(u, vh, connection_blocks(k, z, blocks))
        bent = push_beyond(k, z, apply(k, blocks, -1.0))
        return -turned if bent is None else bent - turned

    def coordinates_at(self, state: Tensor) -> Callable[[Tensor], Tensor]:
        """Return coordinates of errors, of norm at least their length over what is travelled."""
        u, v, k, _, *carried = self.parts(state)
        frozen = math.isinf(self.depth)
        tiny = torch.finfo(state.dtype).tiny
        travelled = self.speed.maximum(self.resolved).clamp_min(tiny)[:, None]
        if carried:
            x, basis = torch.linalg.eigh(k)
            s = Roots(x, self.depth).powers
            u, vh, metric = u @ basis, (v @ basis).mT, Differences(s, self.depth, frozen)
            # Small singular values of a matrix are known to eps of the large ones, no better.
            known = (s[..., -1] / s[..., 0]).clamp_min(1.0) * self.rounding
            loads = self.loads.clamp_min(tiny) * known.clamp_min(1.0)

        def coordinates(difference: Tensor) -> Tensor:
            du, dv, dk, dp, *dw = self.parts(difference)
            if frozen:
                parts = [2.0 * du, 2.0 * dv, dk, dp]
            else:
                parts = [du @ k, dv @ k, self.depth**0.5 * dk, dp]
            scaled = [part.flatten(-2) / travelled for part in parts]
            for part, load in zip(dw, loads if carried else (), strict=True):
                b = apply(metric, blocks_of(u, vh, part, frozen), -0.5)
                scaled += [c.flatten(-2) / load[:, None] for c in b if c is not None]
            return torch.cat(scaled, -1)

        return coordinates

    def restricted(self, samples: Tensor) -> Flow:
        """Return the flow of some of the samples."""
        parts = {
            name: getattr(self, name)[samples] for name in ("left", "right", "speed", "resolved")
        }
        return replace(self, loads=self.loads[:, samples], **parts)

    def ends(self, t: np.ndarray, h: np.ndarray, states: Tensor) -> np.ndarray:
        """Return when a singular value reaches zero in a step, infinite where none does."""
        never = np.full(len(t), math.inf)
        if self.through or math.isinf(self.depth):
            return never
        # Of steps that failed, whatever they hold.
        k = self.parts(states[0])[2].nan_to_num(0.0, 0.0, 0.0).clamp(-_HUGE, _HUGE)
        # No eigenvalue moves by more than K does.
        moved = torch.linalg.matrix_norm(k - k[-1]).amax(0)
        if bool((torch.linalg.eigvalsh(k[-1])[..., 0] > 1.5 * moved).all()):
            return never
        lowest = torch.linalg.eigvalsh(k)[..., 0]
        # Between two nodes it may dip below both.
        dip = (lowest[2:] - 2.0 * lowest[1:-1] + lowest[:-2]).abs().amax(0)
        doubtful = (lowest.amin(0) < dip).cpu().numpy()
        if not doubtful.any():
            return never
        theta, table = _between(states.shape[1] - 1)
        fine = torch.einsum("ts,sbij->tbij", torch.as_tensor(table).to(k), k[:, doubtful])
        x = torch.linalg.eigvalsh(fine)[..., 0].cpu().numpy()
        never[doubtful] = t[doubtful] + h[doubtful] * _first_zero(theta, x)
        return never


def _first_zero(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return where functions, (T, B) at T points, first reach zero, infinite where they do not."""
    # The vertex of the parabola through the least value and its neighbours.
    low = np.clip(np.argmin(x, 0), 1, len(x) - 2)
    points = theta[np.stack([low - 1, low, low + 1])]
    a, b, c = np.take_along_axis(x, np.stack([low - 1, low, low + 1]), 0)
    first = (b - a) / (points[1] - points[0])
    second = ((c - b) / (points[2] - points[1]) - first) / (points[2] - points[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = np.clip(0.5 * (points[0] + points[1] - first / second), points[0], points[2])
        lowest = a + (vertex - points[0]) * (first + second * (vertex - points[1]))
    zero = np.where(lowest <= 0, vertex, math.inf)
    # A change of sign between two points.
    for i in np.flatnonzero((x <= 0).any(0)):
        k = int(np.argmax(x[:, i] <= 0))
        if k == 0:
            zero[i] = theta[0]
        else:
            share = x[k - 1, i] / (x[k - 1, i] - x[k, i])
            zero[i] = theta[k - 1] + share * (theta[k] - theta[k - 1])
    return zero


@cache
def _between(stages: int) -> tuple[np.ndarray, np.ndarray]:
    """Return many points of a step, and the values of a polynomial there by those at the nodes."""
    nodes = 2.0 * np.append(nodes_and_weights(stages)[0], 1.0) - 1.0
    fine = -np.cos(np.linspace(0.0, math.pi, 12 * stages))
    table = legendre.legvander(fine, stages) @ np.linalg.inv(legendre.legvander(nodes, stages))
    return 0.5 * (fine + 1.0), table
