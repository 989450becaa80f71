"""Run a function in several processes that form a mesh, and collect what each returns."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from dln_geometry import sharded

CONTEXT = multiprocessing.get_context("forkserver")
# The server imports torch once; its children are there at once.
CONTEXT.set_forkserver_preload(["tests.dynamics.sharded.cases"])


def _enter(work, rank, count, folder, timeout, args):
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "meeting"), count)
    kind = {"store": store, "rank": rank, "world_size": count}
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout), **kind)
    try:
        result = work(sharded.mesh(device="cpu"), *args)
    except Exception as error:
        result = error
    part = os.path.join(folder, f"{rank}.part")
    with open(part, "wb") as file:
        pickle.dump(result, file)
    os.replace(part, os.path.join(folder, f"{rank}.result"))
    # Leave without a farewell: others may be gone.
    os._exit(0)


def run_on(count, work, folder, *args, timeout=60.0, patience=120.0):
    """Return the results of ``work(mesh, *args)`` by process; None of one that died."""
    folder.mkdir()
    workers = [
        CONTEXT.Process(target=_enter, args=(work, k, count, str(folder), timeout, args))
        for k in range(count)
    ]
    for worker in workers:
        worker.start()
    end = time.monotonic() + patience
    for worker in workers:
        worker.join(max(0.0, end - time.monotonic()))
    hung = [k for k, worker in enumerate(workers) if worker.is_alive()]
    for worker in workers:
        worker.kill()
    assert not hung, f"processes {hung} hang"
    files = [folder / f"{k}.result" for k in range(count)]
    found = [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]
    for result in found:
        # Its own error in front of what others say of it.
        if isinstance(result, Exception) and not isinstance(result, sharded.WorkerError):
            raise result
    return found
