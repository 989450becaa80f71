"""The tests that need a GPU, and the figures of design on it, in one script of at most six minutes.

    python -m benchmarks.device               on a machine with CUDA
    python -m benchmarks.device --device cpu --tiny    a dry run of every row

Every row is timed by itself, prints as it comes, and is left out when its time is spent; one that
fails says so and the others go on. Nothing is downloaded: torch, pytest and this repository.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.dynamics.flows import collapsed_engine

BUDGET = 330.0  # seconds for everything; the tests may take a third of it
ROOT = Path(__file__).parents[1]
Row = tuple[str, str, str]


def seconds(run: Callable[[], object], device: torch.device, most: float = 6.0) -> float:
    """Return the median time of a call after one to warm up, over `most` seconds or 20 calls."""
    run()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 3 or (len(times) < 20 and time.perf_counter() - begun < most):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def flops(m: int, n: int, r: int, depth: int) -> float:
    """Count the multiplications and additions of the products of one evaluation of the flow."""
    k = (depth - 2) // 2 if depth % 2 == 0 else depth - 2
    steps = bin(k)[3:] if k > 0 else ""
    per, unit = (2, 3) if depth % 2 == 0 else (4, 4)
    inner = per * len(steps) + unit * steps.count("1")
    return 6.0 * m * n * r + 5.0 * r * r * (m + n) + 2.0 * r**3 * inner


def products(device: torch.device, tiny: bool) -> Iterator[Row]:
    """The right-hand side of the flow against the device's own square product."""
    size, r = (64, 8) if tiny else (8192, 1024)
    old = torch.get_float32_matmul_precision()
    try:
        for mode in ("highest", "high"):
            torch.set_float32_matmul_precision(mode)
            a, b = (torch.randn(size, size, device=device) for _ in "ab")
            rate = 2.0 * size**3 / seconds(lambda a=a, b=b: a @ b, device)
            loss = losses.Quadratic(a / size**0.5)
            for depth in (3, 4) if tiny else (2, 3, 4, 10, 64):
                g = torch.Generator(device=device).manual_seed(0)
                point = dln.Collapsed.random(
                    (size, size), r, depth, scale=0.5, generator=g, device=device
                )
                engine = collapsed_engine(loss, point)
                y, t = engine.rows(), torch.zeros(1, device=device)
                out = torch.empty_like(y)
                engine.field(t, y, out)
                with waits_forbidden(device):
                    engine.field(t, y, out)
                taken = seconds(lambda e=engine, t=t, y=y, out=out: e.field(t, y, out), device)
                share = flops(size, size, r, depth) / taken / rate
                name = f"field {size} x {size}, r = {r}, N = {depth}, products {mode}"
                yield name, f"{taken * 1e3:.3g} ms", f"{share:.0%} of a square product (goal 70%)"
    finally:
        torch.set_float32_matmul_precision(old)


class waits_forbidden:
    """Let CUDA raise where the host waits; nothing elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.here = device.type == "cuda"

    def __enter__(self) -> None:
        if self.here:
            torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: object) -> None:
        if self.here:
            torch.cuda.set_sync_debug_mode("default")


def sparse(device: torch.device, tiny: bool) -> Iterator[Row]:
    """One evaluation of the loss of a table with many known entries."""
    size, count, r = (100, 1000, 4) if tiny else (100_000, 100_000_000, 20)
    g = torch.Generator(device=device).manual_seed(1)
    # Distinct entries: equally many in every row, at a stride that is prime to the width.
    each = count // size
    rows = torch.arange(size, device=device).repeat_interleave(each)
    cols = (rows * 31 + torch.arange(count, device=device) % each * (size // each)) % size
    values = torch.randn(count, generator=g, device=device)
    loss = losses.Completion(rows, cols, values, (size, size))
    point = dln.Collapsed.random((size, size), r, 3, scale=0.1, generator=g, device=device)
    engine = collapsed_engine(loss, point)
    y, t = engine.rows(), torch.zeros(1, device=device)
    out = torch.empty_like(y)
    taken = seconds(lambda: engine.field(t, y, out), device)
    yield (
        f"completion, {count:.0e} entries, r = {r}",
        f"{taken * 1e3:.3g} ms",
        (f"{taken / count * 1e9:.2g} ns an entry"),
    )


def chains(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Langevin steps of many small matrices."""
    count, steps = (20, 3) if tiny else (100_000, 10)
    g = torch.Generator(device=device).manual_seed(2)
    point = dln.Collapsed.random((10, 10), 10, 3, generator=g, device=device)
    loss = losses.Quadratic(torch.eye(10, device=device))

    def run() -> object:
        return dln.langevin(
            loss, point, beta=10.0, t_end=1e-3 * steps, dt=1e-3, save_at=[0.0, 1e-3 * steps],
            generator=g, chains=count,
        )  # fmt: skip

    taken = seconds(run, device) / steps
    x = torch.randn(count, 10, 10, device=device)
    svd = seconds(lambda: torch.linalg.svd(x), device)
    yield (
        f"Langevin, {count} chains of 10 x 10",
        f"{taken * 1e3:.3g} ms a step",
        (f"{taken / svd:.2g} of torch.linalg.svd"),
    )


def particles(device: torch.device, tiny: bool) -> Iterator[Row]:
    """A step of Dyson Brownian motion of many particles."""
    n = 20 if tiny else 4000
    g = torch.Generator(device=device).manual_seed(3)
    x = torch.linspace(-2, 2, n, device=device, dtype=torch.float64)

    def run() -> object:
        options = {"t_end": 2e-3, "dt": 1e-3, "save_at": [2e-3], "generator": g}
        return dln.dyson(x, dyson_index=1.0, **options)

    taken = seconds(run, device) / 2
    yield f"Dyson, n = {n}", f"{taken * 1e3:.3g} ms a step", ""


def small_flows(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Many flows of 2 x 2 matrices with one missing entry, each with its own steps."""
    count = 20 if tiny else 10_000
    for depth in (3, 2.5, float("inf")):
        g = torch.Generator(device=device).manual_seed(4)
        start = dln.Collapsed.random(
            (2, 2), 2, depth, scale=0.3, batch=(count,), generator=g, device=device,
            dtype=torch.float64,
        )  # fmt: skip
        loss = losses.Completion([0, 0, 1], [0, 1, 0], [0.0, 1.0, 1.0], (2, 2))
        begun = time.perf_counter()
        path = dln.gradient_flow(loss, start, t_end=5.0, save_at=[0.0, 5.0], rtol=1e-6)
        wait(device)
        taken = time.perf_counter() - begun
        yield (
            f"{count} flows of 2 x 2, N = {depth:g}",
            f"{taken:.3g} s",
            (f"{taken / path.stats['steps'] * 1e3:.3g} ms a step"),
        )


TABLE = {
    "products": products,
    "small flows": small_flows,
    "chains": chains,
    "particles": particles,
    "sparse": sparse,
}


def tests(most: float) -> str:
    """Run the tests that need a device; return their last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=most, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not finished in {most:.0f} s"
    if done.returncode:
        print(done.stdout[-4000:])
    return (done.stdout.strip().splitlines() or ["no output"])[-1]


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a dry run")
    parser.add_argument("--no-tests", action="store_true", help="the table alone")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: a CUDA device is needed, got none (--device cpu --tiny runs dry)")
    begun = time.perf_counter()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}")
    if not given.no_tests:
        print("tests:", tests(BUDGET / 3), flush=True)
    found: list[Row] = []
    print("\n| work | time | compared |\n| --- | --- | --- |")
    for title, make in TABLE.items():
        if time.perf_counter() - begun > BUDGET - 30:
            print(f"| {title} | left out | the time is spent |")
            continue
        try:
            for row in make(device, given.tiny):
                print(f"| {' | '.join(row)} |", flush=True)
                found.append(row)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            print(f"| {title} | failed | {reason} |", flush=True)
            if given.tiny:
                raise
    print(f"\n{time.perf_counter() - begun:.0f} s in all")
    return found


if __name__ == "__main__":
    main()
