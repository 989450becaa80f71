"""Flows: the right-hand side against its products and peers, many flows at once, and small ones."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from scipy.integrate import solve_ivp

import dln_geometry as dln
from benchmarks.timing import a_clock, peer, side_by_side, table
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
    times, clock = [], a_clock()
    for _ in range(repeats):
        begun = clock()
        result = run()
        times.append(clock() - begun)
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


def small(quick=False):
    """Thousands of 2 x 2 flows, and single flows of small matrices; processor time."""
    loss = losses.Completion([0, 0, 1], [0, 1, 0], [0.0, 1.0, 1.0], (2, 2))
    count, rows = 300 if quick else 3000, []
    for depth in (3, math.inf) if quick else (2, 3, 5, 10, math.inf):
        g = torch.Generator().manual_seed(0)
        s = torch.rand(count, 2, generator=g, dtype=torch.float64) * 0.9 + 0.1
        start = dln.Collapsed.random(
            (2, 2), 2, depth, spectrum=s.sort(-1, descending=True).values, batch=(count,),
            generator=g, dtype=torch.float64,
        )  # fmt: skip
        begun = time.process_time()
        path = dln.gradient_flow(
            loss, start, t_end=200.0, until={"loss": 1e-8}, rtol=1e-6, save_at=[0.0, 200.0]
        )
        seconds = time.process_time() - begun
        ended = path.status.count("loss")
        stats = path.stats
        steps = [str(stats["evaluations"]), str(stats["steps"]), str(ended)]
        rows.append([f"{depth:g}", f"{seconds:.1f}", *steps])
    table(
        f"{count} completions of 2 x 2, to loss 1e-8 or t = 200, rtol 1e-6",
        ["depth", "CPU s", "evaluations", "steps", "ended by the loss"],
        rows,
    )
    rows = []
    for d in (2, 3, 5):
        row = [f"{d} x {d}"]
        for depth in (2, 3, 5, math.inf):
            row.append(f"{1e6 * single(d, depth, 2 if quick else 6):.0f}")
        rows.append([*row, f"{1e6 * single_by_scipy(d):.0f}"])
    table(
        "A single flow, rk8, microseconds an evaluation",
        ["", *(f"N = {depth:g}" for depth in (2, 3, 5, math.inf)), "scipy's DOP853, N = 3"],
        rows,
    )


def single(d, depth, repeats):
    """Return the processor time of an evaluation in a whole flow, the best of several."""
    g = torch.Generator().manual_seed(0)
    loss = losses.Quadratic(torch.randn(d, d, generator=g, dtype=torch.float64))
    start = dln.Collapsed.random((d, d), d, depth, scale=0.3, generator=g, dtype=torch.float64)
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        path = dln.gradient_flow(loss, start, t_end=3.0, method="rk8", save_at=[0.0, 3.0])
        times.append((time.process_time() - begun) / path.stats["evaluations"])
    return min(times)


def single_by_scipy(d):
    """Return the same of scipy on three layers, in numpy."""
    g = np.random.default_rng(0)
    target, w = g.normal(size=(d, d)), 0.3 ** (1 / 3) * np.eye(d)[None].repeat(3, 0)

    def rhs(_, y):
        a, b, c = y.reshape(3, d, d)
        ba = b @ a
        back = target - c @ ba
        low = c.T @ back
        return np.concatenate(((b.T @ low).ravel(), (low @ a.T).ravel(), (back @ ba.T).ravel()))

    times = []
    for _ in range(6):
        begun = time.process_time()
        path = solve_ivp(rhs, (0, 3.0), w.ravel(), method="DOP853", rtol=1e-8, atol=1e-11)
        times.append((time.process_time() - begun) / path.nfev)
    return min(times)
