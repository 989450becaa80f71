"""Matrix completion: one sparse evaluation, time to solution, and the stiff late phase.

Run: python benchmarks/bench_completion.py
"""

from __future__ import annotations

import time

import torch
from scipy.integrate import solve_ivp
from timing import machine, side_by_side, table

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.dynamics.engines import collapsed_engine


def observed(shape, rank, entries, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    m, n = shape
    truth = torch.randn(m, rank, generator=g, dtype=dtype) @ torch.randn(
        rank, n, generator=g, dtype=dtype
    )
    places = torch.randperm(m * n, generator=g)[:entries]
    rows, cols = places // n, places % n
    return losses.Completion(rows, cols, truth[rows, cols] / rank**0.5, shape), g


def sparse_step():
    """1682 x 943, 1e5 entries, rank 50: against the dense layers and against twice the entries."""
    shape, rank, depth = (1682, 943), 50, 3
    loss, g = observed(shape, 10, 100_000)
    double, _ = observed(shape, 10, 200_000)
    point = dln.Collapsed.random(shape, rank, depth, scale=1.0, generator=g, dtype=torch.float64)

    def evaluation(loss, point):
        engine = collapsed_engine(loss, point)
        y = engine.rows()
        out, t = torch.empty_like(y), torch.zeros(1, dtype=y.dtype)
        return lambda: engine.field(t, y, out)

    factors = point.factors()
    mask, filled = loss.mask, torch.zeros(shape, dtype=torch.float64)
    filled[loss.rows, loss.cols] = loss.values

    def dense():
        leaves = [w.requires_grad_() for w in factors]
        x = leaves[0]
        for w in leaves[1:]:
            x = w @ x
        return torch.autograd.grad(0.5 * ((x - filled) * mask).square().sum(), leaves)

    times = side_by_side(
        {"ours": evaluation(loss, point), "twice": evaluation(double, point), "dense": dense},
        rounds=9,
    )
    rows = [
        ["ours, 1e5 entries", f"{times['ours'] * 1e3:.1f}", "1"],
        [
            "ours, 2e5 entries",
            f"{times['twice'] * 1e3:.1f}",
            f"{times['twice'] / times['ours']:.2f}",
        ],
        [
            "dense layers, autograd",
            f"{times['dense'] * 1e3:.1f}",
            f"{times['dense'] / times['ours']:.0f}",
        ],
    ]
    table("One evaluation, 1682 x 943, rank 50, depth 3", ["", "ms", "ratio to ours"], rows)


def time_to_solution():
    """100 x 100, rank 5, 2000 entries, depth 3, start 1e-3, train loss 1e-4."""
    loss, g = observed((100, 100), 5, 2000, seed=1)
    rows = []
    for rank in (5, 10, 100):
        point = dln.Collapsed.random(
            (100, 100), rank, 3, scale=1e-3, generator=g, dtype=torch.float64
        )
        for rtol in (1e-8, 1e-6, 1e-3):
            begun = time.perf_counter()
            path = dln.gradient_flow(loss, point, until={"loss": 1e-4}, rtol=rtol, save_at=[0.0])
            seconds = time.perf_counter() - begun
            rows.append(
                [
                    f"{rank}",
                    f"{rtol:.0e}",
                    f"{seconds:.3f}",
                    str(path.stats["evaluations"]),
                    path.status,
                ]
            )
    table(
        "Time to solution, 100 x 100, rank 5, 2000 entries, depth 3",
        ["rank of the start", "rtol", "s", "evaluations", "status"],
        rows,
    )


def stiff_phase():
    """1e5 entries, depth 3, to the late phase: evaluations by method at equal tolerance."""
    loss, g = observed((1682, 943), 10, 100_000, seed=2)
    point = dln.Collapsed.random((1682, 943), 20, 3, scale=1e-2, generator=g, dtype=torch.float64)
    rows = []
    reference = None
    for method in ("rk5", "rk8", "rkc", "auto"):
        path = dln.gradient_flow(
            loss, point, t_end=STIFF_TIME, rtol=1e-4, method=method, save_at=[0.0, STIFF_TIME]
        )
        reference = path.final.matrix if reference is None else reference
        gap = float((path.final.matrix - reference).norm() / reference.norm())
        rows.append(
            [
                method,
                str(path.stats["evaluations"]),
                f"{path.stats['seconds']:.1f}",
                f"{float(path.loss[-1]):.3e}",
                f"{gap:.1e}",
            ]
        )
    engine = collapsed_engine(loss, point)
    y0 = engine.rows()
    out, t = torch.empty_like(y0), torch.zeros(1, dtype=y0.dtype)

    def rhs(_, y):
        engine.field(t, torch.from_numpy(y)[None], out)
        return out[0].numpy().copy()

    begun = time.perf_counter()
    peer = solve_ivp(rhs, (0, STIFF_TIME), y0[0].numpy(), method="RK45", rtol=1e-4, atol=1e-7)
    rows.append(["scipy RK45", str(peer.nfev), f"{time.perf_counter() - begun:.1f}", "-", "-"])
    table(
        f"Stiff phase, 1682 x 943, 1e5 entries, rank 20, depth 3, t = {STIFF_TIME:g}, rtol 1e-4",
        ["method", "evaluations", "s", "loss", "distance to rk5"],
        rows,
    )


STIFF_TIME = 60.0

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(machine())
    sparse_step()
    time_to_solution()
    stiff_phase()
