"""Langevin steps of weak order 2 at infinite depth: symmetric noise, rotations, radial flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.dynamics.noise.product_steps import decomposable, gradient_parts
from dln_geometry.dynamics.noise.rotations import deep_rates, polished, rotated
from dln_geometry.dynamics.noise.splitting_steps import Split, rotates_first
from dln_geometry.geometry.metric import entropy_pull
from dln_geometry.geometry.points import EndToEnd

__all__ = ["DeepSplitting"]


class DeepSplitting(Split):
    r"""Langevin dynamics at infinite depth: ``X = O exp(H)``, H with the eigenvalues ``log s``.

    ``dH = b dt + sqrt(2 kappa/beta) dS`` with a Brownian motion S of symmetric matrices and
    ``b = -(s_i + s_j)/2 e_sym``; the drift of the orthogonal part is
    ``-(s_i - s_j)/(u_i - u_j) e_anti``. The row and column spaces stand still. Steps are composed
    as in `split_steps.Splitting`.
    """

    def advance(self, state: tuple[Tensor, ...], h: float, index: int) -> tuple[Tensor, ...]:
        """Return the state after one step."""
        u, s, vh, balance = state
        before, balance = rotates_first(balance, h)
        q, x = vh.mT, s.log()
        if before:
            u, q = self._turned(u, q, x, h)
        u, x, q = self._flat(u, self._radial(x, 0.5 * h), q, h, index, state)
        if not before:
            u, q = self._turned(u, q, x, h)
        return u, self._radial(x, 0.5 * h).exp(), q.mT, balance

    def _flat(
        self, u: Tensor, x: Tensor, q: Tensor, h: float, index: int, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make Heun's step of H, and of O."""
        value, turn, moved = x.new_zeros(x.shape[:-1]), None, x.diag_embed()
        if self.drive.kappa > 0:
            z = self._noise(u, q, tuple(moved.shape), 0.25 * h)
            moved = moved + z + z.mT
        tried = moved
        try:
            if self.drive.loss is not None:
                value, first, turn = self._velocity(u, x, q, h)
                if index & (index - 1) == 0:
                    way = first.square().sum((-2, -1)) + turn.square().sum((-2, -1))
                    self.watch(way, torch.full_like(way, float(x.shape[-1])), h)
                tried = moved + first
                x1, w = _descending(tried)
                u1, q1 = _turn_apart(u, q, turn, w)
                _, second, turn1 = self._velocity(u1, x1, q1, h)
                moved = moved + 0.5 * (first + w @ second @ w.mT)
                turn = 0.5 * (turn + w @ turn1 @ w.mT)
            tried = moved
            x, w = _descending(tried)
            finite = torch.isfinite(x).all(-1) & torch.isfinite(value)
        except torch.linalg.LinAlgError:
            finite = decomposable(tried)
        if not bool(finite.all()):
            raise self._diverged(self._at(state), finite, h)
        u, q = _turn_apart(polished(u), polished(q), turn, w)
        return u, x, q

    def _radial(self, x: Tensor, h: float) -> Tensor:
        """Follow the entropy by the midpoint rule."""
        if not self.drive.entropy:
            return x
        middle = x + (0.5 * h / self.drive.beta) * entropy_pull(x, math.inf)
        return x + (h / self.drive.beta) * entropy_pull(middle, math.inf)

    def _turned(self, u: Tensor, q: Tensor, x: Tensor, h: float) -> tuple[Tensor, Tensor]:
        if self.drive.kappa == 0:
            return u, q
        rates = deep_rates(x, self.drive.amplitude**2 * h)
        return rotated(u, q, rates, self._draw(u, q))

    def _velocity(self, u: Tensor, x: Tensor, q: Tensor, h: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss and the drifts of H and O in the frames, times h, tamed."""
        s = x.exp()
        value, e, _, _ = gradient_parts(self.drive.loss, EndToEnd(u, s, q.mT, math.inf, True))
        gap = x.unsqueeze(-1) - x.unsqueeze(-2)
        close = gap.abs() < torch.finfo(x.dtype).eps ** 0.5
        sums = 0.5 * (s.unsqueeze(-1) + s.unsqueeze(-2))
        slope = (s.unsqueeze(-1) - s.unsqueeze(-2)) / torch.where(close, 1.0, gap)
        along = -0.5 * h * sums * (e + e.mT)
        across = -0.5 * h * torch.where(close, sums, slope) * (e - e.mT)
        reach = float(x.shape[-1])
        way = along.square().sum((-2, -1)) + across.square().sum((-2, -1))
        shrink = (reach / (reach + way)).sqrt()[..., None, None]
        return value, along * shrink, across * shrink


def _descending(h: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, descending, and eigenvectors."""
    x, w = torch.linalg.eigh(h)
    return x.flip(-1), w.flip(-1)


def _turn_apart(u: Tensor, q: Tensor, turn: Tensor | None, w: Tensor) -> tuple[Tensor, Tensor]:
    """Turn both frames against each other, and by `w` with each other."""
    if turn is not None:
        half = torch.linalg.matrix_exp(0.5 * turn)
        u, q = u @ half, q @ half.mT
    return u @ w, q @ w
