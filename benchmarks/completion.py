"""Matrix completion: a sparse evaluation, time to solution, the stiff late phase, and memory."""

from __future__ import annotations

import subprocess
import sys
import time

import torch
from scipy.integrate import solve_ivp

import dln_geometry as dln
from benchmarks.timing import a_clock, side_by_side, table
from dln_geometry import losses
from dln_geometry.dynamics.entries import Pattern, has_compressed_kernels, library
from dln_geometry.dynamics.flows import collapsed_engine


def observed(shape, rank, entries, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    m, n = shape
    truth = torch.randn(m, rank, generator=g, dtype=dtype) @ torch.randn(
        rank, n, generator=g, dtype=dtype
    )
    places = torch.randperm(m * n, generator=g)[:entries]
    rows, cols = places // n, places % n
    return losses.Completion(rows, cols, truth[rows, cols] / rank**0.5, shape), g


def sparse_step(quick=False):
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
    ratios = {"dense layers, autograd": times["dense"] / times["ours"]}
    table(
        "One evaluation, 1682 x 943, rank 50, depth 3",
        ["", "ms", "ratio to ours"],
        rows,
        ratios,
    )


def time_to_solution(quick=False):
    """100 x 100, rank 5, 2000 entries, depth 3, start 1e-3, mean squared error 1e-4."""
    loss, g = observed((100, 100), 5, 2000, seed=1)
    goal = 0.5 * 2000 * 1e-4
    rows, clock = [], a_clock()
    for rank in (5, 100):
        point = dln.Collapsed.random(
            (100, 100), rank, 3, scale=1e-3, generator=g, dtype=torch.float64
        )
        for rtol in (1e-2, 1e-3) if quick else (1e-2, 1e-3, 1e-5, 1e-8):
            times = []
            for _ in range(3):
                begun = clock()
                path = dln.gradient_flow(
                    loss, point, until={"loss": goal}, rtol=rtol, save_at=[0.0]
                )
                times.append(clock() - begun)
            default = " (default)" if rtol == 1e-8 else ""
            rows.append(
                [
                    str(rank),
                    f"{rtol:.0e}{default}",
                    f"{sorted(times)[1]:.2f}",
                    str(path.stats["evaluations"]),
                ]
            )
    table(
        "Time to solution, 100 x 100, rank 5, 2000 entries, depth 3",
        ["rank of the start", "rtol", "s", "evaluations"],
        rows,
    )


def stiff_phase(quick=False):
    """1e5 entries, depth 3, from 1e-3 to a millionth of the first loss, rtol 1e-3."""
    loss, g = observed((1682, 943), 10, 100_000, seed=2)
    unit = torch.linalg.vector_norm(loss.values) / (100_000 / (1682 * 943)) ** 0.5
    loss = losses.Completion(loss.rows, loss.cols, loss.values / unit, loss.shape)
    point = dln.Collapsed.random((1682, 943), 20, 3, scale=1e-3, generator=g, dtype=torch.float64)
    goal = 1e-6 * float(loss.value(point))
    clock = a_clock()
    rows, until = [], {"loss": goal, "evaluations": 10_000}
    for method in ("auto",) if quick else ("auto", "rkc", "rk5"):
        begun = clock()
        path = dln.gradient_flow(loss, point, until=until, rtol=1e-3, method=method)
        rows.append(
            [
                method,
                str(path.stats["evaluations"]),
                f"{clock() - begun:.1f}",
                f"{float(path.loss[-1]) / goal:.1f}",
            ]
        )
    engine = collapsed_engine(loss, point)
    y0 = engine.rows()
    out, t = torch.empty_like(y0), torch.zeros(1, dtype=y0.dtype)
    end = float(dln.gradient_flow(loss, point, until=until, rtol=1e-3).t[-1])

    def rhs(_, y):
        engine.field(t, torch.from_numpy(y)[None], out)
        return out[0].numpy().copy()

    begun = clock()
    peer = solve_ivp(rhs, (0, end), y0[0].numpy(), method="RK45", rtol=1e-3, atol=1e-6)
    left = float(loss.value(dln.Collapsed.of(engine.point(torch.from_numpy(peer.y[:, -1])[None]))))
    rows.append(
        [
            "scipy RK45 to the same time",
            str(peer.nfev),
            f"{clock() - begun:.1f}",
            f"{left / goal:.1f}",
        ]
    )
    table(
        "Stiff phase, 1682 x 943, 1e5 entries, rank 20, depth 3, rtol 1e-3",
        ["method", "evaluations", "s", "last loss over its goal"],
        rows,
    )


CASES = [(3000, 100_000, 20), (1682, 100_000, 50), (100_000, 1_000_000, 20)]


def sparse_pass(quick=False):
    """The compiled pass over the entries against the sparse kernels of torch, CPU time."""
    rows, ratios = [], {}
    for size, count, rank in CASES[:2] if quick else CASES:
        for dtype in (torch.float64, torch.float32):
            g = torch.Generator().manual_seed(0)
            key = torch.unique(torch.randint(size * size, (count,), generator=g))
            values = torch.randn(len(key), generator=g, dtype=dtype)
            place = (key // size, key % size)
            left, right = (torch.randn(size, rank, generator=g, dtype=dtype) for _ in "lr")
            ours = losses.Completion(*place, values, (size, size))
            pattern = Pattern(*place, (size, size))
            order = torch.argsort(place[1], stable=True)
            columns = Pattern(place[1][order], place[0][order], (size, size))
            has_compressed_kernels(dtype, "cpu")
            data = (pattern, columns, order, pattern.matrix(values), left, right)

            def by_torch(data=data):
                pattern, columns, order, target, left, right = data
                found = pattern.residual(target, left, right)
                by_column = columns.matrix(found.index_select(0, order))
                return pattern.matrix(found) @ right, by_column @ left

            times = side_by_side(
                {"ours": lambda: ours.contract(left, right), "torch": by_torch},  # noqa: B023
                rounds=3 if quick else 7,
                clock=time.process_time,
            )
            name = f"{size} x {size}, {len(key)} entries, rank {rank}, {str(dtype)[6:]}"
            nanoseconds = [f"{1e9 * times[k] / len(key):.1f}" for k in ("ours", "torch")]
            ratios[name] = times["torch"] / times["ours"]
            rows.append([name, *nanoseconds, f"{ratios[name]:.2f}"])
    compiled = library(torch.float64, 20) is not None
    title = "One pass over the entries" + ("" if compiled else " (no C compiler: torch's kernels)")
    table(title, ["case", "ours, CPU ns an entry", "torch", "ratio"], rows, ratios)


def to_solution(quick=False):
    sparse_step(quick)
    time_to_solution(quick)


def peak_of(code, *arguments):
    """Return what a program of its own prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def memory_of_matrices(quick):
    """The memory at the peak of an entropy and a logarithm beyond the matrix given, in matrices."""
    code = """
import sys, resource, torch
import dln_geometry as dln
from dln_geometry.geometry.geodesics import exponential, logarithm
kind, d = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)

def made(d):
    x = torch.randn(d, d, generator=g, dtype=torch.float64)
    if kind == "entropy":
        return lambda: dln.entropy(x, depth=3)
    point = dln.EndToEnd.of(torch.eye(d, dtype=torch.float64) + 0.4 * x / d**0.5, 3)
    z = dln.cometric(point, torch.randn(d, d, generator=g, dtype=torch.float64))
    end = exponential(point, z * (0.8 / dln.inner(point, z, z).sqrt()))
    return lambda: logarithm(point, end)

made(6)()  # what is loaded on the first call
run = made(d)
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
# What is held now; the way to the end of a geodesic may have taken more for a while.
pages = int(open("/proc/self/statm").read().split()[1])
before = pages * resource.getpagesize()
run()
print(f"{(peak() - before) / (8 * d * d):.1f}")
"""
    rows = []
    for kind, d in (("entropy", 1500 if quick else 3000), ("logarithm", 40 if quick else 100)):
        rows.append([f"{kind}, {d} x {d}, N = 3", peak_of(code, kind, d)])
    table("Memory beyond the matrix given, in matrices, float64", ["case", "matrices"], rows)


def memory(quick=False):
    """The memory at the peak of a flow beyond that at its start, over one state."""
    memory_of_matrices(quick)
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
print(f"{(peak() - before) / (16 * 20 * size):.1f}")
"""
    rows = []
    for size in (50_000,) if quick else (50_000, 100_000):
        for method in ("rk5", "rkc", "rk8"):
            name = f"{size} x {size}, rank 20, {10 * size} entries"
            rows.append([name, method, peak_of(code, size, method)])
    table("Memory of a flow in states, float64", ["case", "method", "states"], rows)
