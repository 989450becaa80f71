"""Dyson Brownian motion of 500 particles: the schemes against explicit Euler steps.

The start is an exact sample at t = 0.5, so that the exact law at the end is known; from all zero
Euler's scheme could not start. Errors are those of means over the paths, with standard errors: the
growth of sum x^2 (its mean is exactly ``n(n-1) + 2n/b`` in unit time), and the mean ratio of
neighbouring gaps in the bulk against exact samples at the end.

Run: python benchmarks/bench_dyson.py [--quick]
"""

from __future__ import annotations

import math
import sys
import time
import warnings

import torch
from timing import machine, table

import dln_geometry.dynamics.laws as laws
from dln_geometry.dynamics.dyson import dyson

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


def main(quick=False):
    torch.set_num_threads(1)
    print(machine())
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


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
