"""The right-hand side on a GPU against the machine's own matrix products: m = n = 8192, r = 1024.

Run on a machine with CUDA: python -m benchmarks.device
"""

from __future__ import annotations

import torch

import dln_geometry as dln
from benchmarks.timing import machine, table
from dln_geometry import losses
from dln_geometry.dynamics.flows import collapsed_engine


def seconds(run, repeats=20):
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


def field_flops(m, n, r, depth):
    """Count the multiplications and additions of the matrix products of one evaluation."""
    large = 2.0 * m * n * r * 3
    outer = 2.0 * r * r * (m + n)
    # L M, C (and D), K, G R M, R x: five thin products; then the r x r powers and sums.
    k = (depth - 2) // 2 if depth % 2 == 0 else depth - 2
    steps = bin(k)[3:]
    per, unit = (2, 3) if depth % 2 == 0 else (4, 4)
    inner = 2.0 * r**3 * (per * len(steps) + unit * steps.count("1"))
    return large + 2.5 * outer + inner


def main():
    if not torch.cuda.is_available():
        raise SystemExit("error: a CUDA device is needed, got none")
    print(machine())
    m = n = 8192
    r, rows = 1024, []
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(8192, 8192, device="cuda") for _ in "ab")
        rate = 2 * 8192**3 / seconds(lambda a=a, b=b: a @ b)
        thin = torch.randn(8192, 1024, device="cuda")
        thin_rate = 2 * 8192**2 * 1024 / seconds(lambda a=a, thin=thin: a @ thin)
        loss = losses.Quadratic(a / 8192**0.5)
        for depth in (2, 3, 4, 10, 64):
            g = torch.Generator(device="cuda").manual_seed(0)
            point = dln.Collapsed.random(
                (m, n), r, depth, scale=0.5, generator=g, device="cuda", dtype=torch.float32
            )
            engine = collapsed_engine(loss, point)
            y = engine.rows()
            out, t = torch.empty_like(y), torch.zeros(1, device="cuda")
            torch.cuda.set_sync_debug_mode("error")
            taken = seconds_without_wait(lambda e=engine, t=t, y=y, out=out: e.field(t, y, out))
            got = field_flops(m, n, r, depth) / taken
            rows.append(
                [
                    "tf32" if tf32 else "f32",
                    str(depth),
                    f"{taken * 1e3:.2f}",
                    f"{got / 1e12:.1f}",
                    f"{got / rate:.2f}",
                    f"{got / thin_rate:.2f}",
                ]
            )
    table(
        f"Right-hand side on the GPU, {m} x {n}, rank {r}",
        ["", "depth", "ms", "Tflop/s", "of a square product", "of a thin product"],
        rows,
    )


def seconds_without_wait(run):
    """Run once with hidden waits for the device forbidden, then time."""
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return seconds(run)


if __name__ == "__main__":
    main()
