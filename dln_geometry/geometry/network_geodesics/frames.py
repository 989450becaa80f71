r"""Balanced networks and their tangent vectors in frames, in the small space of a geodesic.

``W_p = Q_p K Q_{p-1}^T`` with orthonormal columns Q_p and one symmetric K for all layers, and
``v_p = Q_p c_p Q_{p-1}^T + y_p Q_{p-1}^T + Q_p y_{p-1}^T`` with ``Q_p^T y_p = 0``. The orthogonal
maps that fix a network and a tangent vector fix their geodesic: it stays in the spans of Q_p and
y_p, at most 2r dimensions at every layer, whatever the widths.

Layers of several widths are stacked as if all were as wide as the widest, which adds zeros only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dln_geometry.geometry.submersion import jacobi_solve

__all__ = [
    "LayerBox",
    "Velocity",
    "normal_cores",
    "polished",
    "stacked",
    "straightened",
    "tangent_blocks",
]


class Velocity(NamedTuple):
    """A tangent vector in the frames of its network.

    Attributes
    ----------
    cores : Tensor, shape (..., N, r, r)
        ``c_p``, p = 1..N.
    outers : Tensor, shape (..., N + 1, D, r)
        ``y_p``, p = 0..N.
    """

    cores: Tensor
    outers: Tensor

    def coordinates(self) -> Tensor:
        """Return orthonormal coordinates, shape (..., k)."""
        inner, outer = self.cores.flatten(-3), self.outers
        if outer.shape[-3] > 2:
            # Hidden ones turn two layers.
            ends = outer[..., :1, :, :], outer[..., -1:, :, :]
            outer = torch.cat((ends[0], math.sqrt(2.0) * outer[..., 1:-1, :, :], ends[1]), -3)
        return torch.cat((inner, outer.flatten(-3)), -1)

    @classmethod
    def of(cls, coordinates: Tensor, depth: int, width: int, rank: int) -> Velocity:
        """Return the vector with these coordinates."""
        inner, outer = coordinates.split((depth * rank**2, (depth + 1) * width * rank), -1)
        outer = outer.unflatten(-1, (depth + 1, width, rank))
        if depth > 1:
            ends = outer[..., :1, :, :], outer[..., -1:, :, :]
            outer = torch.cat((ends[0], math.sqrt(0.5) * outer[..., 1:-1, :, :], ends[1]), -3)
        return cls(inner.unflatten(-1, (depth, rank, rank)), outer)

    def length(self) -> Tensor:
        """Return the Frobenius norm of all layers, shape (...)."""
        return torch.linalg.vector_norm(self.coordinates(), dim=-1)

    def moved(self, basis: Tensor) -> Velocity:
        """Return the vector in the frames ``Q_p basis``."""
        wide = basis.unsqueeze(-3)
        return Velocity(wide.mT @ self.cores @ wide, self.outers @ wide)


@dataclass(frozen=True)
class LayerBox:
    """The space in which the geodesics of some networks stay.

    Attributes
    ----------
    widths : tuple of int
        ``(d_0, ..., d_N)``.
    basis : Tensor, shape (..., N + 1, max d, D), or None
        Orthonormal columns; None where the box is the whole space.
    """

    widths: tuple[int, ...]
    basis: Tensor | None

    @classmethod
    def around(cls, widths: Sequence[int], *columns: Tensor) -> LayerBox:
        """Return the box spanned by columns, the first of them frames, (..., N + 1, max d, k)."""
        span = sum(x.shape[-1] for x in columns)
        if span >= max(widths):
            return cls(tuple(widths), None)
        batch = torch.broadcast_shapes(*(x.shape[:-2] for x in columns))
        wide = [x.expand(*batch, *x.shape[-2:]) for x in columns]
        return cls(tuple(widths), torch.linalg.qr(torch.cat(wide, -1)).Q)

    def inside(self, columns: Tensor) -> Tensor:
        """Return columns of the whole space, (..., N + 1, max d, k), in those of the box."""
        return columns if self.basis is None else self.basis.mT @ columns

    def outside(self, columns: Tensor) -> Tensor:
        """Return columns of the box in the whole space."""
        return columns if self.basis is None else self.basis @ columns

    def network(self, frames: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """Return the layers ``Q_p K Q_{p-1}^T`` in the whole space, balanced up to roundings."""
        q = self.outside(polished(frames))
        left = q[..., 1:, :, :] @ k.unsqueeze(-3)
        return tuple(
            self._cut(left, p, p + 1) @ self._cut(q, p, p).mT for p in range(len(self.widths) - 1)
        )

    def vector(self, frames: Tensor, v: Velocity) -> tuple[Tensor, ...]:
        """Return the layers of a tangent vector in the whole space."""
        q, y = self.outside(polished(frames)), self.outside(v.outers)
        left = q[..., 1:, :, :] @ v.cores + y[..., 1:, :, :]
        return tuple(
            self._cut(left, p, p + 1) @ self._cut(q, p, p).mT
            + self._cut(q, p + 1, p + 1) @ self._cut(y, p, p).mT
            for p in range(len(self.widths) - 1)
        )

    def _cut(self, columns: Tensor, index: int, p: int) -> Tensor:
        return columns[..., index, : self.widths[p], :]


def stacked(columns: Sequence[Tensor], width: int) -> Tensor:
    """Return thin matrices as one tensor, their rows filled up by zeros, shape (..., P, D, k)."""
    filled = [torch.nn.functional.pad(x, (0, 0, 0, width - x.shape[-2])) for x in columns]
    return torch.stack(torch.broadcast_tensors(*filled), -3)


def polished(frames: Tensor) -> Tensor:
    """Return columns, orthonormal but for errors of integration, orthonormal up to roundings."""
    return 1.5 * frames - 0.5 * (frames @ (frames.mT @ frames))


def normal_cores(e: Tensor, lam: Tensor, depth: int) -> Tensor:
    """Return the cores of the normal vector along which the moments have the derivatives e.

    ``n_p = lam_i mu_{p-1} - lam_j mu_p``, ``mu_0 = mu_N = 0``, in frames in which K is ``lam``.
    """
    mu = jacobi_solve(e, lam, depth)
    rows, columns = lam[..., None, :, None], lam[..., None, None, :]
    pad = torch.nn.functional.pad
    return rows * pad(mu, (0, 0, 0, 0, 1, 0)) - columns * pad(mu, (0, 0, 0, 0, 0, 1))


def tangent_blocks(frames: Tensor, lam: Tensor, right: Tensor, left: Tensor) -> Velocity:
    """Return the tangent part of a vector m of all layers, in frames in which K is ``lam``.

    Parameters
    ----------
    frames : Tensor, shape (..., N + 1, D, r)
    lam : Tensor, shape (..., r)
    right : Tensor, shape (..., N, D, r)
        ``m_p Q_{p-1}``.
    left : Tensor, shape (..., N, D, r)
        ``m_p^T Q_p``.
    """
    depth = frames.shape[-3] - 1
    before, after = frames[..., :-1, :, :], frames[..., 1:, :, :]
    cores = after.mT @ right
    pad = torch.nn.functional.pad
    outers = pad(right - after @ cores, (0, 0, 0, 0, 1, 0))
    outers = outers + pad(left - before @ cores.mT, (0, 0, 0, 0, 0, 1))
    if depth > 1:
        outers = torch.cat(
            (outers[..., :1, :, :], 0.5 * outers[..., 1:-1, :, :], outers[..., -1:, :, :]), -3
        )
    return straightened(frames, lam, Velocity(cores, outers))


def straightened(frames: Tensor, lam: Tensor, v: Velocity) -> Velocity:
    """Return a vector in the frames of a network without what is not tangent, or not outside."""
    cores, depth = v.cores, v.cores.shape[-3]
    if depth > 1:
        slope = lam[..., None, :, None] * cores[..., 1:, :, :]
        slope = slope - cores[..., :-1, :, :] * lam[..., None, None, :]
        cores = cores - normal_cores(slope + slope.mT, lam, depth)
    return Velocity(cores, v.outers - frames @ (frames.mT @ v.outers))
