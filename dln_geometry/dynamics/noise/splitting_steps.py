"""Langevin steps of weak order 2: a flat Brownian motion, rotations, and a radial flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.dynamics.noise.product_steps import (
    Downstairs,
    Gaussians,
    Thermostat,
    decomposable,
    gradient_parts,
)
from dln_geometry.dynamics.noise.rotations import Draw, excess_rates, polished, rotated
from dln_geometry.geometry.kernel import power_divided_difference
from dln_geometry.geometry.metric import entropy_pull
from dln_geometry.geometry.points import EndToEnd

__all__ = ["Split", "Splitting", "rotates_first"]


class Split(Downstairs):
    """States ``(u, s, vh, balance)``, see `rotates_first`."""

    def _matrix(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ()

    def _noise(self, p: Tensor, q: Tensor, shape: tuple[int, ...], h: float) -> Tensor:
        """Return the noise of A in the frame q, or of Y, or half that of H."""
        return self.noise.draw(shape, p, self.drive.amplitude * math.sqrt(h))

    def _draw(self, p: Tensor, q: Tensor) -> Draw:
        """Return a source of standard normal numbers, for rotations of these frames."""
        return lambda shape: self.noise.draw(shape, p, 1.0)


class Splitting(Split):
    r"""Langevin dynamics in ``Y = U rho V^T``, ``rho = sqrt(N) s^{1/N}``, at finite depth.

    The rotations by which the noise exceeds a flat one (`rotations`), before or after the rest of a
    step in turn; half a step of the radial flow ``(rho^2)' = 2 (rho dS/drho + kappa q) / beta``,
    Heun's step of ``dY = b dt + sqrt(2 kappa/beta) dB``, half a step of the radial flow. In the
    frames the drift of the loss is smooth where values collide or vanish,
    ``b = -N [ (s_i + s_j)/(rho_i + rho_j) e_sym + (s_i - s_j)/(rho_i - rho_j) e_anti ]``,
    ``e = U^T E' V``: the weights of the gradient of ``E(X(Y))``, exchanged, times N. One SVD
    without a loss, two with one.

    Of a matrix of lower rank ``Y = A Q^T`` with the frame Q on the shorter side the flat motion is
    that of A; Q turns by rotations alone, and the wall ``q = n - r`` of that side is radial.
    """

    def __init__(
        self, drive: Thermostat, noise: Gaussians, start: EndToEnd, collapsed: bool
    ) -> None:
        super().__init__(drive, noise, start, collapsed)
        (m, n), r = start.shape, start.rank
        self.swapped = m < n
        self.whole = min(m, n) == r
        self.wall = 0.0 if self.whole else drive.kappa * (min(m, n) - r) / drive.beta
        self.root = math.sqrt(start.depth)
        self.slow = start.depth if start.normalized else 1.0
        self.orientation: Tensor | None = None
        if m == n == r and start.depth % 2 == 0:
            # Conserved, as in networks of balanced layers.
            self.orientation = torch.linalg.slogdet(start.u @ start.vh).sign

    def advance(self, state: tuple[Tensor, ...], h: float, index: int) -> tuple[Tensor, ...]:
        """Return the state after one step."""
        u, s, vh, balance = state
        before, balance = rotates_first(balance, h)
        p, q = (vh.mT, u) if self.swapped else (u, vh.mT)
        rho = self.root * s ** (1.0 / self.depth)
        if before:
            p, q = self._turned(p, q, rho, h / self.slow)
        p, rho, q = self._flat(p, self._radial(rho, 0.5 * h / self.slow), q, h, index, state)
        if not before:
            p, q = self._turned(p, q, rho, h / self.slow)
        s = (self._radial(rho.abs(), 0.5 * h / self.slow) / self.root) ** self.depth
        return (q, s, p.mT, balance) if self.swapped else (p, s, q.mT, balance)

    def _flat(
        self, p: Tensor, rho: Tensor, q: Tensor, h: float, index: int, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make Heun's step of Y; at even depths the last value carries the sign of det Y det X."""
        time = h / self.slow
        a = p * rho.unsqueeze(-2)
        a = a @ q.mT if self.whole else a
        value, turn, moved = rho.new_zeros(rho.shape[:-1]), None, a
        if self.drive.kappa > 0:
            moved = a + self._noise(p, q, tuple(a.shape), time)
        tried = moved
        try:
            if self.drive.loss is not None:
                value, first, turn = self._velocity(p, rho, q, time)
                if index & (index - 1) == 0:
                    self.watch(first.square().sum((-2, -1)), rho.square().sum(-1), h)
                first = first @ q.mT if self.whole else first
                tried = moved + first
                p1, rho1, back = self._decomposed(tried)
                q1 = back.mT if self.whole else _moved(q, turn) @ back.mT
                _, second, turn1 = self._velocity(p1, rho1, q1, time)
                moved = moved + 0.5 * (first + second @ back)
                if turn is not None and turn1 is not None:
                    turn1 = turn1 @ back
                    turn = 0.5 * (turn + turn1 - q @ (q.mT @ turn1))
            tried = moved
            p, rho, back = self._decomposed(tried)
            finite = torch.isfinite(rho).all(-1) & torch.isfinite(value)
        except torch.linalg.LinAlgError:
            finite = decomposable(tried)
        if not bool(finite.all()):
            raise self._diverged(self._at(state), finite, h)
        return p, rho, back.mT if self.whole else polished(_moved(q, turn)) @ back.mT

    def _radial(self, rho: Tensor, h: float) -> Tensor:
        """Follow entropy and wall: the midpoint rule for ``rho^2``, whose speed is bounded."""
        drive = self.drive
        if not drive.entropy:
            return (rho.square() + 2.0 * h * self.wall).sqrt() if self.wall else rho
        middle = (rho.square() + h * self._push(rho)).sqrt()
        return (rho.square() + 2.0 * h * self._push(middle)).sqrt()

    def _push(self, rho: Tensor) -> Tensor:
        """Return ``(rho dS/drho + kappa q) / beta``."""
        tiny = torch.finfo(rho.dtype).tiny ** 0.5
        s = ((rho / self.root) ** self.depth).clamp_min(tiny)
        pull = entropy_pull(s.log(), self.depth, excess=self.drive.excess)
        return (self.depth / self.drive.beta) * pull + self.wall

    def _turned(self, p: Tensor, q: Tensor, rho: Tensor, h: float) -> tuple[Tensor, Tensor]:
        drive = self.drive
        if drive.kappa == 0:
            return p, q
        variance = drive.amplitude**2 * h
        signed = self.orientation is not None
        rates = excess_rates(
            rho, self.depth, variance, left=self.depth - 1.0, right=self.depth, signed=signed
        )
        return rotated(p, q, rates, self._draw(p, q))

    def _decomposed(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the SVD of A; at even depths the last value has the sign that det X has not."""
        p, rho, back = torch.linalg.svd(a, full_matrices=False)
        if self.orientation is None:
            return p, rho, back
        sign = torch.where(torch.linalg.slogdet(a).sign * self.orientation < 0, -1.0, 1.0)
        p, rho = p.clone(), rho.clone()
        p[..., -1] *= sign.to(p.dtype).unsqueeze(-1)
        rho[..., -1] *= sign.to(p.dtype)
        return p, rho, back

    def _velocity(
        self, p: Tensor, rho: Tensor, q: Tensor, h: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the loss, the drift of A in the frame q, and that of q out of its range, times h.

        Tamed as in `downstairs.descent`: a change of third order in h.
        """
        (m, r), n, depth = p.shape[-2:], q.shape[-2], self.depth
        lam = rho / self.root
        size = lam.abs()
        u, v = (q, p) if self.swapped else (p, q)
        point = EndToEnd(u, size**depth, v.mT, depth, self.normalized)
        value, e, gv, gu = gradient_parts(self.drive.loss, point)
        e = e.mT if self.swapped else e
        even, odd = self._weights(lam)
        core = (-0.5 * self.root * h) * (even * (e + e.mT) + odd * (e - e.mT))
        drift, turn = p @ core, None
        # G^T U comes times s: the powers of lam are those that are left.
        inverse = torch.where(size > 0, 1.0 / size, 0.0).unsqueeze(-2)
        size = size.unsqueeze(-2)
        if m > r:
            out = gu.mT * inverse if gv is None or self.swapped else gv * size ** (depth - 1.0)
            drift = drift - (self.root * h) * (out - p @ (p.mT @ out))
        if n > r:
            turn = gu.mT * inverse.square()
            if gv is not None and self.swapped:
                turn = gv * size ** (depth - 2.0)
            turn = -h * (turn - q @ (q.mT @ turn))
        reach = rho.square().sum(-1)
        way = drift.square().sum((-2, -1))
        if turn is not None:
            way = way + (turn * rho.unsqueeze(-2)).square().sum((-2, -1))
        total = (reach + way).clamp_min(torch.finfo(way.dtype).tiny)
        shrink = ((reach / total).sqrt() + 0.0 * way)[..., None, None]
        return value, drift * shrink, None if turn is None else turn * shrink

    def _weights(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(s_i + s_j)/(lam_i + lam_j)`` and ``(s_i - s_j)/(lam_i - lam_j)``."""
        size = lam.abs()
        s = size**self.depth
        total, sums = lam.unsqueeze(-1) + lam.unsqueeze(-2), s.unsqueeze(-1) + s.unsqueeze(-2)
        odd = power_divided_difference(size, self.depth)
        if self.orientation is not None:
            across = (lam.unsqueeze(-1) < 0) ^ (lam.unsqueeze(-2) < 0)
            larger = torch.maximum(size.unsqueeze(-1), size.unsqueeze(-2))
            # It comes to this only where one step leads from a side to far on the other.
            total = torch.where(across, total.clamp_min(0.1 * larger), total)
            gap = torch.where(across, lam.unsqueeze(-1) - lam.unsqueeze(-2), 1.0)
            odd = torch.where(across, (s.unsqueeze(-1) - s.unsqueeze(-2)) / gap, odd)
        return sums / torch.where(total == 0, math.inf, total), odd


def rotates_first(balance: Tensor, h: float) -> tuple[bool, Tensor]:
    """Return whether rotations come before the rest of a step, and the new balance.

    The order of two flows costs ``+-h^2/2`` of their commutator. These shares are kept in balance:
    steps of one size come in symmetric pairs, and saved times may make steps of different sizes.
    """
    before = float(balance) <= 0.0
    return before, balance + (h * h if before else -h * h)


def _moved(frame: Tensor, turn: Tensor | None) -> Tensor:
    """Return the orthonormal frame nearest to a frame with a part outside its range."""
    if turn is None:
        return frame
    c, w = torch.linalg.eigh(turn.mT @ turn)
    return (frame + turn) @ ((w * (1.0 + c.clamp_min(0.0)).rsqrt().unsqueeze(-2)) @ w.mT)
