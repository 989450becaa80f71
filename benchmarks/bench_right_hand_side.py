"""The right-hand side of the gradient flow against its unavoidable products and its peers.

Peers, all written here at their best: the layers by autograd, the layers by hand (prefix and
suffix products), the kernel flow of X by its singular value decomposition.
Run: python benchmarks/bench_right_hand_side.py
"""

from __future__ import annotations

import torch
from timing import machine, side_by_side, table

import dln_geometry as dln
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


def main():
    torch.set_num_threads(1)
    print(machine())
    header = ["case", "ours", "products", "thin layers by hand", "autograd", "by hand", "SVD of X"]
    rows, ours = [], {}
    for depth in (4, 10, 64):
        row, ours[depth] = case(500, 10, depth, torch.float64, True)
        rows.append(row)
    for depth in (4, 10, 64):
        row, _ = case(500, 500, depth, torch.float32, True)
        rows.append(row)
    table("Right-hand side, milliseconds (ratio ours / peer)", header, rows)
    print(f"\nN = 64 over N = 4 at rank 10: {ours[64] / ours[4]:.2f}")


if __name__ == "__main__":
    main()
