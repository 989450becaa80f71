"""Langevin steps of weak order 2: a flat Brownian motion, rotations, and a radial flow."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.noise.flat_coordinates import FlatCoordinates
from dln_geometry.dynamics.noise.product_steps import (
    Gaussians,
    MatrixSteps,
    Thermostat,
    decomposable,
    gradient_parts,
    tamed,
)
from dln_geometry.dynamics.noise.rotations import Draw, excess_rates, rotated
from dln_geometry.dynamics.noise.simulation import State
from dln_geometry.geometry.kernel import quick_svd, small_eigh
from dln_geometry.geometry.metric import entropy_pull
from dln_geometry.geometry.points import EndToEnd, orthonormalized
from dln_geometry.support import absolute_square, matrix_exponential


class SplittingSteps(MatrixSteps):
    r"""Langevin dynamics in ``Y = U rho V^T``, ``rho = sqrt(N) s^{1/N}``.

    A step: half a step of the radial flow ``(rho^2)' = 2 (rho dS/drho + kappa q) / beta``, Heun's
    step of ``dY = b dt + sqrt(2 kappa/beta) dB``, half a step of the radial flow; before or after
    these, in turn, the rotations by which the noise exceeds a flat one (`rotations`). The drift
    ``b = -N [ (s_i + s_j)/(rho_i + rho_j) e_sym + (s_i - s_j)/(rho_i - rho_j) e_anti ]``,
    ``e = U^T E' V``, in the frames, is smooth where values collide or vanish.

    At lower rank ``Y = A Q^T``, the frame Q on the shorter side: A has the flat motion, Q turns by
    rotations alone, and the wall ``q = n - r`` of that side is radial.

    At infinite depth ``X = O exp(H)``; the symmetric H with the eigenvalues ``rho = log s`` has the
    flat motion ``dH = b dt + sqrt(2 kappa/beta) dS`` with ``b = -(s_i + s_j)/2 e_sym``. O turns by
    rotations and with the drift ``-(s_i - s_j)/(rho_i - rho_j) e_anti``; the row and column spaces
    stand still.

    Over the complex numbers B is complex, H Hermitian, and pairs of singular values, walls and
    rotations have imaginary parts like the real ones; the phases ``i u_k v_k^*`` turn too.

    States are ``(u, s, vh, balance)``, see `rotates_first`. Methods call the frames p and q, with q
    on the shorter side, and Y, ``Y Q`` or H by the letter A.
    """

    def __init__(
        self, drive: Thermostat, noise: Gaussians, start: EndToEnd, collapsed: bool
    ) -> None:
        super().__init__(drive, noise, start, collapsed)
        (m, n), r, depth = start.shape, start.rank, start.depth
        self.flat = FlatCoordinates(depth)
        self.swapped = m < n and not depth.infinite
        self.whole = min(m, n) == r and not depth.infinite
        outside = 0 if depth.infinite else min(m, n) - r
        self.complex = start.dtype.is_complex
        self.wall = (1 + self.complex) * drive.kappa * outside / drive.beta
        self.slow = depth.unit(start.normalized)
        self.orientation: Tensor | None = None
        if m == n == r and depth % 2 == 0 and not self.complex:
            # Conserved, as by networks of balanced layers.
            self.orientation = torch.linalg.slogdet(start.u @ start.vh).sign

    def advance(self, state: State, h: float, index: int) -> State:
        u, s, vh, balance = state
        before, balance = rotates_first(balance, h)
        p, q = (vh.mH, u) if self.swapped else (u, vh.mH)
        rho = self.flat.of(s)
        if before:
            p, q = self._rotated(p, q, rho, h / self.slow)
        p, rho, q = self._moved(p, self._radial(rho, 0.5 * h / self.slow), q, h, index, state)
        if not before:
            p, q = self._rotated(p, q, rho, h / self.slow)
        rho = rho if self.depth.infinite else rho.abs()
        s = self.flat.values(self._radial(rho, 0.5 * h / self.slow))
        return (q, s, p.mH, balance) if self.swapped else (p, s, q.mH, balance)

    def flat_noise(self, p: Tensor, q: Tensor, like: Tensor, h: float) -> Tensor:
        """Return the noise of A in these frames; H takes its symmetric part."""
        return self.noise.draw(tuple(like.shape), like, self.drive.amplitude * math.sqrt(h))

    def normals(self, p: Tensor, q: Tensor) -> Draw:
        """Return a source of standard normal numbers, for rotations of these frames."""
        return lambda shape: self.noise.draw(shape, p, 1.0)

    def _moved(
        self, p: Tensor, rho: Tensor, q: Tensor, h: float, index: int, state: State
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make Heun's step of A; at even depths the last value has the sign of det Y det X."""
        deep, time = self.depth.infinite, h / self.slow
        a = rho.diag_embed().to(p.dtype) if deep else p * rho.unsqueeze(-2)
        a = a @ q.mH if self.whole else a
        value, turn, moved = rho.new_zeros(rho.shape[:-1]), None, a
        if self.drive.kappa > 0:
            z = self.flat_noise(p, q, a, time)
            moved = a + (0.5 * (z + z.mH) if deep else z)
        tried, end, rho1, back = moved, p, rho, q.mH
        try:
            if self.drive.loss is not None:
                value, first, turn = self._velocity(p, rho, q, time)
                if self.watch.due(index):
                    self.watch.look(*self._way_and_reach(first, turn, rho), h)
                first = first @ q.mH if self.whole else first
                tried = moved + first
                end, rho1, back = self._decomposed(tried)
                p1, q1 = self._frames(p, q, turn, end, back)
                _, second, turn1 = self._velocity(p1, rho1, q1, time)
                if deep:
                    second, turn1 = back.mH @ second, back.mH @ turn1
                moved = moved + 0.5 * (first + second @ back)
                if turn is not None:
                    turn1 = turn1 @ back
                    total = turn + turn1
                    turn = 0.5 * (total if deep else total - q @ (q.mH @ turn1))
            tried = moved
            end, rho1, back = self._decomposed(tried)
            finite = torch.isfinite(rho1).all(-1) & torch.isfinite(value)
        except torch.linalg.LinAlgError:
            finite = decomposable(tried)
        self.check(self.at(state), finite, h)
        p, q = self._frames(p, q, turn, end, back, last=True)
        return p, rho1, q

    def _frames(
        self, p: Tensor, q: Tensor, turn: Any, end: Tensor, back: Tensor, *, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the frames after a turn of q, or of both, from the decomposition of A."""
        if self.depth.infinite:
            if last:
                p, q = orthonormalized(p), orthonormalized(q)
            if turn is not None:
                half = matrix_exponential(0.5 * turn)
                p, q = p @ half, q @ half.mH
            return p @ end, q @ end
        if self.whole:
            return end, back.mH
        if turn is not None:
            c, w = small_eigh(turn.mH @ turn, positive=True)
            root = (w * (1.0 + c.clamp_min(0.0)).rsqrt().unsqueeze(-2)) @ w.mH
            q = (q + turn) @ root
        return end, (orthonormalized(q) if last else q) @ back.mH

    def _decomposed(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the SVD of A, or the eigenvectors and eigenvalues of H; signs as in `_moved`."""
        if self.depth.infinite:
            x, w = small_eigh(a)
            return w.flip(-1), x.flip(-1), w.flip(-1).mH
        p, rho, back = quick_svd(a)
        if self.orientation is None:
            return p, rho, back
        sign = torch.where(torch.linalg.slogdet(a).sign * self.orientation < 0, -1.0, 1.0)
        p, rho = p.clone(), rho.clone()
        p[..., -1] *= sign.to(p.dtype).unsqueeze(-1)
        rho[..., -1] *= sign.to(p.dtype)
        return p, rho, back

    def _radial(self, rho: Tensor, h: float) -> Tensor:
        """Follow entropy and wall by the midpoint rule for ``rho^2``, whose speed is bounded."""
        if not self.drive.entropy:
            return (rho.square() + 2.0 * h * self.wall).sqrt() if self.wall else rho
        if self.depth.infinite:
            return rho + h * self._push(rho + 0.5 * h * self._push(rho))
        middle = (rho.square() + h * self._push(rho)).sqrt()
        return (rho.square() + 2.0 * h * self._push(middle)).sqrt()

    def _push(self, rho: Tensor) -> Tensor:
        """Return ``(rho dS/drho + kappa q) / beta``; at infinite depth ``dS/drho / beta``."""
        if self.depth.infinite:
            return entropy_pull(rho, self.depth, f=1 + self.complex) / self.drive.beta
        s = self.flat.values(rho).clamp_min(torch.finfo(rho.dtype).tiny ** 0.5)
        pull = entropy_pull(s.log(), self.depth, excess=self.drive.excess, f=1 + self.complex)
        return (self.depth / self.drive.beta) * pull + self.wall

    def _rotated(self, p: Tensor, q: Tensor, rho: Tensor, h: float) -> tuple[Tensor, Tensor]:
        """Turn the frames by the rotations of the noise beyond the flat motion."""
        if self.drive.kappa == 0:
            return p, q
        variance, signed = self.drive.amplitude**2 * h, self.orientation is not None
        left, right = self.depth - 1.0, self.depth
        rates = excess_rates(
            rho, self.depth, variance, left=left, right=right, signed=signed, phases=self.complex
        )
        return rotated(p, q, rates, self.normals(p, q))

    def _velocity(self, p: Tensor, rho: Tensor, q: Tensor, h: float) -> tuple[Tensor, Tensor, Any]:
        """Return the loss, and h times the tamed drifts of A in q and of q out of its range.

        At infinite depth the drifts of H and O in the frames.
        """
        (m, r), n, depth = p.shape[-2:], q.shape[-2], self.depth
        s = self.flat.values(rho if depth.infinite else rho.abs())
        u, v = (q, p) if self.swapped else (p, q)
        point = EndToEnd(u, s, v.mH, depth, self.normalized, check=False)
        value, e, gv, gu = gradient_parts(self.drive.loss, point)
        e = e.mH if self.swapped else e
        sums, slopes = self.flat.weights(rho, s, signed=self.orientation is not None)
        rate, turn = -0.5 * self.flat.scale * h, None
        if depth.infinite:
            drift, turn = rate * sums * (e + e.mH), rate * slopes * (e - e.mH)
        else:
            core = rate * (sums * (e + e.mH) + slopes * (e - e.mH))
            drift, size = p @ core, (rho / self.flat.scale).abs().unsqueeze(-2)
            # `gradient_parts` returns G^T U times s: powers of s^{1/N} divide it out.
            inverse = torch.where(size > 0, 1.0 / size, 0.0)
            if m > r:
                out = gu.mH * inverse if gv is None or self.swapped else gv * size ** (depth - 1.0)
                drift = drift - (self.flat.scale * h) * (out - p @ (p.mH @ out))
            if n > r:
                turn = gu.mH * inverse.square()
                if gv is not None and self.swapped:
                    turn = gv * size ** (depth - 2.0)
                turn = -h * (turn - q @ (q.mH @ turn))
        shrink = tamed(*self._way_and_reach(drift, turn, rho))
        return value, drift * shrink, None if turn is None else turn * shrink

    def _way_and_reach(self, drift: Tensor, turn: Any, rho: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared length of a move and the squared distance from zero, (...)."""
        way, deep = absolute_square(drift).sum((-2, -1)), self.depth.infinite
        if turn is not None:
            size = turn if deep else turn * rho.unsqueeze(-2)
            way = way + absolute_square(size).sum((-2, -1))
        return way, torch.full_like(way, rho.shape[-1]) if deep else rho.square().sum(-1)


def rotates_first(balance: Tensor, h: float) -> tuple[bool, Tensor]:
    """Return whether rotations come before the rest of a step, and the new balance.

    The order of two flows costs ``+-h^2/2`` of their commutator; the balance sums these shares,
    as steps may differ in size, and the next step takes the opposite sign.
    """
    before = float(balance) <= 0.0
    return before, balance + (h * h if before else -h * h)
