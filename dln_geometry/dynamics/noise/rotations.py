r"""Random rotations: with a flat Brownian motion they make that of ``g^N``.

In ``Y = U rho V^T``, ``rho = sqrt(N) s^{1/N}``, the generator of Brownian motion of X is that of a
flat Brownian motion of Y plus one of random rotations of U and V, at rates that depend on rho
alone and are finite where singular values collide. With ``t = log rho_i/rho_j``, the relative
rotation ``U^T dU +- V^T dV`` in the plane (i, j) has the variances

    C+ = 2 N coth(N t/2) / (rho_i^2 - rho_j^2),    C- = 2 N tanh(N t/2) / (rho_i^2 - rho_j^2),

flat ones have those of N = 1, and the differences are never negative. Out of its range a frame
turns by ``N / rho_i^2`` in each direction, ``1 / rho_i^2`` of it by a flat motion. At infinite
depth the flat motion is one of symmetric matrices, with eigenvalues ``log s``.

Over the complex numbers rotations with imaginary generators, ``i (E_ij + E_ji)``, have the same
variances, and the phase of ``u_k v_k^*`` turns by ``N^2 / rho_k^2``, ``1 / rho_k^2`` of it by a
flat motion; at infinite depth by 1, and Hermitian H turn no phases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import langevin_function, waitless
from dln_geometry.geometry.points import orthonormalized
from dln_geometry.support import Depth, on_device

Draw = Callable[[tuple[int, ...]], Tensor]

_MOST_VARIANCE = 0.25
"""Variance of a row of angles above which a rotation is not resolved, and tamed."""

_FASTEST = 1e5


@dataclass(frozen=True)
class Rates:
    """Variances of the angles of a random rotation.

    `plus` and `minus` (..., r, r): of the sum and the difference of the angles of both frames, zero
    on the diagonal; `left` and `right` (..., r): of the angle with each direction outside a frame;
    `phases` (..., r): of complex columns.
    """

    plus: Tensor
    minus: Tensor
    left: Tensor
    right: Tensor
    phases: Tensor | None = None


def excess_rates(
    rho: Tensor,
    depth: Depth,
    variance: float,
    *,
    left: float = 0.0,
    right: float = 0.0,
    signed: bool = False,
    phases: bool = False,
) -> Rates:
    """Return by how much the rotations of depth N exceed flat ones.

    `rho` (..., r) are the `FlatCoordinates`, descending; `variance` is that of the entries of the
    flat motion; `left` and `right` are the rates out of the ranges over ``variance / rho^2`` (not
    used at infinite depth). If `signed`, the last of `rho` may be negative: the flat motion has
    passed ``det = 0``, but at even depths the determinant of X keeps its sign. With `phases` they
    are those of complex matrices.
    """
    if depth.infinite:
        t, apart = _gaps(rho)
        plus = variance * apart * langevin_function(0.5 * t) / t
        minus = variance * apart * torch.tanh(0.5 * t) / t
        zero = torch.zeros_like(rho)
        turning = torch.full_like(rho, variance) if phases else None
        return Rates(plus.clamp_max(_FASTEST), minus.clamp_max(_FASTEST), zero, zero, turning)
    size = rho.abs().clamp_min(torch.finfo(rho.dtype).tiny ** 0.25)
    t, apart = _gaps(size.log())
    scale = 2.0 * variance / torch.maximum(size.unsqueeze(-1), size.unsqueeze(-2)).square()
    scale = scale * apart / -torch.expm1(-2.0 * t)
    deep, flat = 0.5 * depth * t, 0.5 * t
    # coth t = L(t) + 1/t: the poles of both cotangents cancel.
    plus = scale * (depth * langevin_function(deep) - langevin_function(flat))
    minus = scale * (depth * torch.tanh(deep) - torch.tanh(flat))
    if signed:
        # Flat rotations of a negative value are those of its modulus with the signs exchanged.
        negative = (rho < 0).to(rho.dtype)
        crossed = (negative.unsqueeze(-1) - negative.unsqueeze(-2)).abs()
        other = crossed * scale * (1.0 / torch.tanh(flat) - torch.tanh(flat))
        plus, minus = plus + other, (minus - other).clamp_min(0.0)
    outer = variance / size.square()
    parts = [plus, minus, left * outer, right * outer]
    parts = [*parts, (depth**2 - 1.0) * outer] if phases else parts
    return Rates(*(x.clamp_max(_FASTEST) for x in parts))


def _gaps(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``|x_i - x_j|``, bounded below to keep quotients smooth, and 1 off the diagonal."""
    t = (x.unsqueeze(-1) - x.unsqueeze(-2)).abs_().clamp_min_(torch.finfo(x.dtype).eps ** 0.5)
    return t, 1.0 - torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


def rotated(p: Tensor, q: Tensor, rates: Rates, draw: Draw) -> tuple[Tensor, Tensor]:
    """Turn two frames (..., m, r) and (..., n, r) at random, with weak order 2.

    Each by ``exp(Z) exp(W - Z)``, where Z has half the variance of W and is independent of W: the
    fourth-order moments are then those of the square of the generator (Ninomiya, Ninomiya 2009).
    Rotations too fast to be resolved are tamed, which changes the others to fifth order in their
    variances. ``draw(shape)`` returns standard normal numbers, complex ones in both parts.
    """
    (m, n), r, batch = (p.shape[-2], q.shape[-2]), p.shape[-1], p.shape[:-2]
    inside = 0.25 * (rates.plus + rates.minus).sum(-1)
    row = inside + torch.maximum((m - r) * rates.left, (n - r) * rates.right)
    if rates.phases is not None:
        row = 2.0 * row + 0.25 * rates.phases
    tame = (1.0 + (row / _MOST_VARIANCE).square().square()) ** -0.125
    pair = tame.unsqueeze(-1) * tame.unsqueeze(-2)
    z = draw((2, *batch, r, r))
    above = torch.ones(r, r, dtype=tame.dtype, device=z.device).triu_(1)
    sign, real = above - above.mT, z.real
    both, apart = sign * (real + real.mT), real - real.mT
    if rates.phases is not None:
        both = torch.complex(both, z.imag + z.imag.mT)
        apart = torch.complex(apart, sign * (z.imag - z.imag.mT))
    both = (rates.plus / 8).sqrt_().mul_(pair) * both
    apart = (rates.minus / 8).sqrt_().mul_(pair) * apart
    if rates.phases is not None:
        angles = 0.5 * rates.phases.sqrt() * tame * real.diagonal(dim1=-2, dim2=-1)
        apart = apart + torch.complex(torch.zeros_like(angles), angles).diag_embed()
    # First index: the two exponentials; second: the two frames.
    turn = torch.stack((both + apart, both - apart), 1)
    turn = torch.stack((math.sqrt(0.5) * turn[0], turn[1] - math.sqrt(0.5) * turn[0]))
    x = _rotation(turn)
    x = x[0] @ x[1]
    ends = []
    for k, (frame, rate) in enumerate(((p, rates.left), (q, rates.right))):
        # On a device nobody looks whether all rates are zero.
        if frame.shape[-2] > r and (on_device(rate) or bool(rate.any())):
            out = _outwards(frame, rate.sqrt() * tame, draw)
            ends.append(_after_exponentials(frame, turn[:, k], out))
        else:
            ends.append(frame @ x[k])
    return ends[0], ends[1]


def _outwards(frame: Tensor, size: Tensor, draw: Draw) -> Tensor:
    """Return two random generators of rotations out of the range, (2, ..., m, r)."""
    z = draw((2, *frame.shape)) * size.unsqueeze(-2)
    z = z - frame @ (frame.mH @ z)
    return torch.stack((math.sqrt(0.5) * z[0], z[1] - math.sqrt(0.5) * z[0]))


def _after_exponentials(frame: Tensor, inside: Tensor, out: Tensor) -> Tensor:
    """Apply two exponentials of ``[[A, -B^*], [B, 0]]`` to a frame, the second one first.

    Four terms of their series keep lengths up to the sixth order: the QR decomposition that
    follows changes terms of the third order in the variances.
    """
    eye = torch.eye(frame.shape[-1], dtype=frame.dtype, device=frame.device)
    x, y = eye.expand_as(inside[0]), torch.zeros_like(frame)
    for a, b in ((inside[1], out[1]), (inside[0], out[0])):
        x0, y0 = x, y
        for k in (4, 3, 2, 1):
            x, y = x0 + (a @ x - b.mH @ y) / k, y0 + b @ x / k
    if waitless(frame):
        return orthonormalized(frame @ x + y, 4)
    moved, upper = torch.linalg.qr(frame @ x + y)
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1).real < 0, -1.0, 1.0).to(moved.dtype)
    return moved * sign.unsqueeze(-2)


def _rotation(a: Tensor) -> Tensor:
    """Return ``exp(a)`` up to fifth order, as the Cayley transform of ``a - a^3/12``."""
    half = 0.5 * a - (a @ a @ a) / 24.0
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return torch.linalg.solve_ex(eye - half, eye + half).result
