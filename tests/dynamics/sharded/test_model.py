"""What the paper model counts: operations and memory of a flow, beside the messages."""

from __future__ import annotations

import ctypes
import gc
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import dln_geometry as dln
from dln_geometry import losses, sharded
from dln_geometry.dynamics import entries
from dln_geometry.dynamics.flows import sharded_engine
from tests.dynamics.sharded import cases

DEPTHS = 1.0, 2.0, 2.5, 3.0, 4.0, 7.0, 16.0, 101.0, math.inf


@pytest.mark.parametrize("shape", [(160, 120), (120, 160)])
@pytest.mark.parametrize("depth", DEPTHS)
def test_products_of_every_depth_are_counted(depth, shape):
    """Of the engines that flows choose; products of r x r matrices come on top."""
    rank = 4
    with sharded.alone() as mesh:
        loss = sharded.distribute(cases.quadratic(*shape), mesh)
        start = sharded.distribute(cases.start(*shape, rank, depth), mesh)
        engine = sharded_engine(loss, start, "auto", False, None)
        y = engine.rows()
        with FlopCounterMode(display=False) as counter:
            engine.field(y.new_zeros(1), y, torch.empty_like(y))
    cost = sharded.evaluation_cost(shape, rank, depth=depth, dtype=cases.F64)
    assert 0 <= counter.get_total_flops() - cost.products <= 40 * rank**3


def test_operations_of_the_entries_are_counted(tmp_path, monkeypatch, generator):
    """By the source of the pass, over numbers that count."""
    compiler, source = shutil.which("c++"), Path(__file__).with_name("counting.cpp")
    if compiler is None:
        pytest.skip("there is no compiler of C++")
    library, room = tmp_path / "counting.so", Path(entries.__file__).parent
    words = ["-w", "-fPIC", "-shared", f"-I{room}", str(source), "-o", str(library)]
    subprocess.run([compiler, *words], check=True, timeout=120)
    counting = ctypes.CDLL(str(library))
    counting.operations.restype = ctypes.c_int64
    monkeypatch.setattr("dln_geometry.dynamics.entries.tiles.library", lambda dtype, rank: counting)
    (m, n), rank = (300, 200), 20
    places = torch.randperm(m * n, generator=generator)[:3000]
    values = torch.randn(3000, generator=generator, dtype=cases.F64)
    loss = losses.Completion(places // n, places % n, values, (m, n))
    left, right = (torch.randn(k, rank, generator=generator, dtype=cases.F64) for k in (m, n))
    found = loss.contract(left, right)
    done = counting.operations()
    residual = (left @ right.mT)[loss.rows, loss.cols] - loss.values
    assert torch.allclose(found[0], 0.5 * residual.square().sum())
    cost = sharded.evaluation_cost((m, n), rank, entries=3000)
    # Besides: the difference from the entry.
    assert done == cost.entries + 3000


# Loss, shape, rank, entries, depth and method.
RUNS = [
    ("sparse", (20_000, 10_000), 20, 20_000, 3, "rk5"),
    ("sparse", (20_000, 10_000), 20, 20_000, 2, "rk3"),
    ("sparse", (10_000, 20_000), 20, 20_000, 2.5, "rk8"),
    ("sparse", (20_000, 10_000), 20, 20_000, 3, "rkc"),
    ("sparse", (20_000, 10_000), 20, 20_000, math.inf, "rk5"),
    ("sparse", (2000, 1000), 3, 400_000, 3, "rk5"),
    ("dense", (2000, 1500), 80, 0, 3, "rk5"),
]


@pytest.mark.parametrize(("kind", "shape", "rank", "count", "depth", "method"), RUNS)
def test_memory_is_that_of_the_tensors(
    kind, shape, rank, count, depth, method, generator, monkeypatch
):
    """The most bytes of tensors at a time, those of loss and start included."""
    m, n = shape
    # Gloo copies what it scatters, and frees copies on threads of its own, which no profile sees.
    talk = "dln_geometry.dynamics.sharded.ranks."
    monkeypatch.setattr(talk + "_GATHER", lambda out, x, group: out.copy_(x))
    monkeypatch.setattr(talk + "_SCATTER", lambda out, x, group: out.copy_(x.clone()))
    if kind == "dense":
        loss = losses.Quadratic(torch.randn(m, n, generator=generator))
    else:
        places = torch.randint(m * n, (count,), generator=generator).unique()
        values = torch.randn(len(places), generator=generator)
        loss = losses.Completion(places // n, places % n, values, shape)
        count = len(places)
    with sharded.alone() as mesh:
        start = sharded.random(shape, rank, depth, mesh, scale=1.0, generator=0)
        cut = sharded.distribute(loss, mesh)
        gc.collect()
        data = (loss.target,) if kind == "dense" else (loss.rows, loss.cols, loss.values)
        held = sum(x.nbytes for x in data) + 4 * (m + n) * rank
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            dln.gradient_flow(cut, start, t_end=1.0, until={"steps": 2}, method=method)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = held
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    cost = sharded.evaluation_cost(shape, rank, entries=count or None, depth=depth, method=method)
    assert 0.7 * cost.memory <= most <= 1.02 * cost.memory + 4 * n * rank, most / cost.memory
