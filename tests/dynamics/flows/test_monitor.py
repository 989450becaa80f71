"""Runs with a monitor: the best point is kept and returned, and held-out entries stop a flow."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.dynamics.flows import Validation
from dln_geometry.testing import assert_close
from tests.dynamics.flows.routes import F64

SHAPE = (30, 24)


@pytest.fixture
def problem(generator):
    """Noisy entries of a matrix of rank 2: seen ones, held-out ones, and a small start."""
    x = torch.randn(30, 2, generator=generator, dtype=F64)
    x = x @ torch.randn(2, 24, generator=generator, dtype=F64)
    x = x + 1.0 * torch.randn(SHAPE, generator=generator, dtype=F64)
    order = torch.randperm(x.numel(), generator=generator)
    rows, cols = order // 24, order % 24
    seen, held = slice(0, 400), slice(400, 520)
    loss = losses.Completion(rows[seen], cols[seen], x[rows[seen], cols[seen]], SHAPE)
    held_out = (rows[held], cols[held], x[rows[held], cols[held]])
    start = dln.Collapsed.random(SHAPE, 8, 3, scale=0.01, generator=generator, dtype=F64)
    return loss, Validation(*held_out, SHAPE), start, held_out


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 2.5, 150, math.inf])
@pytest.mark.parametrize("rtol", [1e-2, 1e-6])
def test_final_is_the_best_point_whatever_the_steps(depth, rtol, problem):
    loss, validation, start, (rows, cols, values) = problem
    start = dln.EndToEnd.of(start.matrix, depth, rank=8)
    path = dln.gradient_flow(
        loss, start, monitor=validation, patience=15, rtol=rtol, until={"evaluations": 3000}
    )
    seen = path.monitored
    assert path.status == "patience"
    error = (path.final.matrix[rows, cols] - values).square().mean().sqrt()
    assert_close(error, seen.best.to(F64), ops=1e4)
    assert float(seen.best) == float(seen.values.min()) < float(seen.values[-1])
    assert float(seen.best_t) == float(seen.t[seen.values.argmin()])
    assert len(seen.t) - 1 - int(seen.values.argmin()) == 15
    assert_close(validation(seen.last), seen.values[-1].to(F64), ops=1e4)
    # The same run without a monitor passes through the same points.
    plain = dln.gradient_flow(loss, start, rtol=rtol, t_end=float(seen.best_t))
    assert abs(float(validation(plain.final)) - float(seen.best)) < 30 * rtol * float(seen.best)


def test_held_out_values_never_move_the_flow(problem):
    """Other held-out values stop elsewhere, on one and the same path."""
    loss, validation, start, (rows, cols, values) = problem
    other = Validation(rows, cols, values.flip(0) + 5.0, SHAPE)
    options = {"t_end": 3.0, "rtol": 1e-5}
    paths = [dln.gradient_flow(loss, start, monitor=v, **options) for v in (validation, other)]
    assert torch.equal(paths[0].loss, paths[1].loss)
    assert torch.equal(paths[0].monitored.last.L, paths[1].monitored.last.L)
    assert not torch.equal(paths[0].monitored.values, paths[1].monitored.values)


def test_each_sample_of_a_batch_has_its_own_best(problem):
    loss, validation, start, _ = problem
    scales = torch.tensor([0.5, 1.0, 3.0], dtype=F64)
    batch = dln.EndToEnd.of(start.matrix * scales[:, None, None], 3, rank=8)
    path = dln.gradient_flow(loss, batch, monitor=validation, patience=10, until={"steps": 2000})
    assert path.monitored.values.shape == (len(path.monitored.t), 3)
    assert_close(validation(path.final), path.monitored.best.to(F64), ops=1e5)
    one = path.select(1)
    assert_close(validation(one.final), one.monitored.best.to(F64), ops=1e5)
    assert float(one.monitored.best) == float(path.monitored.values[:, 1].min())


def test_layers_have_a_best_point_too(problem):
    loss, validation, start, _ = problem
    path = dln.gradient_flow(
        loss, start, engine="layers", monitor=validation, patience=10, until={"steps": 2000}
    )
    assert_close(validation(path.final), path.monitored.best.to(F64), ops=1e5)


def test_any_observable_may_stop_a_run(problem):
    """A flow that stops where the second singular value is largest."""
    loss, _, start, _ = problem
    path = dln.gradient_flow(
        loss, start, monitor=lambda p: -p.singular_values[..., 1], patience=5, t_end=20.0
    )
    assert_close(-path.final.singular_values[1], path.monitored.best.to(F64), ops=1e5)


def test_a_start_may_be_the_best_point(problem):
    loss, _, start, _ = problem
    path = dln.gradient_flow(loss, start, monitor=loss_of_growth, patience=3, t_end=5.0)
    assert path.status == "patience"
    assert float(path.monitored.best_t) == 0.0
    assert_close(path.final.matrix, start.matrix, ops=1e5, scale=1.0)


def loss_of_growth(point):
    return point.singular_values[..., 0]


def test_a_killed_run_remembers_its_best(problem, tmp_path):
    loss, validation, start, _ = problem
    options = {"monitor": validation, "patience": 10, "rtol": 1e-4}
    whole = dln.gradient_flow(loss, start, until={"steps": 500}, **options)
    store = tmp_path / "run"
    best = int(whole.monitored.values.argmin())
    dln.gradient_flow(loss, start, until={"steps": best + 3}, store=store, **options)
    path = dln.gradient_flow(loss, start, until={"steps": 500}, store=store, **options)
    for name, x in whole.monitored.arrays().items():
        assert torch.equal(x, getattr(path.monitored, name))
    assert torch.equal(path.final.L, whole.final.L)


def test_monitored_runs_are_saved(problem, tmp_path):
    loss, validation, start, _ = problem
    path = dln.gradient_flow(loss, start, monitor=validation, t_end=1.0)
    back = dln.Trajectory.load(path.save(tmp_path / "run"))
    assert torch.equal(back.monitored.values, path.monitored.values)
    assert torch.equal(back.monitored.last.L, path.monitored.last.L)


@pytest.mark.parametrize(
    "wrong",
    [{"monitor": 3}, {"patience": 4}, {"monitor": loss_of_growth, "patience": 0}],
)
def test_arguments_are_checked(wrong, problem):
    loss, _, start, _ = problem
    with pytest.raises((TypeError, ValueError), match=r"monitor|patience"):
        dln.gradient_flow(loss, start, t_end=1.0, **wrong)


def test_a_monitor_returns_one_number_a_sample(problem):
    loss, _, start, _ = problem
    with pytest.raises(ValueError, match="monitor must return one number for each of 1"):
        dln.gradient_flow(loss, start, t_end=1.0, monitor=lambda p: p.singular_values)
