"""Partition functions of any loss, by chains that go from a Gaussian to the Gibbs measure.

In ``Y = U rho V^T``, ``rho = sqrt(N) s^{1/N}``, the volume is Lebesgue measure. The path is
``V_t = (1-t) V_0 + t V_1`` with ``V_0 = |Y|^2/(2 variance)``, from which exact samples are drawn,
and ``log Z_1/Z_0 = -int <V_1 - V_0>_t dt``. Chains are independent of each other: errors are those
of means over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.losses import prepared
from dln_geometry.dynamics.sampling import Potential
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import normal
from dln_geometry.thermodynamics.closed import log_gaussian
from dln_geometry.thermodynamics.energies import Energy
from dln_geometry.thermodynamics.measure import SpectralMeasure

CHAINS = 192
_BEST_ACCEPTANCE = 0.574
_NODES = 17


class Walk:
    """Metropolis-adjusted Langevin chains of a potential that changes with t.

    `at` returns ``V_1 - V_0``, ``-V_1'``, and what is observed: the energy and the entropy.
    """

    def __init__(
        self, measure: SpectralMeasure, energy: Energy, b: float, shape: tuple[int, int],
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        self.measure, self.energy, self.b, self.generator = measure, energy, b, generator
        (m, n), r = shape, measure.rank
        self.swapped = m == r < n
        self.tall, self.wide = (n, m) if self.swapped else (m, n)
        self.complex = measure.index == 2
        self.excess = measure.index * (self.wide - r)
        self.potential: Potential | None = None
        if energy.value is None:
            frame = EndToEnd.of(torch.eye(m, n, dtype=torch.float64, device="cpu"), measure.depth)
            start = EndToEnd(frame.u[:, :r], frame.s[:r], frame.vh[:r], measure.depth, check=False)
            share = (2 * measure.nu, measure.excess) if measure.nu else None
            loss = prepared(energy.loss, shape, dtype=torch.float64, device="cpu")
            self.potential = Potential(loss, b, share, start)
        self.variance = 1.0
        self.variance = self._best_variance()

    def start(self, chains: int) -> tuple[Tensor, Tensor]:
        """Draw A and Q exactly from ``exp(-V_0)``."""
        r, source = self.measure.rank, self.generator
        # The singular values have the weight rho^excess more than those of A.
        g = self._normal(chains, self.tall + self.wide - r, r)
        rho = torch.linalg.svdvals(g)
        u = torch.linalg.qr(self._normal(chains, self.tall, r)).Q
        v = torch.linalg.qr(self._normal(chains, r, r)).Q
        a = self.variance**0.5 * (u * rho.unsqueeze(-2)) @ v.mH
        if self.wide == r or self.potential is None:
            return a, a.real.new_zeros(0)
        q = torch.linalg.qr(normal((chains, self.wide, r), source, torch.float64)).Q
        return a, q

    def _normal(self, *shape: int) -> Tensor:
        z = normal(shape, self.generator, torch.float64)
        return torch.complex(z, normal(shape, self.generator, torch.float64)) if self.complex else z

    def _best_variance(self) -> float:
        """Return the variance of the Gaussian nearest to the measure, by relative entropy."""
        a, q = self.start(64)
        dimension = (self.tall + self.wide - self.measure.rank) * self.measure.rank
        dimension *= self.measure.index

        def divergence(c: float) -> float:
            difference, *_, size = self.at(c * a, q, 1.0)
            # V_1 = (V_1 - V_0) + V_0, at variance 1.
            found = (difference + 0.5 * size).mean() - dimension * math.log(c)
            return float(found) if math.isfinite(float(found)) else math.inf

        grid = torch.linspace(-12.0, 12.0, 97).exp().tolist()
        best = min(grid, key=divergence)
        fine = [best * math.exp(0.05 * k) for k in range(-5, 6)]
        return min(fine, key=divergence) ** 2

    def at(self, a: Tensor, q: Tensor, h: Any) -> tuple[Tensor, ...]:
        """Return ``V_1 - V_0``, the drift of V_1, energy, entropy and ``|A|^2``."""
        size = a.abs().square().sum((-2, -1)) if self.complex else a.square().sum((-2, -1))
        if self.potential is not None:
            value, drift, _, s, _, energy = self.potential.at(a, q, a.real.new_tensor(h))
            log_lam = s.log() / float(self.measure.depth)
            rest = self.excess * (
                log_lam.sum(-1) + self.measure.rank * 0.5 * self.measure.depth.log
            )
            difference = value + rest - 0.5 * size / self.variance
            return difference, drift, energy, self.measure.log_orbit_volume(log_lam), size
        u, rho, vh = torch.linalg.svd(a, full_matrices=False)
        rho = rho.clamp_min(1e-280).detach().requires_grad_()
        log_lam = rho.log() - 0.5 * self.measure.depth.log
        with torch.enable_grad():
            log_lam = rho.log() - 0.5 * self.measure.depth.log
            assert self.energy.value is not None
            energy = self.energy.value((float(self.measure.depth) * log_lam).exp())
            volume = self.measure.log_orbit_volume(log_lam)
            inside = self.b * energy - 2 * self.measure.nu * volume
            (slope,) = torch.autograd.grad(inside.sum(), rho)
        slope = slope.nan_to_num(0.0, 0.0, 0.0)
        # The Metropolis test corrects any drift; bounded, it cannot leap.
        bound = 2.0 * rho.detach().norm(dim=-1, keepdim=True) / rho.new_tensor(h)
        drift = (u * (-slope).clamp(-bound, bound).to(u.dtype).unsqueeze(-2)) @ vh
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
            return t * drift - (1 - t) / self.variance * a

        z = self._normal(*a.shape)
        new, turned = a + h * force(a, drift) + scale * z, q
        if q.numel():
            x = normal((*q.shape[:-1], q.shape[-2]), source, torch.float64)
            x = x * (0.5 * scale / max(float(rest[2].mean()) ** 0.5, 1e-300))
            turned = torch.linalg.matrix_exp(x - x.mT) @ q
        found = self.at(new, turned, h)
        back = a - new - h * force(new, found[1])
        gain = self._total(difference, rest[2], t, a) - self._total(found[0], found[4], t, new)
        gain = gain + 0.5 * z.abs().square().sum((-2, -1))
        gain = gain - back.abs().square().sum((-2, -1)) / (4 * h)
        u = torch.rand(gain.shape, generator=source, dtype=torch.float64, device=gain.device)
        yes = u.log() < gain
        pairs = zip((a, q, *state[2:]), (new, turned, *found), strict=True)
        parts = [
            torch.where(yes[(..., *(None,) * (y.ndim - 1))], y, x) if y.numel() else y
            for x, y in pairs
        ]
        return tuple(parts), float(gain.clamp(max=0.0).exp().nan_to_num(0.0).mean())

    def _total(self, difference: Tensor, size: Tensor, t: float, a: Tensor) -> Tensor:
        """Return ``V_t`` up to a constant, with the weight ``rho^excess``."""
        total = 0.5 * size / self.variance + t * difference
        if self.excess:
            total = total - self.excess * torch.linalg.svdvals(a).clamp_min(1e-300).log().sum(-1)
        return total


def by_chains(walk: Walk, steps: int, method: str) -> dict[str, Any]:
    """Return log Z with its standard error, and moments with theirs.

    A pilot run finds step sizes and a schedule of equal lengths; the run that counts keeps them.
    """
    levels, sizes = _pilot(walk, max(40, steps // 4))
    if method == "integration":
        return _finish(walk, *_by_integration(walk, steps, levels, sizes))
    difficulty = None
    while True:
        found = _by_annealing(walk, steps, levels, sizes)
        spread = found[2]
        if spread < 0.7 or steps >= 6400 or (difficulty is not None and spread > 0.95 * difficulty):
            return _finish(walk, *found[:2], *found[3:])
        # The variance of the work falls like the number of steps.
        steps, difficulty = min(6400, int(steps * min(8.0, max(2.0, (spread / 0.6) ** 2)))), spread


def _pilot(walk: Walk, steps: int) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Return the schedule, from [0, 1] to t, and the step size as a function of t."""
    # Short steps of t at both ends, where the measure changes fastest.
    t = np.sin(0.5 * np.pi * np.linspace(0, 1, steps + 1)) ** 2
    state = _begin(walk, 48)
    h, sizes, spreads = 0.3 * walk.variance, [], []
    for k in range(steps + 1):
        for _ in range(2):
            state, chance = walk.step(state, float(t[k]), h)
            h *= math.exp(0.5 * (chance - _BEST_ACCEPTANCE))
        sizes.append(h)
        spreads.append(float(state[2].std()))
    spread = np.maximum(np.asarray(spreads), 1e-12)
    length = np.concatenate([[0], np.cumsum(0.5 * (spread[1:] + spread[:-1]) * np.diff(t))])
    # A share of uniform steps, so that none is too long.
    length = 0.8 * length / length[-1] + 0.2 * np.linspace(0, 1, steps + 1)
    logs = np.convolve(np.pad(np.log(sizes), 4, mode="edge"), np.ones(9) / 9, mode="valid")

    def level(x: float) -> float:
        return float(np.interp(x, length, t))

    def size(at: float) -> float:
        return float(np.exp(np.interp(at, t, logs)))

    return level, size


def _begin(walk: Walk, chains: int) -> tuple[Tensor, ...]:
    a, q = walk.start(chains)
    return (a, q, *walk.at(a, q, 0.3 * walk.variance))


def _by_annealing(walk: Walk, steps: int, levels: Any, sizes: Any) -> tuple[Any, ...]:
    """Return log Z by annealed importance sampling: the mean of ``exp(-work)``."""
    state = _begin(walk, CHAINS)
    work, now = torch.zeros(CHAINS, dtype=torch.float64, device="cpu"), 0.0
    for k in range(steps):
        then = levels((k + 1) / steps) if k + 1 < steps else 1.0
        work = work + (then - now) * state[2]
        now = then
        state, _ = walk.step(state, now, sizes(now))
    logs = -work
    top = logs.max()
    weights = (logs - top).exp()
    log_z = float(top + weights.mean().log())
    error = float(weights.std() / weights.mean()) / CHAINS**0.5
    return log_z, error, float(logs.std()), state, weights / weights.sum(), sizes(1.0)


def _by_integration(walk: Walk, steps: int, levels: Any, sizes: Any) -> tuple[Any, ...]:
    """Return log Z by thermodynamic integration at Clenshaw-Curtis nodes of the schedule."""
    nodes = 0.5 * (1 - np.cos(np.pi * np.arange(_NODES) / (_NODES - 1)))
    state, means = _begin(walk, CHAINS), []
    each = max(8, steps // _NODES)
    for t in nodes:
        total = torch.zeros(CHAINS, dtype=torch.float64, device="cpu")
        for k in range(2 * each):
            state, _ = walk.step(state, float(t), sizes(t))
            total = total + state[2] if k >= each else total
        means.append(total / each)
    table = torch.stack(means).numpy()
    fine = -(_clenshaw_curtis(_NODES) @ table)
    coarse = -(_clenshaw_curtis(_NODES // 2 + 1) @ table[::2])
    # The coarse rule has half the nodes: the difference bounds the error of the fine one.
    bias = abs(float((fine - coarse).mean()))
    error = math.hypot(float(fine.std(ddof=1)) / CHAINS**0.5, bias)
    weights = torch.full((CHAINS,), 1.0 / CHAINS, dtype=torch.float64, device="cpu")
    return float(fine.mean()), error, state, weights, sizes(1.0)


def _clenshaw_curtis(count: int) -> np.ndarray:
    """Return weights on [0, 1] at ``(1 - cos(pi k/(count-1)))/2``."""
    k = np.arange(count)
    even = np.arange(0, count, 2)
    angles = np.cos(np.pi * np.outer(k, even) / (count - 1))
    moments = 1.0 / (1.0 - even**2.0)
    moments[0] *= 0.5
    if even[-1] == count - 1:
        moments[-1] *= 0.5
    weights = angles @ moments * 2.0 / (count - 1)
    weights[[0, -1]] *= 0.5
    return weights


def _finish(walk: Walk, log: float, error: float, state: Any, weights: Tensor, h: float) -> Any:
    """Return log Z with the constants, and moments at t = 1 from chains that go on there."""
    index = torch.multinomial(weights, CHAINS, replacement=True, generator=walk.generator)
    state = tuple(x[index] if x.numel() else x for x in state)
    energies, volumes = [], []
    for _ in range(200):
        state, _ = walk.step(state, 1.0, h)
        energies.append(state[4])
        volumes.append(state[5])
    energy, volume = torch.stack(energies[50:]), torch.stack(volumes[50:])
    mean = energy.mean()
    heat = walk.b**2 * (energy - mean).square()
    base = log_gaussian(walk.measure, walk.variance)
    # Without its constant the entropy entered the potential; the volumes of frames are in `base`.
    log += base + 2 * walk.measure.nu * walk.measure.log_orbit
    return {
        "log_z": log,
        "error": error,
        "energy": float(mean),
        "heat_capacity": float(heat.mean()),
        "entropy": float(volume.mean()),
        "errors": {
            name: float(x.mean(0).std()) / CHAINS**0.5
            for name, x in (("energy", energy), ("heat_capacity", heat), ("entropy", volume))
        },
    }
