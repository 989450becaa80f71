"""Runs in threads and processes: the same bits as alone, and stores that continue."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import dln_geometry as dln

F64 = torch.float64
TARGET = torch.tensor([[1.0, 0.2], [0.0, 0.7], [0.3, 0.1]], dtype=F64)
LOSS = dln.losses.Quadratic(TARGET)
START = dln.Collapsed.of(dln.EndToEnd.of(0.5 * TARGET + 0.1, 3))


def flow(k: int) -> torch.Tensor:
    return dln.gradient_flow(LOSS, START, t_end=0.3 + 0.1 * k).final.matrix


def motion(k: int, **options) -> torch.Tensor:
    """Return the path of a chain with a generator of its own."""
    path = dln.langevin(LOSS, START, beta=20.0, t_end=0.3, dt=0.01, generator=k, **options)
    return path.singular_values


def geodesic(k: int) -> torch.Tensor:
    return dln.exponential(START, 0.01 * (k + 1) * TARGET).matrix


CALLS = [(f, k) for k in range(3) for f in (flow, motion, geodesic)]


def test_threads_give_the_results_of_one():
    alone = [f(k) for f, k in CALLS]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda call: call[0](call[1]), 3 * CALLS))
    assert all(map(torch.equal, 3 * alone, together))


def test_a_thread_without_gradients_leaves_those_of_others():
    """What a run switches off is its own thread's."""
    seen = []

    def differentiated(k):
        x = TARGET.clone().requires_grad_()
        dln.entropy(dln.EndToEnd.of(x, 3)).backward()
        seen.append(x.grad)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda k: differentiated(k) if k % 2 else motion(k), range(8)))
    assert len(seen) == 4
    assert all(torch.equal(grad, seen[0]) for grad in seen)
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_the_package_is_loaded_by_many_threads_at_once():
    code = """
import threading
import dln_geometry as dln
names, errors, gate = list(dln.__all__), [], threading.Barrier(8)

def load(k):
    gate.wait()
    try:
        for name in names[k::2]:
            getattr(dln, name)
        getattr(dln.learning, dln.learning.__all__[k])
    except BaseException as error:
        errors.append(repr(error))

threads = [threading.Thread(target=load, args=(k,)) for k in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not errors, errors
"""
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run_in_a_thread_is_stored_interrupted_and_continued(tmp_path):
    """Signals are the main thread's alone; an exception of the run writes its state."""
    want, ended = motion(5), []

    def stopping(fraction, info):
        if fraction > 0.4:
            raise KeyboardInterrupt

    def run():
        with pytest.raises(KeyboardInterrupt):
            motion(5, store=tmp_path / "run.zarr", progress=stopping)
        ended.append(motion(5, store=tmp_path / "run.zarr"))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(ended) == 1
    assert torch.equal(ended[0], want)


def sent(queue, k):
    torch.set_num_threads(1)
    queue.put(motion(k).tolist())


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes_give_the_same_bits(method):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=sent, args=(queue, 3))
    child.start()
    found = queue.get(timeout=300)
    child.join()
    assert child.exitcode == 0
    assert found == motion(3).tolist()
