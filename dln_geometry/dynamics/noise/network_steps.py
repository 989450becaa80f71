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
    horizontal_step,
    observed,
)
from dln_geometry.dynamics.noise.simulation import Diverged, State, Stepper
from dln_geometry.dynamics.noise.watch import StepWatch
from dln_geometry.geometry.kernel import small_svd
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
        point = as_point(start, complex=True)
        if point.normalized:
            raise ValueError(
                "start must have the metric without 1/N upstairs, got a normalized point"
            )
        sizes = as_widths(widths, point.shape, point.depth.layers, point.rank)
        u, r, batch = point.u, point.rank, point.batch_shape
        hidden = [
            torch.eye(d, r, dtype=u.dtype, device=u.device).expand(*batch, d, r)
            for d in sizes[1:-1]
        ]
        frames = [point.vh.mH, *hidden, u]
    else:
        if widths is not None:
            raise ValueError(f"widths must be those of the factors: leave them out, got {widths!r}")
        network = balanced_network(start, "start", complex=True)
        frames, sizes, depth = network.frames, network.widths, network.depth
        s = depth.power(network.spectrum)
        point = EndToEnd(frames[-1], s, frames[0].mH, depth, False, check=False)
    if len(sizes) < 3:
        raise ValueError("start must have at least two layers upstairs, got depth 1")
    return point, frames, sizes


class NetworkSteps(Stepper):
    r"""Langevin dynamics of the layers, in the frames ``W_p = Q_p Lam Q_{p-1}^T``.

    A step adds to the layers the horizontal move of `ProductSteps` and, with entropy, Gaussians of
    variance ``2 h / beta`` along the orthonormal vertical frame. Their product ``X+`` has moved in
    the mean by the mean curvature of the orbit: no drift is evaluated. The one positive definite
    change of hidden bases that balances the layers is normal to the balanced manifold, keeps
    ``X+``, and ends the step.

    States are ``(s, Q_0, ..., Q_N)``.
    """

    depth: Depth

    def __init__(self, drive: Thermostat, noise: Gaussians, layers: int) -> None:
        self.drive, self.noise = drive, noise
        self.depth = Depth(layers)
        self.watch: StepWatch = StepWatch(self.depth)

    def advance(self, state: State, h: float, index: int) -> State:
        s, *frames = state
        point, drive, count = self._point(state), self.drive, len(frames) - 1
        frame = ProductFrame(point, layers=count)
        value, core, left, right = horizontal_step(self, frame, h, index)
        lam = frame.flat
        diagonal, _ = frame.diagonal(core.diagonal(dim1=-2, dim2=-1))
        layers = frame.factors(core, diagonal)
        turns: list[Tensor | None] = [None] * (count + 1)
        if drive.entropy:
            scale = math.sqrt(2.0 * h / drive.beta)
            for layer, part in zip(layers, self._vertical(lam, scale, point.u), strict=True):
                layer += part
            turns = self._turns(frames, point.u, scale)
        if left is not None:
            left = left - point.u @ (point.u.mH @ left)
        if right is not None:
            right = right - (right @ point.vh.mH) @ point.vh
        try:
            u, s_new, vh = _product(point, layers, turns, left, right)
            finite = torch.isfinite(s_new).all(-1) & torch.isfinite(value)
        except torch.linalg.LinAlgError:
            u, s_new, vh, finite = point.u, s, point.vh, torch.isfinite(value)
            for w in layers:
                finite = finite & torch.isfinite(w).all(-1).all(-1)
            finite = finite & ~finite.all()
        if not self.passed(finite):
            raise Diverged(
                "loss and layers must stay finite, got NaN or infinite: take a loss that is finite "
                f"everywhere, or dt below {h:g}",
                ~finite.expand(s.shape[:-1]),
            )
        hidden = _gauged_frames(frames, layers, turns, lam, (u, s_new ** (1.0 / count), vh))
        return (s_new, vh.mH, *hidden, u)

    def _vertical(self, lam: Tensor, scale: float, like: Tensor) -> tuple[Tensor, ...]:
        """Return Gaussians along the vertical frame within the rank: one core for every layer.

        Those of complex layers (`like`) are anti-Hermitian: a phase has one entry, a pair two.
        """
        count, r = self.depth.layers, lam.shape[-1]
        lam = lam.clamp_min(torch.finfo(lam.dtype).tiny ** 0.5)
        sine, cosine, cos_psi, sin_psi = jacobi_angles(lam, count)
        z = self.noise.draw((*lam.shape[:-1], count - 1, r, r), like, scale / math.sqrt(count))
        phases = math.sqrt(2.0) * z.imag.diagonal(dim1=-2, dim2=-1) if z.is_complex() else None
        z = z.triu(1)
        z = z - z.mH
        if phases is not None:
            z = z + 1j * phases.diag_embed()
        cores = transform(sine.mT, cos_psi * z) + transform(cosine.mT, sin_psi * z)
        return cores.unbind(-3)

    def _turns(self, frames: list[Tensor], like: Tensor, scale: float) -> list[Tensor | None]:
        """Draw the turns of all frames out of their ranges, (..., d_p - r, r) or None."""
        shapes, scale = [q.shape for q in frames[1:-1]], scale * math.sqrt(0.5)
        sizes = [(*batch, d - r, r) for *batch, d, r in shapes]
        return [None, *(self.noise.draw(n, like, scale) if n[-2] else None for n in sizes), None]

    def observe(self, state: State) -> dict[str, Tensor]:
        return observed(self.drive.loss, self._point(state))

    def point(self, state: State) -> Network:
        return Network.from_layers(chain_from_frames(state[1:], state[0]))

    def _point(self, state: State) -> EndToEnd:
        return EndToEnd(state[-1], state[0], state[1].mH, self.depth, False, check=False)


def _product(
    point: EndToEnd,
    layers: Sequence[Tensor],
    turns: Sequence[Tensor | None],
    left: Tensor | None,
    right: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the SVD of the product of the moved layers, of the same rank.

    A turn T of the hidden frame p, ``q_f q_j^T`` in W_p and ``q_j q_f^T`` in W_{p+1}, adds
    ``T^T T`` to ``W_{p+1} W_p``.
    """
    first = layers[0] @ point.vh
    chain = [point.vh, first if right is None else first + right]
    for p in range(1, len(layers) - 1):
        turn, moved = turns[p], layers[p] @ chain[-1]
        chain.append(moved if turn is None else moved + turn.mH @ (turn @ chain[-2]))
    last = point.u @ layers[-1]
    last = last if left is None else last + left
    if (turn := turns[-2]) is None:
        return thin_svd(last, chain[-1], point.rank)
    below = torch.cat((chain[-1], turn.mH @ (turn @ chain[-2])), -2)
    return thin_svd(torch.cat((last, point.u), -1), below, point.rank)


def _gauged_frames(
    frames: Sequence[Tensor],
    layers: Sequence[Tensor],
    turns: Sequence[Tensor | None],
    lam: Tensor,
    moved: tuple[Tensor, Tensor, Tensor],
) -> list[Tensor]:
    """Return the hidden frames of the balanced point a positive gauge away.

    With ``X+ = A Lam+^N B^T`` in the old frames and layers ``K_p``, the gauge has the square
    ``M_p^T M_p``, ``M_p K_p = Lam+ M_{p-1}``, ``M_0 = B^T``, and the orthogonal factor of ``M_p``
    turns ``Q_p``: from ``M^{-T}`` in the first half and ``M`` in the second, for which only
    ``Lam+`` is inverted.
    """
    u, lam_new, vh = moved
    inverse = 1.0 / lam_new.clamp_min(torch.finfo(lam_new.dtype).eps * lam_new[..., :1])
    inverse, half = inverse.unsqueeze(-1), len(layers) // 2
    factors, after = [vh @ frames[0]], [u.mH @ frames[-1]]
    for layer in layers[:half]:
        factors.append(inverse * (factors[-1] @ layer.mH))
    for layer in reversed(layers[half + 1 :]):
        after.append(inverse * (after[-1] @ layer))
    factors = [*factors[1:], *reversed(after[1:])]
    hidden = []
    for p, (q, factor) in enumerate(zip(frames[1:-1], factors, strict=True), start=1):
        a, _, bh = small_svd(factor)
        if (turn := turns[p]) is not None:
            # Out of its range the frame turns by T Lam^{-1}.
            angle = turn / lam.clamp_min(torch.finfo(lam.dtype).eps).unsqueeze(-2)
            c, _, dh = small_svd(q + complement(q) @ angle)
            q = c @ dh
        hidden.append(q @ (a @ bh).mH)
    return hidden
