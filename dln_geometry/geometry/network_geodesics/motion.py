r"""The motion of a balanced network along a geodesic, in frames that move with it.

``W_p = Q_p K Q_{p-1}^T``, ``W'_p = Q_p c_p Q_{p-1}^T + y_p Q_{p-1}^T + Q_p y_{p-1}^T``. The frames
turn by ``Q_p' = Q_p om_p + y_p K^{-1}``, ``om_0 = 0``, where in the eigenvectors of K, of
eigenvalues lam, ``om_p - om_{p-1} = (c_p - c_p^T)_ij / (lam_i + lam_j)`` and
``K' = (lam_i c_1 + lam_j c_1^T)_ij / (lam_i + lam_j)``. The geodesic equation ``W'' = II(W', W')``
is, with ``Y_p = y_p K^{-1}`` and the cores n of II,

``c_p' = c_p om_{p-1} - om_p c_p + Y_p^T y_p + y_{p-1}^T Y_{p-1} + n_p``,

``y_p' = (y_p (om_{p-1} + om_{p+1}) - Y_p (c_p + c_{p+1}^T)) / 2 - Q_p Y_p^T y_p``

(at the ends p = 0 and N one of the two terms, not halved), and the same for a transported vector.
An eigenvalue of K changes sign exactly when the rank drops, so the drop is detected; singular
values would hide it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dln_geometry.geometry.geodesics import GeodesicError, rank_loss
from dln_geometry.geometry.network_geodesics.frames import Velocity, normal_cores
from dln_geometry.ode import Journey, collocate


@dataclass(frozen=True)
class MovingNetwork:
    """A network on its way: `vectors` are its velocity and the vectors that it transports."""

    frames: Tensor  # (..., N + 1, D, r)
    k: Tensor  # (..., r, r)
    vectors: tuple[Velocity, ...] = ()

    def layers(self) -> Tensor:
        """Return ``Q_p K Q_{p-1}^T``, shape (..., N, D, D)."""
        left = self.frames[..., 1:, :, :] @ self.k.unsqueeze(-3)
        return left @ self.frames[..., :-1, :, :].mT

    def reversed(self, *carried: Velocity) -> MovingNetwork:
        """Return the network on its way back, with vectors to transport."""
        v = self.vectors[0]
        return replace(self, vectors=(Velocity(-v.cores, -v.outers), *carried))

    def map(self, f: Callable[[Tensor, int], Tensor]) -> MovingNetwork:
        """Return the network with ``f(tensor, own dimensions)`` in place of every tensor."""
        vectors = (Velocity(f(v.cores, 3), f(v.outers, 3)) for v in self.vectors)
        return MovingNetwork(f(self.frames, 3), f(self.k, 2), tuple(vectors))

    def reshaped(self, *batch: int) -> MovingNetwork:
        """Return the network with its leading dimensions reshaped."""
        return self.map(lambda x, own: x.reshape(*batch, *x.shape[-own:]))


@dataclass(frozen=True)
class _Equation:
    """The geodesic equation of a batch of networks, in rows of r numbers.

    The rows are Q, K, the cores of all vectors and their outer parts. `scale` (B,) measures the
    errors of the layers, `lengths` (B, vectors) those of the vectors.
    """

    depth: int
    width: int
    rank: int
    scale: Tensor
    lengths: Tensor

    def join(self, frames: Tensor, k: Tensor, cores: Tensor, outers: Tensor) -> Tensor:
        """Return the rows of parts, (..., rows, r); cores and outers have the vectors first."""
        parts = frames.flatten(-3, -2), k, cores.flatten(-4, -2), outers.flatten(-4, -2)
        return torch.cat(parts, -2)

    def parts(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return views of frames, K, cores and outer parts."""
        n, d, r, q = self.depth, self.width, self.rank, self.lengths.shape[-1]
        frames, k, cores, outers = rows.split(((n + 1) * d, r, q * n * r, q * (n + 1) * d), -2)
        frames, cores = frames.unflatten(-2, (n + 1, d)), cores.unflatten(-2, (q, n, r))
        return frames, k, cores, outers.unflatten(-2, (q, n + 1, d))

    def parts_of(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the parts of states, shape (..., rows r)."""
        return self.parts(state.unflatten(-1, (-1, self.rank)))

    def state_of(self, network: MovingNetwork) -> Tensor:
        vectors = (torch.stack(parts, -4) for parts in zip(*network.vectors, strict=True))
        return self.join(network.frames, network.k, *vectors).flatten(-2)

    def network_of(self, state: Tensor) -> MovingNetwork:
        frames, k, cores, outers = self.parts_of(state)
        vectors = tuple(map(Velocity, cores.unbind(-4), outers.unbind(-4)))
        return MovingNetwork(frames, 0.5 * (k + k.mT), vectors)

    def field(self, state: Tensor) -> Tensor:
        state = state.unflatten(-1, (-1, self.rank))
        lam, basis = torch.linalg.eigh(self.parts(state)[1])
        # In the frames in which K is diagonal.
        frames, _, cores, outers = self.parts(state @ basis)
        wide = basis[..., None, None, :, :].mT
        cores = wide @ cores
        rows, columns = lam.unsqueeze(-1), lam.unsqueeze(-2)
        total = rows + columns
        turns = torch.cumsum((cores - cores.mT) / total[..., None, None, :, :], -3)
        turns = torch.nn.functional.pad(turns, (0, 0, 0, 0, 1, 0))
        first = cores[..., 0, 0, :, :]
        k = (rows * first + columns * first.mT) / total
        scaled = outers[..., 0, :, :, :] / columns.unsqueeze(-3)
        # Y_p^T x_p, x the outer part of every vector.
        products = scaled.unsqueeze(-4).mT @ outers
        moved_cores = self._cores(cores, products, turns, lam)
        own = turns[..., 0, :, :, :]
        # The outer parts turn with their frames.
        turn, mix = (
            _neighbours(own[..., :-1, :, :], own[..., 1:, :, :]),
            _neighbours(cores, cores.mT),
        )
        moved_outers = outers @ turn.unsqueeze(-4) - scaled.unsqueeze(-4) @ mix
        moved_outers = moved_outers - frames.unsqueeze(-4) @ products
        state = self.join(frames @ own + scaled, basis @ k, wide.mT @ moved_cores, moved_outers)
        return (state @ basis.mT).flatten(-2)

    def _cores(self, cores: Tensor, products: Tensor, turns: Tensor, lam: Tensor) -> Tensor:
        own = turns[..., :1, :, :, :]
        moved = cores @ own[..., :-1, :, :] - own[..., 1:, :, :] @ cores
        moved = moved + products[..., 1:, :, :] + products[..., :-1, :, :].mT
        if self.depth == 1:
            return moved
        # Minus the second derivatives of the moments, c_p c_p^T - c_{p+1}^T c_{p+1}, written by the
        # difference lam (om_{p-1} - om_{p+1}) of the two cores: small lam divide the result later.
        wide = lam[..., None, None, :, None]
        change = wide * (turns[..., :-2, :, :] - turns[..., 2:, :, :])
        before, own = cores[..., :-1, :, :], change[..., :1, :, :, :]
        bend = own @ before.mT + (before[..., :1, :, :, :] + own) @ change.mT
        bend = wide * (products[..., :-2, :, :] - products[..., 2:, :, :]) - bend
        return moved + normal_cores(bend + bend.mT, lam.unsqueeze(-2), self.depth)

    def coordinates_at(self, state: Tensor) -> Callable[[Tensor], Tensor]:
        k = self.parts_of(state)[1][:, None, None]
        lengths = self.lengths.clamp_min(torch.finfo(state.dtype).tiny)[:, None, :, None]
        scale, root = self.scale[:, None, None], self.depth**0.5

        def coordinates(difference: Tensor) -> Tensor:
            frames, dk, cores, outers = self.parts_of(difference)
            layers = torch.cat(((frames @ k).flatten(-3), root * dk.flatten(-2)), -1)
            vectors = torch.cat((cores.flatten(-3), outers.flatten(-3)), -1) / lengths
            return torch.cat((layers / scale, vectors.flatten(-2)), -1)

        return coordinates

    def restricted(self, samples: Tensor) -> _Equation:
        return replace(self, scale=self.scale[samples], lengths=self.lengths[samples])

    def ends(self, t: np.ndarray, h: np.ndarray, states: Tensor) -> np.ndarray:
        return rank_loss(t, h, self.parts_of(states)[1])


def _neighbours(before: Tensor, after: Tensor) -> Tensor:
    """Return for the frames p = 0..N the means of two values, of the layers p and p + 1."""
    if before.shape[-3] == 1:
        return torch.cat((after, before), -3)
    mean = 0.5 * (before[..., :-1, :, :] + after[..., 1:, :, :])
    return torch.cat((after[..., :1, :, :], mean, before[..., -1:, :, :]), -3)


def attempt(
    start: MovingNetwork, times: list[float], rtol: float
) -> tuple[list[MovingNetwork], Journey]:
    """Return the networks at increasing times > 0, and the journey, with the batch in one row.

    `rtol` is relative to the distance travelled and to the lengths of the vectors. All parts of
    the start have one batch shape.
    """
    batch, (points, width, rank) = start.k.shape[:-2], start.frames.shape[-3:]
    start = start.reshaped(-1)
    eps, end = torch.finfo(start.k.dtype).eps, times[-1]
    lengths = torch.stack([v.length() for v in start.vectors], -1)
    # No error below the rounding of the layers can be resolved.
    size = (points - 1) ** 0.5 * torch.linalg.matrix_norm(start.k)
    scale = (lengths[:, 0] * end).maximum(size * (10.0 * eps / rtol))
    equation, shortest = _Equation(points - 1, width, rank, scale, lengths), end * eps**0.75
    journey = collocate(equation, equation.state_of(start), times, rtol=rtol, shortest=shortest)
    return [equation.network_of(state).reshaped(*batch) for state in journey.states], journey


def travel(start: MovingNetwork, times: list[float], rtol: float) -> list[MovingNetwork]:
    """Return the networks at increasing times > 0 as `attempt`; refuse one that loses rank."""
    found, journey = attempt(start, times, rtol)
    if np.isnan(journey.lost).all():
        return found
    if journey.barred.any():
        raise GeodesicError(
            "the geodesic must keep its rank, but it passes through networks of a smaller one by "
            f"t = {journey.lost[journey.barred].min():.6g}, where singular vectors of the layers "
            "change their sign"
        )
    # K comes after the frames in the state.
    points, width, rank = start.frames.shape[-3:]
    k = journey.last.unflatten(-1, (-1, rank))[:, points * width : points * width + rank]
    least = torch.linalg.eigvalsh(k[torch.from_numpy(~np.isnan(journey.lost))])[:, 0].min()
    raise GeodesicError(
        f"the geodesic must keep its rank, but near t = {np.nanmin(journey.lost):.6g} the smallest "
        f"singular value of the layers is {float(least):.1e} and falls to zero"
    )
