"""Weights, angles and products of frames from which the tangent spaces are made."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


def horizontal_weights(lam: Tensor, depth: int) -> Tensor:
    """Return ``lam_i^{N-p} lam_j^{p-1} / sqrt(a_ij)``, shape (..., N, r, r).

    Relative to the largest power of each pair, so that no depth under- or overflows.
    """
    x = lam.log()
    gap = (x.unsqueeze(-1) - x.unsqueeze(-2)).unsqueeze(-3)
    p = torch.arange(depth, dtype=lam.dtype, device=lam.device)[:, None, None]
    # lam_i^{N-1-p} lam_j^p over the (N - 1)-th power of the larger one.
    power = torch.exp(torch.where(gap > 0, -p * gap, (depth - 1 - p) * gap))
    return power / power.square().sum(-3, keepdim=True).sqrt()


def jacobi_angles(lam: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``sin phi``, ``cos phi`` (N-1, N) and ``cos psi``, ``sin psi`` (..., N-1, r, r).

    The image of the eigenvector ``sin(k p pi/N)`` under the gauge directions has the entry
    ``lam_j sin(k p pi/N) - lam_i sin(k (p-1) pi/N)``; sums and differences of the two sines
    avoid cancellation, and the root of the eigenvalue is a hypotenuse.
    """
    k, p = (torch.arange(1, depth + more, device=lam.device) for more in (0, 1))
    # Reduced as integers: the argument would lose digits, most of them in float32.
    angle = (torch.outer(k, 2 * p - 1) % (4 * depth)).to(torch.float64) * (0.5 * math.pi / depth)
    theta = (k.to(torch.float64) * (0.5 * math.pi / depth)).to(lam.dtype)[:, None, None]
    rows, columns = lam[..., None, :, None], lam[..., None, None, :]
    difference = (columns - rows) * torch.cos(theta)
    total = (columns + rows) * torch.sin(theta)
    length = torch.hypot(difference, total)
    sine, cosine = angle.sin().to(lam.dtype), angle.cos().to(lam.dtype)
    return sine, cosine, difference / length, total / length


def jacobi_solve(e: Tensor, lam: Tensor, depth: int) -> Tensor:
    """Solve ``2 (lam_i^2 + lam_j^2) mu_p - 2 lam_i lam_j (mu_{p-1} + mu_{p+1}) = e_p``.

    Shape (..., N-1, r, r). Diagonal in the sines ``sin(k p pi/N)``; of ``n_p = lam_i mu_{p-1} -
    lam_j mu_p``, normal to the balanced networks, the moments have the derivatives ``e_p``.
    """
    sines, half = _sines(depth)
    table = torch.as_tensor(sines, dtype=lam.dtype, device=lam.device)
    square = torch.as_tensor(4.0 * half**2, dtype=lam.dtype, device=lam.device)[:, None, None]
    rows, columns = lam[..., None, :, None], lam[..., None, None, :]
    # lam_i^2 + lam_j^2 - 2 lam_i lam_j cos(k pi/N), without cancellation.
    eigenvalues = (rows - columns).square() + rows * columns * square
    return transform(table, transform(table, e) / eigenvalues) / depth


@cache
def _sines(depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``sin(k p pi/N)`` for k, p = 1..N-1, and ``sin(k pi/2N)``."""
    k = np.arange(1, depth)
    return np.sin(np.outer(k, k) * (math.pi / depth)), np.sin(k * (0.5 * math.pi / depth))


def cores_of(frames: list[Tensor], v: list[Tensor]) -> Tensor:
    """Return ``Q_p^T v_p Q_{p-1}``, shape (..., N, r, r)."""
    cores = (q.mH @ a @ before for (before, q), a in zip(pairwise(frames), v, strict=True))
    return torch.stack(torch.broadcast_tensors(*cores), -3)


def from_cores(frames: list[Tensor], cores: Tensor) -> list[Tensor]:
    """Return ``Q_p c_p Q_{p-1}^T`` for every layer."""
    layers = zip(pairwise(frames), cores.unbind(-3), strict=True)
    return [after @ core @ before.mH for (before, after), core in layers]


def transform(table: Tensor, cores: Tensor) -> Tensor:
    """Sum over the layers with one row of `table` for every mode, shape (..., K, r, r)."""
    return (table.to(cores.dtype) @ cores.flatten(-2)).unflatten(-1, cores.shape[-2:])


def complement(q: Tensor) -> Tensor:
    """Return an orthonormal basis of the orthogonal complement of the columns, (..., d, d - r)."""
    return torch.linalg.qr(q, mode="complete").Q[..., q.shape[-1] :]


def dyads(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left_i right_j^T`` for all pairs of columns, shape (..., k, l, m, n).

    The right columns of complex matrices are conjugate.
    """
    return torch.einsum("...ai,...bj->...ijab", left, right.conj())
