from __future__ import annotations

import math
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import xarray

import dln_geometry as dln
from dln_geometry import losses


def numbers(depth, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(3, generator=g, dtype=torch.float64)
    return {"sum": x.sum() + depth, "x": x.numpy(), "name": f"seed {seed}"}


def test_every_combination_stands_at_its_labels():
    found = dln.sweep(numbers, depth=[2, 3.5, math.inf], seed=range(4))
    assert found["sum"].dims == ("depth", "seed")
    assert found["x"].dims == ("depth", "seed", "x_0")
    for depth in (2, 3.5, math.inf):
        for seed in range(4):
            cell, expected = found.sel(depth=depth, seed=seed), numbers(depth, seed)
            assert float(cell["sum"]) == float(expected["sum"])
            assert (cell["x"].values == expected["x"]).all()
            assert str(cell["name"].values) == expected["name"]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers):
    alone = dln.sweep(numbers, depth=[1, 2], seed=range(3))
    with ThreadPoolExecutor(workers) as pool:
        found = dln.sweep(numbers, depth=[1, 2], seed=range(3), executor=pool)
    xarray.testing.assert_identical(found, alone)


@pytest.mark.slow
def test_other_processes_change_nothing():
    alone = dln.sweep(numbers, depth=[1, 2], seed=range(3))
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = dln.sweep(numbers, depth=[1, 2], seed=range(3), executor=pool)
    xarray.testing.assert_identical(found, alone)


def flow(depth, save_at):
    start = dln.Collapsed.random((3, 2), 2, depth, scale=0.3, generator=1, dtype=torch.float64)
    return dln.gradient_flow(
        losses.Quadratic(torch.ones(3, 2)), start, t_end=0.5, save_at=save_at, rtol=1e-5
    )


def test_trajectories_share_their_times_or_keep_their_own():
    same = dln.sweep(lambda depth: flow(depth, 5), depth=[2, 3])
    assert same["loss"].dims == ("depth", "time")
    assert same["singular_values"].dims == ("depth", "time", "mode")
    expected = flow(3, 5)
    assert (same["loss"].sel(depth=3).values == expected.loss.numpy()).all()
    own = dln.sweep(lambda depth: flow(depth, None), depth=[2, 3])
    assert own["time"].dims == ("depth", "step")
    steps = flow(2, None)
    kept = own["loss"].sel(depth=2).values
    assert (kept[: len(steps)] == steps.loss.numpy()).all()
    assert np.isnan(kept[len(steps) :]).all()


def test_labels_stand_for_objects_and_axes_take_any_name():
    kinds = {"two": losses.Quadratic(torch.ones(2, 2)), "four": losses.LpNorm(torch.ones(2, 2), 4)}
    found = dln.sweep(lambda loss, progress: progress * loss.value(torch.zeros(2, 2)),
                      {"loss": kinds, "progress": [1, 2]})  # fmt: skip
    assert found["<lambda>"].sel(loss="four", progress=2) == 2.0


def test_scalars_and_arrays_of_xarray_are_taken():
    def area(r):
        return math.pi * r * r

    assert np.allclose(dln.sweep(area, r=[1.0, 2.0])["area"], [math.pi, 4 * math.pi])

    def line(r):
        return xarray.DataArray([r, 2 * r], dims="x", coords={"x": [0.0, 1.0]}, name="y")

    found = dln.sweep(line, r=[1.0, 2.0])
    assert found["y"].sel(r=2.0, x=1.0) == 4.0


def test_errors_name_the_run():
    begun = threading.Event()

    def fails(depth, seed):
        begun.set()
        if (depth, seed) == (3, 1):
            raise ArithmeticError("no end")
        return 1.0

    for pool in (None, ThreadPoolExecutor(2)):
        with pytest.raises(
            dln.SweepError, match=r"run failed at depth = 3, seed = 1: Arith.*no end"
        ) as seen:
            dln.sweep(fails, depth=[2, 3], seed=[0, 1], executor=pool)
        assert seen.value.coordinates == {"depth": 3, "seed": 1}
        assert isinstance(seen.value.__cause__, ArithmeticError)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: dln.sweep(3, a=[1]), TypeError, "run must be a function"),
        (lambda: dln.sweep(numbers), ValueError, "axes must hold at least one"),
        (lambda: dln.sweep(numbers, depth=3, seed=[1]), TypeError, "depth must be a sequence"),
        (lambda: dln.sweep(numbers, depth=[], seed=[1]), ValueError, "depth must hold values"),
        (lambda: dln.sweep(numbers, depth=[1, 1], seed=[1]), ValueError, "depth must hold diff"),
        (lambda: dln.sweep(numbers, depth=[1, "a"], seed=[1]), ValueError, "depth must hold val"),
        (lambda: dln.sweep(numbers, depth=[1], seed=[1], executor=3), TypeError, "executor must"),
        (lambda: dln.sweep(lambda a: object(), a=[1]), dln.SweepError, "run must return numbers"),
        (lambda: dln.sweep(lambda a: {"a": 1}, a=[1]), ValueError, "names of axes, got a"),
    ],
)
def test_bad_arguments_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
