"""Langevin steps on the balanced manifold: noise on its tangent space, and back to balance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.noise.product_steps import (
    Gaussians,
    Thermostat,
    added,
    descent,
    observed,
)
from dln_geometry.dynamics.noise.simulation import Diverged, State, Stepper, StepWatch
from dln_geometry.geometry.metric import ProductFrame, thin_svd
from dln_geometry.geometry.points import (
    Collapsed,
    EndToEnd,
    Network,
    as_point,
    balanced_network,
    chain_from_frames,
)
from dln_geometry.geometry.submersion import complement, jacobi_angles, transform
from dln_geometry.support import Depth, as_widths


def network_start(start: Any, widths: Any) -> tuple[EndToEnd, list[Tensor], tuple[int, ...]]:
    """Return the point, the frames ``(Q_0, ..., Q_N)`` and the widths of a balanced start.

    A point gets the canonical gauge of the given widths.
    """
    if isinstance(start, Collapsed | EndToEnd):
        point = as_point(start)
        if point.normalized:
            raise ValueError(
                "start must have the metric without 1/N upstairs, got a normalized point"
            )
        sizes = as_widths(widths, point.shape, point.depth.layers, point.rank)
        r, like = point.rank, point.u
        hidden = [torch.eye(d, r, dtype=like.dtype, device=like.device) for d in sizes[1:-1]]
        hidden = [q.expand(*point.batch_shape, *q.shape) for q in hidden]
        frames = [point.vh.mT, *hidden, point.u]
    else:
        if widths is not None:
            raise ValueError(f"widths must be those of the factors: leave them out, got {widths!r}")
        network = balanced_network(start, "start")
        frames, sizes, depth = network.frames, network.widths, network.depth
        point = EndToEnd(frames[-1], depth.power(network.spectrum), frames[0].mT, depth, False)
    if len(sizes) < 3:
        raise ValueError("start must have at least two layers upstairs, got depth 1")
    return point, frames, sizes


class NetworkSteps(Stepper):
    r"""Langevin dynamics of the layers, in the frames ``W_p = Q_p Lam Q_{p-1}^T``.

    A step adds to the layers the horizontal move of `ProductSteps` and, with entropy, Gaussians of
    variance ``2 h / beta`` along the orthonormal vertical frame; the product of the moved layers is
    ``X+``, whose mean has moved by the mean curvature of the orbit: no drift is evaluated. The way
    back to balance is the positive definite change of the hidden bases, which is normal to the
    balanced manifold and keeps ``X+``: the only point of the fibre that is a positive gauge away.

    States are ``(s, Q_0, ..., Q_N)``.
    """

    depth: Depth

    def __init__(self, drive: Thermostat, noise: Gaussians, layers: int) -> None:
        self.drive, self.noise = drive, noise
        self.depth = Depth(layers)
        self.watch = StepWatch(self.depth)

    def advance(self, state: State, h: float, index: int) -> State:
        s, *frames = state
        point, drive, count = self._point(state), self.drive, len(frames) - 1
        (m, n), r = point.shape, point.rank
        frame = ProductFrame(point, layers=count)
        value = s.new_zeros(s.shape[:-1])
        moves: list[Tensor | None] = [
            s.new_zeros(*s.shape, r),
            s.new_zeros(*s.shape[:-1], m, r) if m > r else None,
            s.new_zeros(*s.shape[:-1], r, n) if n > r else None,
        ]
        if drive.kappa > 0:
            moves = self.noise.frames(point, h, index, drive.amplitude)
        if drive.loss is not None:
            value, parts = descent(drive.loss, frame, h, index, self.watch)
            moves = [added(z, g) for z, g in zip(moves, parts, strict=True)]
        core, left, right = moves
        assert core is not None
        lam = frame.flat
        diagonal, _ = frame.diagonal(core.diagonal(dim1=-2, dim2=-1))
        layers = frame.factors(core, diagonal)
        turns: list[Tensor | None] = [None] * (count + 1)
        if drive.entropy:
            scale = math.sqrt(2.0 * h / drive.beta)
            for layer, part in zip(layers, self._vertical(lam, scale), strict=True):
                layer += part
            turns = self._turns(frames, s, scale)
        if left is not None:
            left = left - point.u @ (point.u.mT @ left)
        if right is not None:
            right = right - (right @ point.vh.mT) @ point.vh
        try:
            u, s_new, vh = _product(point, layers, turns, left, right)
            finite = torch.isfinite(s_new).all(-1) & torch.isfinite(value)
        except torch.linalg.LinAlgError:
            u, s_new, vh, finite = point.u, s, point.vh, _finite(layers) & torch.isfinite(value)
            finite = finite & ~finite.all()
        if not bool(finite.all()):
            raise Diverged(
                "loss and layers must stay finite, got NaN or infinite: take a loss that is finite "
                f"everywhere, or dt below {h:g}",
                ~finite.expand(s.shape[:-1]),
            )
        hidden = _gauged_frames(frames, layers, turns, lam, (u, s_new ** (1.0 / count), vh))
        return (s_new, vh.mT, *hidden, u)

    def _vertical(self, lam: Tensor, scale: float) -> tuple[Tensor, ...]:
        """Return Gaussians along the vertical frame within the rank: one core for every layer."""
        count, r = self.depth.layers, lam.shape[-1]
        lam = lam.clamp_min(torch.finfo(lam.dtype).tiny ** 0.5)
        sine, cosine, cos_psi, sin_psi = jacobi_angles(lam, count)
        z = self.noise.draw((*lam.shape[:-1], count - 1, r, r), lam, scale / math.sqrt(count))
        z = z.triu(1)
        z = z - z.mT
        cores = transform(sine.mT, cos_psi * z) + transform(cosine.mT, sin_psi * z)
        return cores.unbind(-3)

    def _turns(self, frames: list[Tensor], like: Tensor, scale: float) -> list[Tensor | None]:
        """Return the Gaussians that turn hidden frames out of their ranges, (..., d_p - r, r)."""
        turns: list[Tensor | None] = [None]
        for q in frames[1:-1]:
            d, r = q.shape[-2:]
            size = (*q.shape[:-2], d - r, r)
            turns.append(self.noise.draw(size, like, scale * math.sqrt(0.5)) if d > r else None)
        return [*turns, None]

    def observe(self, state: State) -> dict[str, Tensor]:
        return observed(self.drive.loss, self._point(state))

    def point(self, state: State) -> Network:
        return Network.from_layers(chain_from_frames(state[1:], state[0]))

    def _point(self, state: State) -> EndToEnd:
        return EndToEnd(state[-1], state[0], state[1].mT, self.depth, False)


def _finite(layers: Sequence[Tensor]) -> Tensor:
    """Return which chains have finite layers, (...)."""
    return torch.stack([torch.isfinite(w).all(-1).all(-1) for w in layers]).all(0)


def _product(
    point: EndToEnd,
    layers: Sequence[Tensor],
    turns: Sequence[Tensor | None],
    left: Tensor | None,
    right: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the SVD of the product of the moved layers, of the same rank.

    A turn T of the hidden frame p, ``q_f q_j^T`` in W_p and ``q_j q_f^T`` in W_{p+1}, comes into
    the product through ``T^T T`` in the place of ``W_{p+1} W_p``.
    """
    first = layers[0] @ point.vh
    chain = [point.vh, first if right is None else first + right]
    for p in range(1, len(layers) - 1):
        turn, moved = turns[p], layers[p] @ chain[-1]
        chain.append(moved if turn is None else moved + _bubble(turn, chain[-2]))
    last = point.u @ layers[-1]
    last = last if left is None else last + left
    turn = turns[len(layers) - 1]
    if turn is None:
        return thin_svd(last, chain[-1], point.rank)
    both = torch.cat((last, point.u), -1), torch.cat((chain[-1], _bubble(turn, chain[-2])), -2)
    return thin_svd(*both, point.rank)


def _bubble(turn: Tensor, x: Tensor) -> Tensor:
    return turn.mT @ (turn @ x)


def _gauged_frames(
    frames: Sequence[Tensor],
    layers: Sequence[Tensor],
    turns: Sequence[Tensor | None],
    lam: Tensor,
    moved: tuple[Tensor, Tensor, Tensor],
) -> list[Tensor]:
    """Return the hidden frames of the balanced point that a positive gauge leads to.

    With ``X+ = A Lam+^N B^T`` in the old frames and layers ``K_p``, the gauge has the square
    ``M_p^T M_p``, ``M_p K_p = Lam+ M_{p-1}``, ``M_0 = B^T``, and the orthogonal factor of ``M_p``
    turns ``Q_p``. Of ``M^{-T}`` from the first layer and ``M`` from the last, only ``Lam+`` is
    inverted.
    """
    u, lam_new, vh = moved
    count = len(layers)
    inverse = 1.0 / lam_new.clamp_min(torch.finfo(lam_new.dtype).eps * lam_new[..., :1])
    inverse = inverse.unsqueeze(-1)
    factors: list[Tensor] = [vh @ frames[0]]
    half = count // 2
    for p in range(1, half + 1):
        factors.append(inverse * (factors[-1] @ layers[p - 1].mT))
    after = [u.mT @ frames[-1]]
    for p in range(count - 1, half, -1):
        after.append(inverse * (after[-1] @ layers[p]))
    factors = [*factors[1:], *reversed(after[1:])]
    hidden = []
    for p, (q, factor) in enumerate(zip(frames[1:-1], factors, strict=True), start=1):
        a, _, bh = torch.linalg.svd(factor)
        turn = turns[p]
        if turn is not None:
            # Out of its range the frame turns by T Lam^{-1}.
            angle = turn / lam.clamp_min(torch.finfo(lam.dtype).eps).unsqueeze(-2)
            c, _, dh = torch.linalg.svd(q + complement(q) @ angle, full_matrices=False)
            q = c @ dh
        hidden.append(q @ (a @ bh).mT)
    return hidden
