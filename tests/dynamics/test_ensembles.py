"""Ensembles and sweeps: the same for every executor, each result once, resumable."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import xarray

import dln_geometry as dln
from dln_geometry import losses
from tests.dynamics.store.runs import told

F64 = torch.float64
LOSS = losses.Quadratic(torch.eye(3, 2, dtype=F64))
LANGEVIN = partial(
    dln.langevin, LOSS, beta=3.0, t_end=0.2, dt=0.05, keep_points=True, save_at=[0.0, 0.2]
)
FLOW = partial(dln.gradient_flow, LOSS, t_end=0.5, save_at=[0.0, 0.25, 0.5])


def starts(count=7, depth=3):
    options = {"batch": (count,), "scale": 0.3, "generator": 1, "dtype": F64}
    return dln.Collapsed.random((3, 2), 2, depth, **options)


def same(a, b):
    found = [told(a), told(b)]
    return len(found[0]) == len(found[1]) and all(map(torch.equal, *found))


@pytest.mark.parametrize("run", [LANGEVIN, FLOW, partial(dln.brownian_motion, t_end=0.2, dt=0.1)])
def test_workers_change_nothing(run):
    alone = dln.ensemble(run, starts(), seed=4, members=3)
    assert alone.batch_shape == (7,)
    for count in (1, 3):
        with ThreadPoolExecutor(count) as pool:
            assert same(alone, dln.ensemble(run, starts(), seed=4, members=3, executor=pool))


def test_an_ensemble_is_its_runs():
    """Each batch by itself; a flow whatever the size of the batches."""
    found = dln.ensemble(FLOW, starts(), members=3)
    whole = FLOW(starts())
    assert torch.allclose(found.singular_values, whole.singular_values, rtol=1e-7)
    assert len(found.status) == 7
    for k in (0, 4):
        one = FLOW(starts()[k])
        assert torch.allclose(found.final.matrix[k], one.final.matrix, rtol=1e-6, atol=1e-12)


def test_streams_are_independent_of_each_other_and_of_the_seed_of_another():
    kicks = dln.ensemble(lambda x, generator: torch.randn(len(x), 50, generator=generator),
                         torch.zeros(40), seed=2, members=4)  # fmt: skip
    other = dln.ensemble(lambda x, generator: torch.randn(len(x), 50, generator=generator),
                         torch.zeros(40), seed=3, members=4)  # fmt: skip
    assert kicks.shape == (40, 50)
    every = torch.cat([kicks, other])
    assert len(torch.unique(every.flatten())) == every.numel()
    off = torch.corrcoef(every.double()).fill_diagonal_(0.0)
    # The largest of 3160 correlations of 50 numbers: beyond 5.5/sqrt(50) once in 10^4.
    assert float(off.abs().max()) < 5.5 / 50**0.5


@pytest.mark.parametrize("kind", ["list", "numbers", "tensors", "networks", "end to end"])
def test_every_kind_of_starts(kind):
    points = starts(3)
    made = {
        "list": list(points),
        "numbers": [1.0, 2.0, 3.0],
        "tensors": torch.ones(3, 2),
        "networks": [dln.balanced_factors(p) for p in points],
        "end to end": [dln.EndToEnd.of(p.matrix, 3) for p in points],
    }[kind]
    run = FLOW if kind not in ("numbers", "tensors") else lambda x: {"twice": 2 * x, "n": (x,)}
    found = dln.ensemble(run, made, members=2)
    if kind in ("numbers", "tensors"):
        assert torch.equal(found["twice"], 2 * torch.as_tensor(made))
        assert torch.equal(found["n"][0], torch.as_tensor(made))
    else:
        assert found.final.batch_shape == (3,)


def test_an_ensemble_continues_from_its_store(tmp_path):
    whole, calls = dln.ensemble(LANGEVIN, starts(), seed=4, members=3), []

    def stops(fraction, info):
        calls.append(fraction)
        if len(calls) == 2:
            raise KeyboardInterrupt

    options = {"seed": 4, "members": 3, "store": tmp_path / "run.zarr"}
    with pytest.raises(KeyboardInterrupt):
        dln.ensemble(LANGEVIN, starts(), progress=stops, **options)
    assert same(whole, dln.ensemble(LANGEVIN, starts(), **options))
    data = xarray.open_zarr(tmp_path / "run.zarr", group="1", consolidated=False)
    assert np.array_equal(data["singular_values"].values, whole.singular_values[:, 3:6].numpy())
    with pytest.raises(dln.SweepError, match="batch = 0.*same run.*generator"):
        dln.ensemble(LANGEVIN, starts(), **{**options, "seed": 5})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"run": 3}, TypeError, "run must be a function"),
        ({"inputs": 3}, TypeError, "inputs must be a batch"),
        ({"inputs": []}, TypeError, "inputs must be a batch"),
        ({"inputs": [starts(1)[0], 3]}, TypeError, "inputs must be points, tensors"),
        ({"inputs": starts()[0]}, ValueError, "inputs must hold at least one"),
        ({"seed": None}, ValueError, "seed must be given"),
        ({"seed": -1}, ValueError, "seed must be a seed"),
        ({"members": 0}, ValueError, "members must be"),
        ({"executor": 3}, TypeError, "executor must have"),
        ({"store": 3}, TypeError, "store must be a path"),
        ({"run": partial(dln.gradient_flow, LOSS, t_end=1.0)}, None, None),
        ({"run": lambda x: object()}, TypeError, "run must return"),
        ({"run": lambda x: x, "store": "x"}, ValueError, "store must go with"),
    ],
)
def test_wrong_ensembles_say_what_is_wrong(change, error, words):
    given = {"run": LANGEVIN, "inputs": starts(), "seed": 1, **change}
    run, inputs = given.pop("run"), given.pop("inputs")
    if error is None:
        assert dln.ensemble(run, inputs, **given).batch_shape == (7,)
        return
    with pytest.raises(error, match=words):
        dln.ensemble(run, inputs, **given)


def cell(depth, seed):
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.rand(2, generator=g, dtype=F64) + depth,
        "name": f"{depth} {seed}",
        "n": seed,
    }


def logged(depth, seed, folder):
    """Make a run, and note in a file that it was made."""
    with open(os.path.join(folder, f"{depth}-{seed}-{os.getpid()}-{time.time_ns()}"), "w"):
        return cell(depth, seed)


AXES = {"depth": [2, 3.5, float("inf")], "seed": range(4)}


def test_a_sweep_makes_each_run_once(tmp_path):
    whole, made = dln.sweep(cell, AXES), []

    def run(depth, seed):
        made.append((depth, seed))
        if len(made) == 6:
            raise KeyboardInterrupt
        return cell(depth, seed)

    with pytest.raises(KeyboardInterrupt):
        dln.sweep(run, AXES, store=tmp_path / "sweep.zarr")
    table = xarray.open_zarr(tmp_path / "sweep.zarr").load()
    assert dict(table.sizes) == {"cell": 5, "x_0": 2}
    assert table["depth"].values.tolist() == [2, 2, 2, 2, 3.5]
    assert np.array_equal(table["x"].values[4], cell(3.5, 0)["x"].numpy())
    found = dln.sweep(run, AXES, store=tmp_path / "sweep.zarr", every=0.0)
    assert len(made) == 13
    assert found.drop_vars("n").identical(whole.drop_vars("n"))
    assert found["n"].dtype == whole["n"].dtype
    dln.sweep(run, AXES, store=tmp_path / "sweep.zarr")
    assert len(made) == 13
    with pytest.raises(ValueError, match="same run, got .* other axes"):
        dln.sweep(run, {**AXES, "seed": range(5)}, store=tmp_path / "sweep.zarr")
    with pytest.raises(ValueError, match="same run, got .* other of"):
        dln.sweep(cell, AXES, store=tmp_path / "sweep.zarr")
    (tmp_path / "sweep.zarr" / "checkpoint" / "cells" / "1").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="store must be a folder written by a sweep"):
        dln.sweep(run, AXES, store=tmp_path / "sweep.zarr")


def test_a_killed_sweep_goes_on(tmp_path):
    store, logs = tmp_path / "sweep.zarr", tmp_path / "logs"
    logs.mkdir()
    pid = os.fork()
    if pid == 0:

        def slow(depth, seed):
            if len(os.listdir(logs)) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return logged(depth, seed, logs)

        slow.__qualname__, slow.__module__ = "run", "tests"
        dln.sweep(slow, AXES, store=store, every=0.0)
        os._exit(0)
    os.waitpid(pid, 0)

    def run(depth, seed):
        return logged(depth, seed, logs)

    run.__qualname__, run.__module__ = "run", "tests"
    found = dln.sweep(run, AXES, store=store)
    assert found.identical(dln.sweep(cell, AXES))
    assert len(os.listdir(logs)) == 12


@pytest.mark.slow
def test_processes_change_nothing():
    alone = dln.ensemble(LANGEVIN, starts(), seed=4, members=3)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        assert same(alone, dln.ensemble(LANGEVIN, starts(), seed=4, members=3, executor=pool))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_loses_a_worker_returns_each_result_once(tmp_path):
    distributed = pytest.importorskip("distributed")
    folder = str(tmp_path)
    with (
        distributed.LocalCluster(
            n_workers=3, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        killed, seen = [], []

        def told(fraction, info):
            seen.append(fraction)
            if not killed:
                pid = next(iter(client.run(os.getpid).values()))
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

        found = dln.sweep(
            partial(logged, folder=folder), AXES, executor=client.get_executor(), progress=told
        )
        assert found.identical(dln.sweep(cell, AXES))
        assert killed
        assert seen == [pytest.approx((k + 1) / 12) for k in range(12)]
        alone = dln.ensemble(LANGEVIN, starts(), seed=4, members=2)
        pool = client.get_executor()
        assert same(alone, dln.ensemble(LANGEVIN, starts(), seed=4, members=2, executor=pool))
