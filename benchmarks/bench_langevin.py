"""One Langevin step of a batch of chains against one batched SVD of the same size.

Run: python benchmarks/bench_langevin.py
"""

from __future__ import annotations

import math

import torch
from timing import machine, side_by_side, table

import dln_geometry as dln
from dln_geometry.dynamics.diffusion import brownian_motion, langevin

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


def main():
    torch.set_num_threads(1)
    print(machine())
    for dtype in (torch.float64, torch.float32):
        rows = []
        for chains, m, n, rank in CASES:
            row = [f"{chains} of {m} x {n}, rank {rank}"]
            for depth in DEPTHS:
                row.append(measure(chains, (m, n), rank, depth, dtype))
            rows.append([row[0], row[1][0], *(ratios for _, ratios in row[1:])])
        table(
            f"One step / one SVD of the core: Brownian, Langevin, with entropy; {str(dtype)[6:]}",
            ["chains", "SVD ms", *(f"N = {depth:g}" for depth in DEPTHS)],
            rows,
        )


def measure(chains, shape, rank, depth, dtype):
    g = torch.Generator().manual_seed(0)
    spectrum = torch.linspace(2.0, 0.5, rank, dtype=dtype)
    start = dln.Collapsed.random(
        shape, rank, depth, spectrum=spectrum, batch=(chains,), generator=g, dtype=dtype
    ).point()
    loss = dln.losses.Quadratic(torch.eye(*shape, dtype=dtype))
    # The SVD that the walk needs: of the square core, m x n in the case of full rank.
    core = torch.randn(
        chains, *(shape if rank == min(shape) else (rank, rank)), generator=g, dtype=dtype
    )
    steps = 2 if max(shape) > 100 else 10
    run = {"t_end": 1e-3 * steps, "dt": 1e-3, "save_at": [1e-3 * steps], "generator": g}
    times = side_by_side(
        {
            "svd": lambda: torch.linalg.svd(core, full_matrices=False),
            "brownian": lambda: brownian_motion(start, **run),
            "plain": lambda: langevin(loss, start, beta=50.0, entropy=False, **run),
            "entropy": lambda: langevin(loss, start, beta=50.0, **run),
        },
        rounds=7,
        budget=1.0,
    )
    ratios = [times[k] / steps / times["svd"] for k in ("brownian", "plain", "entropy")]
    return f"{times['svd'] * 1e3:.2f}", ", ".join(f"{ratio:.2f}" for ratio in ratios)


if __name__ == "__main__":
    main()
