from __future__ import annotations

import math
import pkgutil

import pytest
import torch

from dln_geometry.ode import (
    fetch,
    integrate,
)
from dln_geometry.testing import assert_close
from tests.ode.routes import (
    START,
    Chain,
    interrupted,
    pendulum,
    pendulum_exact,
    relative_error,
    rotation,
    rough_start,
)


def test_corrections_are_applied_and_counted():
    """A rotation integrated coarsely, pulled back to the circle when it has left it."""

    y0 = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    calls = []

    def fix(y):
        calls.append(len(y))
        return y / y.norm(dim=1, keepdim=True)

    run = integrate(
        rotation,
        y0,
        t_end=30.0,
        rtol=1e-3,
        method="rk5",
        correct=(lambda obs: obs[:, 0] > 1e-4, fix),
    )
    assert float((run.y.norm(dim=1) - 1).abs().max()) <= 1e-4
    assert run.stats["corrections"] == sum(calls) > 0
    assert run.obs is not None
    assert_close(run.obs[:, 0], (run.y.norm(dim=1) - 1).abs(), scale=1.0, ops=10)


@pytest.mark.parametrize(
    ("method", "dtype", "save_at"),
    [
        ("auto", torch.float64, [0.0, 0.02, 0.3, 1.0]),
        ("auto", torch.float32, None),
        ("rk8", torch.float64, None),
        ("rkc", torch.float64, [0.1, 0.2]),
    ],
)
@pytest.mark.parametrize("after", [30, 107, 230])
def test_resumed_run_equals_the_uninterrupted_one_to_the_bit(
    method, dtype, save_at, after, tmp_path
):
    n = 40
    field, y0 = Chain(n, 0.05), rough_start(n, batch=1 if save_at is None else 2).to(dtype)
    kwargs = {"t_end": 1.0, "rtol": 1e-5, "method": method, "save_at": save_at}
    whole = integrate(field, y0, **kwargs)
    assert whole.stats["evaluations"] > after
    states = []
    with pytest.raises(KeyboardInterrupt):
        integrate(interrupted(field, after), y0, checkpoint=states.append, **kwargs)
    torch.save(states[-1], tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt")
    resumed = integrate(field, y0, resume=state, **kwargs)
    assert torch.equal(resumed.y, whole.y)
    assert torch.equal(resumed.t, whole.t)
    assert torch.equal(resumed.saved["y"], whole.saved["y"])
    assert resumed.status == whole.status
    for name in ("evaluations", "steps", "rejected", "switches", "by_method"):
        assert resumed.stats[name] == whole.stats[name]
    with pytest.raises(ValueError, match="resume must match y0"):
        integrate(field, y0[:, 1:], resume=state, **kwargs)
    with pytest.raises(ValueError, match="resume must be given with the method"):
        integrate(field, y0, resume=state, **{**kwargs, "method": "rk3"})


@pytest.mark.parametrize("after", range(40, 49))
def test_resumed_run_with_corrections_equals_the_uninterrupted_one(after):
    """Over more than one step, so that one interrupt falls into a corrected evaluation."""
    kwargs = {
        "t_end": 8.0,
        "rtol": 1e-3,
        "method": "rk5",
        "correct": (lambda obs: obs[:, 0] > 1e-5, lambda y: y / y.norm(dim=1, keepdim=True)),
    }
    y0 = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    whole = integrate(rotation, y0, **kwargs)
    assert whole.stats["corrections"] > 5
    states = []
    with pytest.raises(KeyboardInterrupt):
        integrate(interrupted(rotation, after), y0, checkpoint=states.append, **kwargs)
    resumed = integrate(rotation, y0, resume=states[-1], **kwargs)
    assert torch.equal(resumed.saved["y"], whole.saved["y"])
    assert resumed.stats["evaluations"] == whole.stats["evaluations"]
    assert resumed.stats["corrections"] == whole.stats["corrections"]


def test_a_finished_run_can_be_extended():
    states = []
    short = integrate(pendulum, START, t_end=2.0, checkpoint=states.append, checkpoint_every=0.0)
    assert len(states) > 3
    longer = integrate(pendulum, START, t_end=5.0, resume=states[-1])
    assert longer.t_final[0] == 5.0
    assert torch.equal(longer.t[: len(short.t)], short.t)
    assert relative_error(longer.y[0], pendulum_exact(5.0)) < 1e-6


def test_one_wait_for_the_device_per_step(monkeypatch):
    waits = 0

    def counted(pieces):
        nonlocal waits
        waits += 1
        return fetch(pieces)

    monkeypatch.setattr("dln_geometry.ode.methods.norms.fetch", counted)
    n = 60
    for method in ("rk5", "rk8", "auto"):
        waits = 0
        run = integrate(
            Chain(n, 0.05),
            rough_start(n, 2),
            t_end=1.0,
            rtol=1e-5,
            method=method,
            save_at=[0.0, 0.5],
            max_steps=100,
        )
        # Two for the start; a trial all of whose samples are rejected is a step, too.
        assert waits <= run.stats["steps"] + run.stats["rejected"] + 2


def test_progress_and_gradients_are_left_alone():
    calls = []
    y0 = START.clone().requires_grad_()
    run = integrate(
        pendulum,
        y0,
        t_end=math.inf,
        stop={"z": (1, -1e9)},
        max_steps=30,
        progress=lambda fraction, info: calls.append((fraction, info)),
    )
    assert not run.y.requires_grad
    assert torch.is_grad_enabled()
    assert 1 <= len(calls) <= 5
    assert all(0 <= fraction <= 1 for fraction, _ in calls)
    assert {"t", "h", "steps", "evaluations", "method", "obs"} <= calls[-1][1].keys()
    calls.clear()
    integrate(pendulum, y0, t_end=1.0, progress=lambda fraction, _: calls.append(fraction))
    assert calls[-1] == 1.0


@pytest.mark.parametrize("save_at", [None, [0.0, 0.2, 1.0]])
def test_stored_rows_move_to_the_device_of_the_start(save_at, monkeypatch):
    """A device without memory stands for another one: everything that is loaded must be moved."""
    y0, states, moved = torch.ones(1, 2, dtype=torch.float64), [], []
    field = Chain(2, 0.05)
    integrate(field, y0, t_end=0.5, checkpoint=states.append, save_at=save_at and [0.0, 0.2, 0.5])
    place = "dln_geometry.ode.recording.Recorder.load"
    load = pkgutil.resolve_name("dln_geometry.ode.recording:Recorder.load")

    def watched(recorder, state, device):
        assert device == y0.device
        load(recorder, state, torch.device("meta"))
        moved.extend(x.device.type for rows in recorder._rows.values() for x in rows)
        moved.extend(x.device.type for x in recorder._saved.values())
        load(recorder, state, device)

    monkeypatch.setattr(place, watched)
    integrate(field, y0, t_end=0.5, resume=states[-1], save_at=save_at and [0.0, 0.2, 0.5])
    assert moved
    assert set(moved) == {"meta"}


def test_a_first_trial_that_overflows_is_made_again_shorter():
    """Without an end: whether samples rest is asked after every trial, this one at time 0 too."""

    def write(t, y, out):
        out.copy_(torch.where(y < 1.5, 1.0, math.inf))

    start = torch.tensor([[1.4999]], dtype=torch.float64)
    run = integrate(write, start, t_end=math.inf, max_evaluations=40, method="rk5")
    assert run.stats["rejected"] > 0
    assert 1.4999 < float(run.y) < 1.5
