"""A store continues its own run and no other."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from tests.dynamics.store.runs import (
    F64,
    FREE,
    RUNS,
    SEED,
    point,
    run,
    seeded,
    target,
    told,
)


@pytest.mark.parametrize("name", RUNS)
def test_every_option_that_decides_the_result_is_known(name, tmp_path):
    options, others, free = RUNS[name]
    assert set(inspect.signature(getattr(dln, name)).parameters) == {*others, *free, *FREE}
    store = tmp_path / "run"
    first = run(name, options, store)
    again = run(name, options, store)
    for a, b in zip(told(first), told(again), strict=True):
        assert torch.equal(a, b)
    for option, value in others.items():
        changed = {**options, option: value}
        if option == "increments" and name == "dyson":
            changed[option] = torch.randn(2, 3, generator=seeded(), dtype=F64)
        elif option == "increments":
            steps = torch.randn(2, 4, 3, generator=seeded(), dtype=F64)
            changed |= {"increments": steps, "generator": None, "dt": None}
        elif option == "signed":
            changed |= {"shape": (3, 3), "signed": True}
        with pytest.raises(ValueError, match=rf"same run, got {store} .*\b{option}\b"):
            run(name, changed, store)


def test_the_precision_of_products_is_known(tmp_path):
    loss, start = losses.Quadratic(target().float()), point().to(torch.float32)
    dln.gradient_flow(loss, start, t_end=0.2, store=tmp_path / "run")
    with pytest.raises(ValueError, match=r"same run, got .*\bprecision\b"):
        dln.gradient_flow(loss, start, t_end=0.2, store=tmp_path / "run", precision="tf32")


def test_every_public_run_with_a_store_is_tried():
    takers = {
        name
        for name in dln.__all__
        if inspect.isfunction(f := getattr(dln, name))
        and "store" in inspect.signature(f).parameters
    }
    # Those two keep runs of others, and have tests of their own.
    assert takers - {"ensemble", "sweep"} == set(RUNS)


def test_wrappers_of_runs_know_as_much(tmp_path):
    """They hand every option on to one of `RUNS`."""
    flow = {"loss": losses.Quadratic(target()), "start": point(), "beta": 3.0, "t_end": 0.1}
    motion = {"start": point(), "t_end": 0.2, "dt": 0.1, "generator": SEED}
    frozen = {**RUNS["langevin"][0], "kappa": 0.0}
    for name, options, changes in (
        ("free_energy_flow", flow, {"beta": 3.1, "widths": 5, "loss": losses.Quadratic(-target())}),
        ("brownian_motion", motion, {"upstairs": True, "dt": 0.05, "generator": 9}),
        ("langevin", frozen, {"beta": 3.1, "widths": 5, "start": point(9)}),
    ):
        store = tmp_path / f"{name}-{len(options)}"
        run(name, options, store)
        run(name, options, store)
        for option, value in changes.items():
            with pytest.raises(ValueError, match="same run"):
                run(name, {**options, option: value}, store)
    for start in (point(depth=4), point().replace(normalized=True), point(dtype=torch.float32)):
        with pytest.raises(ValueError, match="same run"):
            run("brownian_motion", {**motion, "start": start}, tmp_path / "brownian_motion-4")


class Tilted:
    """A loss of a user's, with nothing but the two methods."""

    def __init__(self, tilt):
        self.tilt = tilt

    def value(self, x):
        return (losses.as_dense(x) * self.tilt).sum((-2, -1)) + x.square().sum((-2, -1))

    def gradient(self, x):
        return self.tilt.expand_as(x) + 2 * x


def holed(x, **options):
    rows, cols = torch.arange(3), torch.arange(3)
    return losses.Completion(rows, cols, x.diagonal()[:3], (4, 3), **options)


PAIRS = {
    "quadratic": losses.Quadratic,
    "completion": holed,
    "sensing": lambda x: losses.Sensing(torch.ones(1, 4, 3, dtype=F64), x[0, :1]),
    "regression": lambda x: losses.Regression(torch.eye(3, dtype=F64), x.mT),
    "callable": lambda x: losses.from_callable(lambda z: (z - x).square().sum()),
    "named": lambda x: losses.from_callable(torch.sum, name=str(float(x.sum()))),
    "user": Tilted,
    "free energy": lambda x: dln.FreeEnergy(losses.Quadratic(x), 3.0, 3, (4, 3)),
    "free energy of a user's": lambda x: dln.FreeEnergy(Tilted(x), 3.0, 3, (4, 3)),
}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("scale", [1.0, 1e-8])
@pytest.mark.parametrize("change", [-1.0, 1.0 + 1e-12])
def test_losses_are_known_by_their_data(kind, scale, change, tmp_path):
    start, store = dln.EndToEnd.of(scale * target(9), 3), tmp_path / "run"
    options = {"start": start, "t_end": 1e-3, "rtol": 1e-3}
    dln.gradient_flow(PAIRS[kind](target()), store=store, **options)
    dln.gradient_flow(PAIRS[kind](target()), store=store, **options)
    with pytest.raises(ValueError, match="with other loss"):
        dln.gradient_flow(PAIRS[kind](change * target()), store=store, **options)


def test_a_rule_on_the_gradient_is_part_of_the_run(tmp_path):
    options = {**RUNS["gradient_flow"][0], "start": point(depth=4), "store": tmp_path / "run"}
    dln.gradient_flow(**options, until={"loss": 1.0})
    dln.gradient_flow(**options, until={"loss": 0.5})
    with pytest.raises(ValueError, match="other .*until"):
        dln.gradient_flow(**options, until={"gradient": 1e-3})


def test_numpy_numbers_and_integers_are_one_option(tmp_path):
    options = {**RUNS["gradient_flow"][0], "save_at": [0, 0.1], "atol": 1}
    run("gradient_flow", options, tmp_path / "state")
    same = {**options, "save_at": np.array([0.0, 0.1]), "atol": np.float64(1.0)}
    run("gradient_flow", same, tmp_path / "state")
