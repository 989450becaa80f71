"""A flow on 1, 2 and 4 processes: processor time, bytes and messages of an evaluation."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.timing import table
from dln_geometry import losses, sharded
from dln_geometry.dynamics.flows import sharded_engine

ROUNDS = 5


def loss_of(kind: str, quick: bool) -> Any:
    """Return a loss whose evaluation takes some tenths of a second."""
    generator = torch.Generator().manual_seed(0)
    m, n = (1200, 600) if quick else (4000, 2000)
    if kind == "dense":
        return losses.Quadratic(torch.randn(m, n, generator=generator))
    m, n, entries = (6000, 1500, 10**5) if quick else (60_000, 15_000, 10**6)
    places = torch.randint(m * n, (entries,), generator=generator).unique()
    values = torch.randn(len(places), generator=generator)
    return losses.Completion(places // n, places % n, values, (m, n))


def measure(rank: int, count: int, folder: str, kind: str, quick: bool, results: Any) -> None:
    """In a process: tell its seconds, bytes and messages of an evaluation."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/{kind}{count}", count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    mesh = sharded.mesh(device="cpu")
    loss = sharded.distribute(loss_of(kind, quick), mesh)
    start = sharded.random(loss.shape, 50, 3, mesh, scale=1.0, generator=0)
    engine: Any = sharded_engine(loss, start, "spectral", False, None)
    y = engine.rows()
    t, out = y.new_zeros(1), torch.empty_like(y)
    engine.field(t, y, out)
    found = []
    for _ in range(ROUNDS):
        dist.barrier()
        before, begun, used = dict(engine.ranks.traffic), time.perf_counter(), time.process_time()
        engine.field(t, y, out)
        sent = {k: x - before[k] for k, x in engine.ranks.traffic.items()}
        found.append((time.perf_counter() - begun, time.process_time() - used))
    wall, cpu = (sorted(column)[ROUNDS // 2] for column in zip(*found, strict=True))
    results.put((wall, cpu, sum(sent[k] for k in ("gather", "scatter", "sum")), sent["calls"]))
    dist.destroy_process_group()


def processes(*, quick: bool = False) -> None:
    """Compare 1, 2 and 4 processes on dense and sparse losses."""
    context, rows = multiprocessing.get_context("forkserver"), []
    # The server imports torch once; its children are there at once.
    context.set_forkserver_preload(["benchmarks.long_runs.sharded"])
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("dense", "sparse"):
            alone = 0.0
            for count in (1, 2) if quick else (1, 2, 4):
                results = context.Queue()
                given = count, str(Path(folder)), kind, quick, results
                workers = [context.Process(target=measure, args=(k, *given)) for k in range(count)]
                for worker in workers:
                    worker.start()
                told = [results.get(timeout=240) for _ in workers]
                for worker in workers:
                    worker.join()
                wall, cpu = max(x[0] for x in told), sum(x[1] for x in told)
                alone = cpu if count == 1 else alone
                sent = f"{told[0][2] / 1e6:.2f}"
                row = kind, str(count), f"{1e3 * wall:.0f}", f"{1e3 * cpu:.0f}"
                rows.append((*row, f"{alone / cpu:.2f}", sent, str(told[0][3])))
    header = "loss", "processes", "ms", "ms of CPU, all", "efficiency", "MB given", "messages"
    table("One evaluation on several processes, rank 50, depth 3, float32", header, rows)
