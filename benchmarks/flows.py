"""Flows: the right-hand side against its products and peers, many flows at once, and memory."""

from __future__ import annotations

import subprocess
import sys
import time

import torch
from scipy.integrate import solve_ivp

import dln_geometry as dln
from benchmarks.timing import peer, side_by_side, table
from dln_geometry import losses
from dln_geometry.dynamics.flows import collapsed_engine


def by_autograd(factors, target):
    leaves = [w.clone().requires_grad_() for w in factors]

    def run():
        x = leaves[0]
        for w in leaves[1:]:
            x = w @ x
        return torch.autograd.grad(0.5 * (x - target).square().sum(), leaves)

    return run


def by_hand(factors, target):
    def run():
        below = [factors[0]]
        for w in factors[1:]:
            below.append(w @ below[-1])
        back, grads = below[-1] - target, []
        for p in range(len(factors) - 1, 0, -1):
            grads.append(back @ below[p - 1].T)
            back = factors[p].T @ back
        grads.append(back)
        return grads

    return run


def by_svd(x, target, depth):
    def run():
        p = dln.EndToEnd.of(x, depth)
        return dln.cometric(p, x - target)

    return run


def collapsed(point, loss, name="auto"):
    engine = collapsed_engine(loss, point, name)
    y = engine.rows()
    out, t = torch.empty_like(y), torch.zeros(1, dtype=y.dtype)
    return lambda: engine.field(t, y, out)


def unavoidable(point, target):
    left, middle, right = point.L, point.M, point.R

    def run():
        g = (left @ middle) @ right.T - target
        return g @ right, g.T @ left

    return run


def case(d, r, depth, dtype, peers):
    g = torch.Generator().manual_seed(0)
    target = torch.randn(d, d, generator=g, dtype=dtype) / d**0.5
    spectrum = torch.linspace(1.2, 0.3, r, dtype=dtype)
    point = dln.Collapsed.random((d, d), r, depth, spectrum=spectrum, generator=g, dtype=dtype)
    loss = losses.Quadratic(target)
    run = collapsed(point, loss)
    # Alone first: layers of several hundred megabytes would empty the caches in between.
    candidates = {"ours": run, "products": unavoidable(point, target)}
    if r < d:
        candidates["thin by hand"] = by_hand(point.factors(widths=r), target)
    alone = side_by_side(candidates, rounds=200, budget=5.0)
    candidates = {"ours": run}
    if peers:
        full = dln.balanced_factors(point)
        candidates["autograd"] = by_autograd(full, target)
        candidates["by hand"] = by_hand(full, target)
        candidates["SVD of X"] = by_svd(point.matrix, target, depth)
    times = side_by_side(candidates, rounds=15, budget=15.0)

    def cell(times, name):
        if name not in times:
            return "-"
        return f"{times[name] * 1e3:.2f} ({times['ours'] / times[name]:.2f})"

    return [
        f"{d} x {d}, r = {r}, N = {depth}, {str(dtype)[6:]}",
        f"{alone['ours'] * 1e3:.2f}",
        cell(alone, "products"),
        cell(alone, "thin by hand"),
        *(cell(times, name) for name in ("autograd", "by hand", "SVD of X")),
    ], alone["ours"]


def right_hand_side(quick=False):
    header = ["case", "ours", "products", "thin layers by hand", "autograd", "by hand", "SVD of X"]
    rows, ours = [], {}
    for depth in (4, 10, 64):
        row, ours[depth] = case(500, 10, depth, torch.float64, True)
        rows.append(row)
    for depth in () if quick else (4, 10, 64):
        row, _ = case(500, 500, depth, torch.float32, True)
        rows.append(row)
    table("Right-hand side, milliseconds (ratio ours / peer)", header, rows)
    print(f"\nN = 64 over N = 4 at rank 10: {ours[64] / ours[4]:.2f}")


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


def batch(quick=False):
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
    if torchdiffeq := peer("torchdiffeq"):
        odeint = torchdiffeq.odeint

        def by_torchdiffeq():
            return odeint(
                lambda t, y: tuple(velocity(y, target)),
                tuple(factors),
                torch.tensor([0.0, TIME], dtype=torch.float64),
                rtol=RTOL,
                atol=1e-9,
            )

        other, _ = best(by_torchdiffeq, 3)
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
        {name: float(ratio) for name, _, ratio, _ in rows[1:]},
    )


def memory(quick=False):
    """The memory at the peak of a flow beyond that at its start, over one state."""
    code = """
import sys, resource, torch
import dln_geometry as dln
size, method = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
key = torch.unique(torch.randint(size * size, (10 * size,), generator=g))
values = torch.randn(len(key), generator=g, dtype=torch.float64)
loss = dln.losses.Completion(key // size, key % size, values, (size, size))
start = dln.Collapsed.random(
    (size, size), 20, 3, scale=0.01, generator=g, dtype=torch.float64
)
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
until = {"evaluations": 20}
dln.gradient_flow(loss, start, until=until, rtol=1e-3, method=method, save_at=[0.0])
print((peak() - before) / (16 * 20 * size))
"""
    rows = []
    for size in (50_000,) if quick else (50_000, 100_000):
        for method in ("rk5", "rkc", "rk8"):
            command = [sys.executable, "-c", code, str(size), method]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(
                [
                    f"{size} x {size}, rank 20, {10 * size} entries",
                    method,
                    f"{float(done.stdout):.1f}",
                ]
            )
    table("Memory of a flow in states, float64", ["case", "method", "states"], rows)
