"""Many flows at once, each with its own steps: 64 flows, d = 20, T = 10, rtol 1e-6.

The peer is torchdiffeq (one step size for the whole batch) on the layers, where it is installed,
and scipy's DOP853 one by one. Run: python benchmarks/bench_batch.py
"""

from __future__ import annotations

import importlib
import time

import torch
from scipy.integrate import solve_ivp
from timing import machine, table

import dln_geometry as dln
from dln_geometry import losses

BATCH, SIZE, DEPTH, TIME, RTOL = 64, 20, 3, 10.0, 1e-6


def best(run, repeats=5):
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - begun)
    return min(times), result


def velocity(factors, target):
    below = [factors[0]]
    for w in factors[1:]:
        below.append(w @ below[-1])
    back, grads = below[-1] - target, [None] * len(factors)
    for p in range(len(factors) - 1, 0, -1):
        grads[p] = -(back @ below[p - 1].mT)
        back = factors[p].mT @ back
    grads[0] = -back
    return grads


def main():
    torch.set_num_threads(1)
    print(machine())
    g = torch.Generator().manual_seed(0)
    target = torch.randn(BATCH, SIZE, SIZE, generator=g, dtype=torch.float64) / SIZE**0.5
    factors = dln.random_balanced(
        (SIZE,) * (DEPTH + 1), scale=0.3, batch=(BATCH,), generator=g, dtype=torch.float64
    )
    point, loss = dln.Collapsed.of(factors), losses.Quadratic(target)
    seconds, path = best(
        lambda: dln.gradient_flow(loss, point, t_end=TIME, rtol=RTOL, save_at=[0.0, TIME])
    )
    rows = [["ours", f"{seconds * 1e3:.0f}", "1", str(path.stats["evaluations"])]]
    if importlib.util.find_spec("torchdiffeq"):
        from torchdiffeq import odeint

        def peer():
            return odeint(
                lambda t, y: tuple(velocity(y, target)),
                tuple(factors),
                torch.tensor([0.0, TIME], dtype=torch.float64),
                rtol=RTOL,
                atol=1e-9,
            )

        other, _ = best(peer, 3)
        rows.append(
            ["torchdiffeq dopri5, layers", f"{other * 1e3:.0f}", f"{other / seconds:.1f}", "-"]
        )

    def one_by_one():
        count = 0
        for k in range(BATCH):
            shapes = [w[k].shape for w in factors]

            def rhs(_, flat, k=k, shapes=shapes):
                parts = torch.from_numpy(flat).split([s.numel() for s in shapes])
                layers = [p.view(s) for p, s in zip(parts, shapes, strict=True)]
                return torch.cat([v.reshape(-1) for v in velocity(layers, target[k])]).numpy()

            y0 = torch.cat([w[k].reshape(-1) for w in factors]).numpy()
            count += solve_ivp(rhs, (0, TIME), y0, method="DOP853", rtol=RTOL, atol=1e-9).nfev
        return count

    other, count = best(one_by_one, 1)
    rows.append(
        [
            "scipy DOP853, layers, one by one",
            f"{other * 1e3:.0f}",
            f"{other / seconds:.1f}",
            str(count),
        ]
    )
    table(
        f"{BATCH} flows, d = {SIZE}, depth {DEPTH}, T = {TIME:g}, rtol {RTOL:g}",
        ["", "ms", "ratio to ours", "evaluations"],
        rows,
    )


if __name__ == "__main__":
    main()
