r"""Balanced networks and their tangent vectors in frames, in the small space of a geodesic.

``W_p = Q_p K Q_{p-1}^T`` with orthonormal columns Q_p and one symmetric K for all layers, and
``v_p = Q_p c_p Q_{p-1}^T + y_p Q_{p-1}^T + Q_p y_{p-1}^T`` with ``Q_p^T y_p = 0``. Orthogonal maps
that fix a network and a tangent vector fix their geodesic: it stays in the spans of Q_p and y_p, at
most 2r dimensions at every layer. Frames are padded with zeros to the widest, and stacked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dln_geometry.geometry.points import (
    Network,
    by_power_of_two,
    exponent_of,
    is_ordinary,
    orthonormalized,
)
from dln_geometry.geometry.submersion import jacobi_solve
from dln_geometry.support import broadcast_shapes


class Velocity(NamedTuple):
    """A tangent vector in the frames of its network: c_p, p = 1..N, and y_p, p = 0..N."""

    cores: Tensor  # (..., N, r, r)
    outers: Tensor  # (..., N + 1, D, r)

    def coordinates(self) -> Tensor:
        """Return orthonormal coordinates, shape (..., k)."""
        # Each hidden frame turns two layers.
        outers = _with_hidden(self.outers, math.sqrt(2.0)).flatten(-3)
        return torch.cat((self.cores.flatten(-3), outers), -1)

    @classmethod
    def of(cls, coordinates: Tensor, depth: int, width: int, rank: int) -> Velocity:
        """Return the vector with these coordinates."""
        inner, outer = coordinates.split((depth * rank**2, (depth + 1) * width * rank), -1)
        outer = outer.unflatten(-1, (depth + 1, width, rank))
        return cls(inner.unflatten(-1, (depth, rank, rank)), _with_hidden(outer, math.sqrt(0.5)))

    def length(self) -> Tensor:
        """Return the Frobenius norm of all layers, shape (...)."""
        return torch.linalg.vector_norm(self.coordinates(), dim=-1)

    def moved(self, basis: Tensor) -> Velocity:
        """Return the vector in the frames ``Q_p basis``."""
        basis = basis.unsqueeze(-3)
        return Velocity(basis.mT @ self.cores @ basis, self.outers @ basis)


@dataclass(frozen=True)
class LayerBox:
    """The space in which the geodesics of some networks of `widths` (d_0, ..., d_N) stay."""

    widths: tuple[int, ...]
    basis: Tensor | None  # columns (..., N + 1, max d, D); None if the box is the whole space

    @classmethod
    def around(cls, widths: Sequence[int], *columns: Tensor) -> LayerBox:
        """Return the box spanned by columns, the first of them frames, (..., N + 1, max d, k)."""
        span = sum(x.shape[-1] for x in columns)
        if span >= max(widths):
            return cls(tuple(widths), None)
        batch = broadcast_shapes(*(x.shape[:-2] for x in columns))
        wide = [x.expand(*batch, *x.shape[-2:]) for x in columns]
        return cls(tuple(widths), torch.linalg.qr(torch.cat(wide, -1)).Q)

    def inside(self, columns: Tensor) -> Tensor:
        """Return columns of the whole space, (..., N + 1, max d, k), in those of the box."""
        return columns if self.basis is None else self.basis.mT @ columns

    def outside(self, columns: Tensor) -> Tensor:
        """Return columns of the box in the whole space."""
        return columns if self.basis is None else self.basis @ columns

    def network(self, frames: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """Return the layers ``Q_p K Q_{p-1}^T`` in the whole space, balanced up to rounding."""
        q = self.outside(orthonormalized(frames, 2))
        left, layers = q[..., 1:, :, :] @ k.unsqueeze(-3), range(len(self.widths) - 1)
        return tuple(self._cut(left, p, p + 1) @ self._cut(q, p, p).mT for p in layers)

    def vector(self, frames: Tensor, v: Velocity) -> tuple[Tensor, ...]:
        """Return the layers of a tangent vector in the whole space."""
        q, y = self.outside(orthonormalized(frames, 2)), self.outside(v.outers)
        left = q[..., 1:, :, :] @ v.cores + y[..., 1:, :, :]
        return tuple(
            self._cut(left, p, p + 1) @ self._cut(q, p, p).mT
            + self._cut(q, p + 1, p + 1) @ self._cut(y, p, p).mT
            for p in range(len(self.widths) - 1)
        )

    def _cut(self, columns: Tensor, index: int, p: int) -> Tensor:
        return columns[..., index, : self.widths[p], :]


def _with_hidden(outers: Tensor, factor: float) -> Tensor:
    """Return the parts of all frames, (..., N + 1, D, r), with those of hidden ones multiplied."""
    first, hidden, last = outers[..., :1, :, :], outers[..., 1:-1, :, :], outers[..., -1:, :, :]
    return torch.cat((first, factor * hidden, last), -3)


def padded_stack(columns: Sequence[Tensor], width: int) -> Tensor:
    """Return thin matrices as one tensor, padded with rows of zeros, shape (..., P, D, k)."""
    filled = [torch.nn.functional.pad(x, (0, 0, 0, width - x.shape[-2])) for x in columns]
    return torch.stack(torch.broadcast_tensors(*filled), -3)


def normal_cores(e: Tensor, lam: Tensor, depth: int) -> Tensor:
    """Return the cores of the normal vector that changes the moments by e.

    ``n_p = lam_i mu_{p-1} - lam_j mu_p``, ``mu_0 = mu_N = 0``, in frames in which K is ``lam``.
    """
    mu, pad = jacobi_solve(e, lam, depth), torch.nn.functional.pad
    rows, columns = lam[..., None, :, None], lam[..., None, None, :]
    return rows * pad(mu, (0, 0, 0, 0, 1, 0)) - columns * pad(mu, (0, 0, 0, 0, 0, 1))


def tangent_blocks(frames: Tensor, lam: Tensor, right: Tensor, left: Tensor) -> Velocity:
    """Return the tangent part of a vector m of all layers, in frames in which K is ``lam``.

    `right` and `left`, of shape (..., N, D, r), are ``m_p Q_{p-1}`` and ``m_p^T Q_p``.
    """
    before, after, pad = frames[..., :-1, :, :], frames[..., 1:, :, :], torch.nn.functional.pad
    cores = after.mT @ right
    outers = pad(right - after @ cores, (0, 0, 0, 0, 1, 0))
    outers = outers + pad(left - before @ cores.mT, (0, 0, 0, 0, 0, 1))
    return straightened(frames, lam, Velocity(cores, _with_hidden(outers, 0.5)))


def projected(frames: Tensor, lam: Tensor, m: Tensor) -> Velocity:
    """Return the tangent part of a vector of all layers, (..., N, D, D)."""
    return tangent_blocks(frames, lam, m @ frames[..., :-1, :, :], m.mT @ frames[..., 1:, :, :])


def straightened(frames: Tensor, lam: Tensor, v: Velocity) -> Velocity:
    """Remove the normal part of the cores of a vector, and of its outers the part in the frames."""
    cores, depth = v.cores, v.cores.shape[-3]
    if depth > 1:
        slope = lam[..., None, :, None] * cores[..., 1:, :, :]
        slope = slope - cores[..., :-1, :, :] * lam[..., None, None, :]
        cores = cores - normal_cores(slope + slope.mT, lam, depth)
    return Velocity(cores, v.outers - frames @ (frames.mT @ v.outers))


def of_unit_size_together(network: Network, *others: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return an exponent, or None, and a network and vectors or networks over that power of two.

    Geodesics scale with their layers, whose squares are in range then.
    """
    if all(map(is_ordinary, (network, *others))):
        return None, network, *others
    size = exponent_of(*network)
    for other in others:
        if isinstance(other, Network):
            size = torch.maximum(size, exponent_of(*other))
    small = (resized(x, -size) for x in (network, *others))
    kinds = zip((network, *others), small, strict=True)
    return size, *(Network(w) if isinstance(x, Network) else list(w) for x, w in kinds)


def resized(layers: Sequence[Tensor], exponent: Tensor | None) -> tuple[Tensor, ...]:
    """Return layers multiplied by a power of two, shape (...), if there is one."""
    if exponent is None:
        return tuple(layers)
    return tuple(by_power_of_two(w, exponent) for w in layers)
