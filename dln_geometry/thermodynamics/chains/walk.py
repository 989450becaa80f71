"""Chains between a Gaussian, from which exact samples are drawn, and the Gibbs measure.

In ``Y = U rho V^T``, ``rho = sqrt(N) s^{1/N}``, the volume is Lebesgue measure and
``V_0 = |Y|^2/(2 variance)``; at infinite depth ``X = O exp(H)``, Lebesgue measure of the symmetric
H times Haar measure, and ``V_0 = |H - center|^2/(2 variance)``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import prepared
from dln_geometry.dynamics.sampling import Potential
from dln_geometry.geometry.points import EndToEnd, haar_stiefel
from dln_geometry.support import absolute_square, matrix_exponential
from dln_geometry.thermodynamics.energies import Energy
from dln_geometry.thermodynamics.measure import SpectralMeasure, gaussians


class Walk:
    """Metropolis-adjusted Langevin chains of a potential that changes with t.

    A is Y, or Y in a frame Q of the row space; at infinite depth it is H. `at` returns
    ``V_1 - V_0``, ``-V_1'``, and what is observed: the energy and the entropy.
    """

    def __init__(
        self, measure: SpectralMeasure, energy: Energy, b: float, shape: tuple[int, int],
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        self.measure, self.energy, self.b, self.generator = measure, energy, b, generator
        (m, n), r = shape, measure.rank
        self.swapped = m == r < n
        self.tall, self.wide = (n, m) if self.swapped else (m, n)
        self.deep = measure.deep
        # Quaternions are complex matrices of twice the size, with every singular value twice.
        self.copies = 2 if measure.index == 4 else 1
        self.excess = 0 if self.deep else measure.index * (self.wide - r)
        self.potential: Potential | None = None
        if energy.value is None:
            kind = torch.complex128 if measure.index == 2 else torch.float64
            frame = EndToEnd.of(torch.eye(m, n, dtype=kind, device="cpu"), measure.depth)
            start = EndToEnd(frame.u[:, :r], frame.s[:r], frame.vh[:r], measure.depth, check=False)
            share = (2 * measure.nu, measure.index * measure.excess) if measure.nu else None
            loss = prepared(energy.loss, shape, dtype=kind, device="cpu")
            self.potential = Potential(loss, b, share, start)
        self.center, self.variance = 0.0, 1.0
        if self.deep:
            self.center = self._best_center()
        self.variance = self._best_variance()

    def start(self, chains: int) -> tuple[Tensor, Tensor]:
        """Draw A and Q exactly from ``exp(-V_0)``."""
        r = self.measure.rank
        if self.deep:
            shift = self.center * torch.eye(self.copies * r, dtype=torch.float64, device="cpu")
            a = self.variance**0.5 * self._noise(chains, r, r) + shift
            if self.potential is None:
                return a, a.real.new_zeros(0)
            return a, self._frame(chains, r, r)
        # The singular values have the weight rho^excess more than those of A.
        g = self._normal(chains, self.tall + self.wide - r, r)
        # Both copies of a value of quaternions belong to columns k and k + r.
        rho = torch.linalg.svdvals(g)[..., :: self.copies].tile(self.copies)
        u, v = self._frame(chains, self.tall, r), self._frame(chains, r, r)
        a = self.variance**0.5 * (u * rho.unsqueeze(-2)) @ v.mH
        if self.wide == r or self.potential is None:
            return a, a.real.new_zeros(0)
        return a, self._frame(chains, self.wide, r)

    def _frame(self, chains: int, d: int, r: int) -> Tensor:
        if self.copies == 2:
            u, _, vh = torch.linalg.svd(self._normal(chains, d, r), full_matrices=False)
            return u @ vh
        kind: Any = torch.complex128 if self.measure.index == 2 else torch.float64
        kind = {"dtype": kind, "device": "cpu"}
        return haar_stiefel((chains,), d, r, generator=self.generator, **kind)

    def _normal(self, *shape: int) -> Tensor:
        return gaussians(shape, self.measure.index, self.generator)

    def _noise(self, *shape: int) -> Tensor:
        """Return an increment of A of density ``exp(-|dA|^2/2)``."""
        z = self._normal(*shape)
        return 0.5 * (z + z.mH) if self.deep else z

    def _best_center(self) -> float:
        """Return the number u for which ``H = u`` has the least potential, nearly."""
        z, q = self.start(16)
        one = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)

        def potential(u: float) -> float:
            difference, *_, size = self.at(0.1 * z + u * one, q, 1.0)
            found = float((difference + 0.5 * size).mean())
            return found if math.isfinite(found) else math.inf

        return min(torch.linspace(-12.0, 12.0, 193).tolist(), key=potential)

    def _best_variance(self) -> float:
        """Return the variance of the Gaussian nearest to the measure, by relative entropy."""
        a, q = self.start(64)
        r, f = self.measure.rank, self.measure.index
        dimension = (self.tall + self.wide - r) * r * f
        if self.deep:
            dimension = r + 0.5 * f * r * (r - 1)
        shift = self.center * torch.eye(*a.shape[-2:], dtype=a.dtype, device=a.device)

        def divergence(c: float) -> float:
            difference, *_, size = self.at(shift + c * (a - shift), q, 1.0)
            # V_1 = (V_1 - V_0) + V_0, at variance 1.
            found = (difference + 0.5 * size).mean() - dimension * math.log(c)
            return float(found) if math.isfinite(float(found)) else math.inf

        grid = torch.linspace(-12.0, 12.0, 97).exp().tolist()
        best = min(grid, key=divergence)
        fine = [best * math.exp(0.05 * k) for k in range(-5, 6)]
        return min(fine, key=divergence) ** 2

    def at(self, a: Tensor, q: Tensor, h: Any) -> tuple[Tensor, ...]:
        """Return ``V_1 - V_0``, the drift of V_1, energy, entropy and ``|A - center|^2``."""
        size = self._squared(self._away(a))
        if self.potential is not None:
            # Its value has no constants, those of the entropy's powers of s among them.
            _, drift, _, s, _, energy = self.potential.at(a, q, a.real.new_tensor(h))
            volume = self.measure.log_orbit_volume(s.log() / self.measure.span)
            inside = self.b * energy - 2 * self.measure.nu * (volume - self.measure.log_orbit)
            return inside - 0.5 * size / self.variance, drift, energy, volume, size
        if self.deep:
            x, u = torch.linalg.eigh(a)
            vh, x = u.mH, x[..., :: self.copies]
        else:
            u, rho, vh = torch.linalg.svd(a, full_matrices=False)
            rho = rho[..., :: self.copies]
            x = rho.clamp_min(1e-280).log() - 0.5 * self.measure.depth.log
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            assert self.energy.value is not None
            energy = self.energy.value((self.measure.span * x).exp())
            volume = self.measure.log_orbit_volume(x)
            inside = self.b * energy - 2 * self.measure.nu * volume
            (slope,) = torch.autograd.grad(inside.sum(), x)
        # The Metropolis test corrects any drift; bounded, it cannot leap.
        if self.deep:
            bound = 2.0 / h
        else:
            slope = slope / rho.clamp_min(1e-280)
            bound = 2.0 * rho.norm(dim=-1, keepdim=True) / h
        slope = slope.nan_to_num(0.0, 0.0, 0.0)
        pull = (-slope).clamp(-bound, bound).repeat_interleave(self.copies, -1)
        drift = (u * pull.to(u.dtype).unsqueeze(-2)) @ vh
        inside = inside.detach() + 2 * self.measure.nu * self.measure.log_orbit
        difference = inside - 0.5 * size / self.variance
        return difference, drift, energy.detach(), volume.detach(), size

    def step(
        self, state: tuple[Tensor, ...], t: float, h: float
    ) -> tuple[tuple[Tensor, ...], float]:
        """Return the state after one proposal at t, and the mean acceptance."""
        a, q, difference, drift, *rest = state
        scale, source = (2 * h) ** 0.5, self.generator

        def force(a: Tensor, drift: Tensor) -> Tensor:
            return t * drift - (1 - t) / self.variance * self._away(a)

        z = self._noise(*a.shape[:-2], *(d // self.copies for d in a.shape[-2:]))
        new, turned = a + h * force(a, drift) + scale * z, q
        if q.numel():
            x = self._normal(*q.shape[:-1], q.shape[-2])
            size = 1.0 if self.deep else max(float(rest[2].mean()) ** 0.5, 1e-300)
            x = x * (0.5 * scale / size)
            turned = matrix_exponential(x - x.mH) @ q
        found = self.at(new, turned, h)
        back = a - new - h * force(new, found[1])
        gain = self._total(difference, rest[2], t, a) - self._total(found[0], found[4], t, new)
        gain = gain + 0.5 * self._squared(z) - self._squared(back) / (4 * h)
        u = torch.rand(gain.shape, generator=source, dtype=torch.float64, device=gain.device)
        yes = u.log() < gain
        pairs = zip((a, q, *state[2:]), (new, turned, *found), strict=True)
        parts = [
            torch.where(yes[(..., *(None,) * (y.ndim - 1))], y, x) if y.numel() else y
            for x, y in pairs
        ]
        return tuple(parts), float(gain.clamp(max=0.0).exp().nan_to_num(0.0).mean())

    def _squared(self, a: Tensor) -> Tensor:
        """Return ``|a|^2``, (...)."""
        return absolute_square(a).sum((-2, -1)) / self.copies

    def _away(self, a: Tensor) -> Tensor:
        if not self.deep:
            return a
        return a - self.center * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)

    def _total(self, difference: Tensor, size: Tensor, t: float, a: Tensor) -> Tensor:
        """Return ``V_t`` up to a constant, with the weight ``rho^excess``."""
        total = 0.5 * size / self.variance + t * difference
        if self.excess:
            logs = torch.linalg.svdvals(a).clamp_min(1e-300).log().sum(-1)
            total = total - self.excess * logs / self.copies
        return total
