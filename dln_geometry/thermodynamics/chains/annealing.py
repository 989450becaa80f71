"""Partition functions of any loss, by chains that go from a Gaussian to the Gibbs measure.

The path is ``V_t = (1-t) V_0 + t V_1``, from the Gaussian V_0 of `walk`, and
``log Z_1/Z_0 = -int <V_1 - V_0>_t dt``. Chains are independent of each other: errors are those
of means over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.thermodynamics.chains.walk import Walk
from dln_geometry.thermodynamics.closed import log_gaussian

CHAINS = 192
_BEST_ACCEPTANCE = 0.574
_NODES = 17


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
    # Few chains carry the mean where the work spreads: then its spread tells more than theirs.
    spread = float(logs.std())
    share = max(float(weights.std() / weights.mean()), math.expm1(min(spread, 6.0) ** 2) ** 0.5)
    return log_z, share / CHAINS**0.5, spread, state, weights / weights.sum(), sizes(1.0)


def _by_integration(walk: Walk, steps: int, levels: Any, sizes: Any) -> tuple[Any, ...]:
    """Return log Z by thermodynamic integration at Clenshaw-Curtis nodes of the schedule.

    The chains go through the nodes and back. They lag behind the equilibrium of a node, above it on
    one way and below on the other: half the difference is counted as an error.
    """
    nodes = 0.5 * (1 - np.cos(np.pi * np.arange(_NODES) / (_NODES - 1)))
    state, ways = _begin(walk, CHAINS), []
    last = state
    each = max(4, steps // (2 * _NODES))
    for way in (nodes, nodes[::-1]):
        means = []
        for t in way:
            total = torch.zeros(CHAINS, dtype=torch.float64, device="cpu")
            for k in range(2 * each):
                state, _ = walk.step(state, float(t), sizes(t))
                total = total + state[2] if k >= each else total
            means.append(total / each)
        ways.append(torch.stack(means if way is nodes else means[::-1]).numpy())
        if way is nodes:
            last = state
    rule = _clenshaw_curtis(_NODES)
    lag = 0.5 * abs(float((rule @ (ways[0] - ways[1])).mean()))
    table = 0.5 * (ways[0] + ways[1])
    fine = -(rule @ table)
    coarse = -(_clenshaw_curtis(_NODES // 2 + 1) @ table[::2])
    # The coarse rule has half the nodes: the difference bounds the error of the fine one.
    bias = abs(float((fine - coarse).mean()))
    error = math.hypot(float(fine.std(ddof=1)) / CHAINS**0.5, bias, lag)
    weights = torch.full((CHAINS,), 1.0 / CHAINS, dtype=torch.float64, device="cpu")
    return float(fine.mean()), error, last, weights, sizes(1.0)


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
