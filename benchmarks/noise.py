"""One Langevin step of a batch of chains against one batched SVD of the same size.

And what an error costs: steps of weak order 1 against steps of weak order 2. Times are those of
the process, so that other work on the machine disturbs them less.
"""

from __future__ import annotations

import math
import time
import warnings

import torch

import dln_geometry as dln
import dln_geometry.dynamics.laws as laws
from benchmarks.timing import table
from dln_geometry.dynamics.dyson import dyson
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


def noise(quick=False):
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


N, INDEX, T0, SPAN = 500, 3.3, 0.5, 0.05
F64 = torch.float64


def euler(x, dt, steps, generator):
    """Return the end of Euler's scheme with sorting, and the steps that broke the order."""
    broken = 0
    for _ in range(steps):
        gaps = x.unsqueeze(-1) - x.unsqueeze(-2)
        gaps.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
        noise = math.sqrt(2 * dt / INDEX) * torch.randn(x.shape, generator=generator, dtype=F64)
        x = x + dt * gaps.reciprocal_().sum(-1) + noise
        broken += int((x.diff(dim=-1) < 0).any(-1).sum())
        x = x.sort(-1).values
    return x, broken / (steps * len(x))


def gap_ratio(x):
    """Return the mean ratio of the smaller to the larger of two neighbouring gaps."""
    gaps = x[..., N // 10 : -N // 10].diff(dim=-1)
    small = torch.minimum(gaps[..., 1:], gaps[..., :-1])
    return (small / torch.maximum(gaps[..., 1:], gaps[..., :-1])).nanmean(-1)


def long_run(paths, generator):
    """Compare what a unit of time costs, where the law as a whole is wanted."""
    x0 = laws.beta_hermite(N, INDEX, t=T0, size=paths, generator=generator)
    growth = N * (N - 1) + 2 * N / INDEX
    exact = laws.beta_hermite(N, INDEX, size=400, generator=generator)[:, -1] / math.sqrt(N)

    def ours(steps):
        return dyson(
            x0, dyson_index=INDEX, t_end=1.0, dt=1 / steps, generator=generator, save_at=[1.0]
        ).final, 0.0

    rows = []
    for name, steps, run in (
        ("euler + sort", 1000, lambda: euler(x0, 1e-3, 1000, generator)),
        ("euler + sort", 4000, lambda: euler(x0, 2.5e-4, 4000, generator)),
        ("euler + sort", 10000, lambda: euler(x0, 1e-4, 10000, generator)),
        ("isospectral", 4, lambda: ours(4)),
        ("isospectral", 8, lambda: ours(8)),
        ("isospectral", 1000, lambda: ours(1000)),
    ):
        begun = time.perf_counter()
        x, broken = run()
        seconds = (time.perf_counter() - begun) / paths
        edge = x[:, -1] / math.sqrt(N * (T0 + 1.0))
        grown = (x.square().sum(-1) - x0.square().sum(-1)) / growth - 1
        rows.append(
            [
                name,
                f"{1 / steps:.1e}",
                f"{seconds:.2f}",
                f"{100 * broken:.0f} %",
                f"{float(edge.mean()):.3f} ± {float(edge.std()) / paths**0.5:.3f}",
                f"{float(grown.mean()):+.4f} ± {float(grown.std()) / paths**0.5:.4f}",
            ]
        )
    table(
        f"{N} particles of index {INDEX}, from t = {T0} to {T0 + 1}; exact edge "
        f"{float(exact.mean()):.3f}",
        ["scheme", "dt", "s a path", "steps out of order", "edge", "growth of sum x²"],
        rows,
    )


def dyson_motion(quick=False):
    paths = 2 if quick else 16
    g = torch.Generator().manual_seed(0)
    x0 = laws.beta_hermite(N, INDEX, t=T0, size=paths, generator=g)
    exact = gap_ratio(laws.beta_hermite(N, INDEX, size=64 if quick else 400, generator=g))
    growth = (N * (N - 1) + 2 * N / INDEX) * SPAN
    rows = []

    def row(name, dt, run):
        begun = time.perf_counter()
        x, broken = run()
        seconds = (time.perf_counter() - begun) / paths
        ratio = gap_ratio(x)
        grown = (x.square().sum(-1) - x0.square().sum(-1)) / growth - 1
        edge = x[:, -1] / math.sqrt(N * (T0 + SPAN))
        spread = math.hypot(float(ratio.std()) / paths**0.5, float(exact.std()) / len(exact) ** 0.5)
        rows.append(
            [
                name,
                f"{dt:.1e}",
                f"{seconds:.2f}",
                f"{100 * broken:.0f} %",
                f"{float(edge.mean()):.3f}",
                f"{float(grown.mean()):+.4f} ± {float(grown.std()) / paths**0.5:.4f}",
                f"{float(ratio.mean() - exact.mean()):+.4f} ± {spread:.4f}",
            ]
        )

    warnings.simplefilter("ignore", UserWarning)  # coarse steps are meant
    for steps in (50, 500) if quick else (50, 100, 200, 500, 2000):
        row("euler + sort", SPAN / steps, lambda k=steps: euler(x0, SPAN / k, k, g))
    for scheme, counts in (
        ("isospectral", (2, 8, 50)),
        ("tridiagonal", (8, 20, 50, 100)),
        ("implicit", (8, 50)),
    ):
        for steps in counts[:2] if quick else counts:

            def run(scheme=scheme, steps=steps):
                path = dyson(
                    x0, dyson_index=INDEX, t_end=SPAN, dt=SPAN / steps, generator=g,
                    save_at=[SPAN], scheme=scheme,
                )  # fmt: skip
                return path.final, float((path.final.diff(dim=-1) < 0).any())

            row(scheme, SPAN / steps, run)
    table(
        f"{N} particles of index {INDEX}, from t = {T0} to {T0 + SPAN}",
        ["scheme", "dt", "s a path", "steps out of order", "edge (2)", "growth of sum x²",
         "gap ratio"],
        rows,
    )  # fmt: skip
    if not quick:
        long_run(4, g)
