r"""The motion of a balanced network along a geodesic, in frames that move with it.

``W_p = Q_p K Q_{p-1}^T``, ``W'_p = Q_p c_p Q_{p-1}^T + y_p Q_{p-1}^T + Q_p y_{p-1}^T``. The frames
turn by ``Q_p' = Q_p om_p + y_p K^{-1}``, ``om_0 = 0``, where in the eigenvectors of K, of
eigenvalues lam, ``om_p - om_{p-1} = (c_p - c_p^T)_ij / (lam_i + lam_j)`` and
``K' = (lam_i c_1 + lam_j c_1^T)_ij / (lam_i + lam_j)``. The geodesic equation ``W'' = II(W', W')``
then reads, with ``Y_p = y_p K^{-1}`` and the cores n of II,

``c_p' = c_p om_{p-1} - om_p c_p + Y_p^T y_p + y_{p-1}^T Y_{p-1} + n_p``,

``y_p' = (y_p (om_{p-1} + om_{p+1}) - Y_p (c_p + c_{p+1}^T)) / 2 - Q_p Y_p^T y_p``

(at the ends p = 0 and N one of the two, not halved), and so for a vector that is transported. The
eigenvalues of K keep their sign while the network keeps its rank, and pass smoothly through zero
where it does not: other than by singular values, that is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dln_geometry.geometry.geodesics import GeodesicError
from dln_geometry.geometry.network_geodesics.frames import Velocity, normal_cores
from dln_geometry.ode import StepFailure, collocate

__all__ = ["Network", "travel"]


@dataclass(frozen=True)
class Network:
    """A network on its way.

    Attributes
    ----------
    frames : Tensor, shape (..., N + 1, D, r)
    k : Tensor, shape (..., r, r)
    vectors : tuple of Velocity
        The velocity, and what is transported with it.
    """

    frames: Tensor
    k: Tensor
    vectors: tuple[Velocity, ...]

    def layers(self) -> Tensor:
        """Return ``Q_p K Q_{p-1}^T``, shape (..., N, D, D)."""
        left = self.frames[..., 1:, :, :] @ self.k.unsqueeze(-3)
        return left @ self.frames[..., :-1, :, :].mT

    def reversed(self, *carried: Velocity) -> Network:
        """Return the network on its way back, with vectors to take along."""
        v = self.vectors[0]
        return Network(self.frames, self.k, (Velocity(-v.cores, -v.outers), *carried))


@dataclass
class _Equation:
    """The geodesic equation on tensors of one matrix for every network, its parts stacked as rows.

    Their order is Q, K, the cores of all vectors, their outer parts.
    """

    depth: int
    width: int
    rank: int
    count: int
    smallest: Tensor | None = field(default=None, init=False)

    def join(self, frames: Tensor, k: Tensor, cores: Tensor, outers: Tensor) -> Tensor:
        """Return the tensor of parts, (..., rows, r); cores and outers have the vectors first."""
        parts = frames.flatten(-3, -2), k, cores.flatten(-4, -2), outers.flatten(-4, -2)
        return torch.cat(parts, -2)

    def parts(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return views of frames, K, cores and outer parts."""
        n, d, r, q = self.depth, self.width, self.rank, self.count
        frames, k, cores, outers = state.split(((n + 1) * d, r, q * n * r, q * (n + 1) * d), -2)
        lead = state.shape[:-2]
        return (
            frames.view(*lead, n + 1, d, r),
            k,
            cores.view(*lead, q, n, r, r),
            outers.view(*lead, q, n + 1, d, r),
        )

    def state_of(self, network: Network) -> Tensor:
        cores = torch.stack([v.cores for v in network.vectors], -4)
        outers = torch.stack([v.outers for v in network.vectors], -4)
        return self.join(network.frames, network.k, cores, outers)

    def network_of(self, state: Tensor) -> Network:
        frames, k, cores, outers = self.parts(state)
        pairs = zip(cores.unbind(-4), outers.unbind(-4), strict=True)
        return Network(frames, 0.5 * (k + k.mT), tuple(Velocity(c, y) for c, y in pairs))

    def __call__(self, state: Tensor) -> Tensor:
        lam, basis = torch.linalg.eigh(self.parts(state)[1])
        self.smallest = lam[..., 0]
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
        moved_outers = self._outers(frames, cores, outers, products, own, scaled)
        moved_frames = frames @ own + scaled
        back = wide.mT
        state = self.join(moved_frames, basis @ k, back @ moved_cores, moved_outers)
        return state @ basis.mT

    def _cores(self, cores: Tensor, products: Tensor, turns: Tensor, lam: Tensor) -> Tensor:
        own = turns[..., :1, :, :, :]
        moved = cores @ own[..., :-1, :, :] - own[..., 1:, :, :] @ cores
        moved = moved + products[..., 1:, :, :] + products[..., :-1, :, :].mT
        if self.depth == 1:
            return moved
        # Minus the second derivatives of the moments, c_p c_p^T - c_{p+1}^T c_{p+1}. The two differ
        # by lam (om_{p-1} - om_{p+1}): what small values divide in the end must be as small.
        wide = lam[..., None, None, :, None]
        change = wide * (turns[..., :-2, :, :] - turns[..., 2:, :, :])
        before, own = cores[..., :-1, :, :], change[..., :1, :, :, :]
        bend = own @ before.mT + (before[..., :1, :, :, :] + own) @ change.mT
        bend = wide * (products[..., :-2, :, :] - products[..., 2:, :, :]) - bend
        return moved + normal_cores(bend + bend.mT, lam.unsqueeze(-2), self.depth)

    def _outers(
        self,
        frames: Tensor,
        cores: Tensor,
        outers: Tensor,
        products: Tensor,
        turns: Tensor,
        scaled: Tensor,
    ) -> Tensor:
        turn, mix = (
            _neighbours(turns[..., :-1, :, :], turns[..., 1:, :, :]),
            _neighbours(cores, cores.mT),
        )
        moved = outers @ turn.unsqueeze(-4) - scaled.unsqueeze(-4) @ mix
        return moved - frames.unsqueeze(-4) @ products

    def coordinates_at(
        self, scale: Tensor, lengths: Tensor
    ) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
        """Return coordinates of errors: of the layers by `scale`, of the vectors by `lengths`."""
        lengths = lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
        root = self.depth**0.5

        def at(state: Tensor) -> Callable[[Tensor], Tensor]:
            k = self.parts(state)[1].unsqueeze(1).unsqueeze(-3)

            def coordinates(difference: Tensor) -> Tensor:
                frames, dk, cores, outers = self.parts(difference)
                layers = torch.cat(((frames @ k).flatten(-3), root * dk.flatten(-2)), -1)
                vectors = torch.cat((cores.flatten(-3), outers.flatten(-3)), -1)
                vectors = vectors / lengths.unsqueeze(-1)
                return torch.cat((layers / scale.unsqueeze(-1), vectors.flatten(-2)), -1)

            return coordinates

        return at


def _neighbours(before: Tensor, after: Tensor) -> Tensor:
    """Return for the frames p = 0..N the mean of what the layers p and p + 1 have."""
    if before.shape[-3] == 1:
        return torch.cat((after, before), -3)
    mean = 0.5 * (before[..., :-1, :, :] + after[..., 1:, :, :])
    return torch.cat((after[..., :1, :, :], mean, before[..., -1:, :, :]), -3)


def travel(start: Network, times: list[float], rtol: float) -> list[Network]:
    """Return the network and its vectors at increasing times > 0.

    Parameters
    ----------
    start : Network
        All parts of one batch shape.
    times : list of float
    rtol : float
        Error allowed, relative to what is travelled and to the lengths of the vectors.

    Raises
    ------
    GeodesicError
        If the network loses its rank before the last time.
    """
    frames, rank = start.frames, start.frames.shape[-1]
    equation = _Equation(frames.shape[-3] - 1, frames.shape[-2], rank, len(start.vectors))
    state = equation.state_of(start)
    eps, end = torch.finfo(state.dtype).eps, times[-1]
    lengths = torch.stack([v.length() for v in start.vectors], -1)
    # Roundings of the layers themselves bound what can be resolved.
    size = equation.depth**0.5 * torch.linalg.matrix_norm(start.k)
    scale = (lengths[..., 0] * end).maximum(size * (10.0 * eps / rtol))

    def keeps_rank(_: float, __: Tensor) -> bool:
        return equation.smallest is None or bool((equation.smallest > 0).all())

    try:
        found = collocate(
            equation,
            state.unsqueeze(0),
            times,
            coordinates_at=equation.coordinates_at(scale, lengths),
            rtol=rtol,
            shortest=end * eps**0.75,
            alive=keeps_rank,
        )
    except StepFailure as failure:
        raise _rank_lost(equation, failure.time, failure.state[0]) from None
    if not keeps_rank(end, found[-1]):
        raise _rank_lost(equation, end, found[-1][0])
    return [equation.network_of(state[0]) for state in found]


def _rank_lost(equation: _Equation, time: float, state: Tensor) -> GeodesicError:
    least = float(torch.linalg.eigvalsh(equation.parts(state)[1])[..., 0].min())
    if least <= 0 or (equation.smallest is not None and bool((equation.smallest <= 0).any())):
        return GeodesicError(
            "the geodesic must keep its rank, but it passes through networks of a smaller one by "
            f"t = {time:.6g}, where singular vectors of the layers change their sign"
        )
    return GeodesicError(
        f"the geodesic must keep its rank, but near t = {time:.6g} the smallest singular value of "
        f"the layers is {least:.1e} and falls to zero"
    )
