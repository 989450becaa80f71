"""One Langevin step of a batch of chains against one batched SVD of the same size.

And what an error costs: steps of weak order 1 against steps of weak order 2. Times are those of
the process, so that other work on the machine disturbs them less.

Run: python benchmarks/bench_langevin.py [--quick | --accuracy]
"""

from __future__ import annotations

import math
import sys
import time
import warnings

import torch
from timing import machine, table

import dln_geometry as dln
from dln_geometry.dynamics.noise import brownian_motion, langevin

CASES = [
    # chains, m, n, rank
    (1000, 4, 4, 4),
    (1000, 6, 4, 4),
    (200, 10, 10, 10),
    (50, 30, 30, 30),
    (4, 100, 100, 100),
    (1, 500, 500, 500),
    (1, 500, 500, 10),
]
DEPTHS = [2, 3, 8, 2.7, math.inf]
F64 = torch.float64


def main(quick=False, accuracy=False):
    torch.set_num_threads(1)
    print(machine())
    if accuracy:
        cost_of_errors(4000 if quick else 20_000)
        return
    for method in ("product", "splitting"):
        rows = []
        for chains, m, n, rank in CASES[:3] if quick else CASES:
            row = [f"{chains} of {m} x {n}, rank {rank}"]
            for depth in DEPTHS:
                row.append(measure(chains, (m, n), rank, depth, method))
            rows.append([row[0], row[1][0], *(ratios for _, ratios in row[1:])])
        table(
            f"One {method} step / one SVD of the same matrices: Brownian, Langevin, with entropy",
            ["chains", "SVD ms", *(f"N = {depth:g}" for depth in DEPTHS)],
            rows,
        )
    cost_of_errors(4000 if quick else 20_000)


def measure(chains, shape, rank, depth, method):
    g = torch.Generator().manual_seed(0)
    spectrum = torch.linspace(2.0, 0.5, rank, dtype=F64)
    start = dln.Collapsed.random(
        shape, rank, depth, spectrum=spectrum, batch=(chains,), generator=g, dtype=F64
    ).point()
    loss = dln.losses.Quadratic(torch.eye(*shape, dtype=F64))
    # The SVD that the walk needs: of the square core, m x n in the case of full rank.
    core = start.matrix if rank == min(shape) else start.u.mT @ start.matrix @ start.vh.mT
    steps = 2 if max(shape) > 100 else 10
    run = {
        "t_end": 1e-3 * steps, "dt": 1e-3, "save_at": [1e-3 * steps], "generator": g,
        "method": method,
    }  # fmt: skip
    candidates = {
        "svd": lambda: torch.linalg.svd(core, full_matrices=False),
        "brownian": lambda: brownian_motion(start, **run),
        "plain": lambda: langevin(loss, start, beta=50.0, entropy=False, **run),
        "entropy": lambda: langevin(loss, start, beta=50.0, **run),
    }
    best = dict.fromkeys(candidates, math.inf)
    begun = time.perf_counter()
    while time.perf_counter() - begun < 2.0 or math.inf in best.values():
        for name, call in candidates.items():
            start_of_call = time.thread_time()
            call()
            best[name] = min(best[name], time.thread_time() - start_of_call)
    ratios = [best[k] / steps / best["svd"] for k in ("brownian", "plain", "entropy")]
    return f"{best['svd'] * 1e3:.2f}", ", ".join(f"{ratio:.2f}" for ratio in ratios)


def cost_of_errors(chains):
    """Compare expectations at t = 0.3 with those of many small steps of weak order 2."""
    g = torch.Generator().manual_seed(0)
    target = 0.7 * torch.randn(3, 3, generator=g, dtype=F64)
    loss = dln.losses.Quadratic(target)
    start = dln.Collapsed.random((3, 3), 3, 3, spectrum=[1.4, 1.0, 0.6], generator=g, dtype=F64)

    def run(method, steps):
        begun = time.thread_time()
        path = langevin(
            loss, start, beta=1.7, kappa=0.6, t_end=0.3, dt=0.3 / steps, method=method,
            generator=g, chains=chains, save_at=[0.3],
        )  # fmt: skip
        seconds = time.thread_time() - begun
        rho = 3 * path.singular_values[0] ** (2 / 3)
        figures = torch.stack([path.loss[0], rho.sum(-1)], -1)
        return figures.mean(0), figures.std(0) / chains**0.5, seconds

    exact, spread, _ = run("splitting", 48)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # coarse steps are meant
        for method, counts in (("product", (3, 6, 12, 24, 48)), ("splitting", (3, 6, 12))):
            for steps in counts:
                mean, error, seconds = run(method, steps)
                error = (error**2 + spread**2).sqrt()
                figures = [
                    f"{float(m - e):+.4f} ± {float(d):.4f}"
                    for m, e, d in zip(mean, exact, error, strict=True)
                ]
                rows.append([method, str(steps), f"{seconds * 1e6 / chains:.0f}", *figures])
    table(
        f"Langevin dynamics of 3 x 3 matrices, N = 3, to t = 0.3; {chains} chains",
        ["method", "steps", "µs a chain", "error of the loss", "error of |rho|²"],
        rows,
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv, accuracy="--accuracy" in sys.argv)
