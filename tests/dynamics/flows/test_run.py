"""How runs begin, end, are watched and continued."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.ode import IntegrationError, integrate
from tests.dynamics.flows.routes import F64, quadratic, relative, start


def test_stopping_rules(generator):
    loss, point = quadratic(generator), start(generator, 3)
    path = dln.gradient_flow(loss, point, until={"loss": 1e-9})
    assert path.status == "loss"
    assert float(path.loss[-1]) <= 1e-9 < float(path.loss[-2])
    assert dln.gradient_flow(loss, point, t_end=50.0, until={"steps": 7}).status == "steps"
    assert dln.gradient_flow(loss, point, t_end=1e9, until={"seconds": 0.0}).status == "seconds"
    assert dln.gradient_flow(loss, point, t_end=0.0).status == "t_end"


def test_store_resumes_to_the_same_bits(generator, tmp_path):
    loss, point = quadratic(generator), start(generator, 3)
    whole = dln.gradient_flow(loss, point, t_end=1.0)

    class Killed:
        shape = loss.shape
        calls = 0

        def value(self, x):
            return loss.value(x)

        def gradient(self, x):
            self.calls += 1
            if self.calls == 120:
                raise KeyboardInterrupt
            return loss.gradient(x)

    path = tmp_path / "run.store"

    class Plain(Killed):
        calls = 10**6

    reference = dln.gradient_flow(Plain(), point, t_end=1.0)
    with pytest.raises(KeyboardInterrupt):
        dln.gradient_flow(Killed(), point, t_end=1.0, store=path)
    Killed.gradient = Plain.gradient
    Killed.calls = 10**6
    resumed = dln.gradient_flow(Killed(), point, t_end=1.0, store=path)
    assert torch.equal(resumed.final.L, reference.final.L)
    assert torch.equal(resumed.loss, reference.loss)
    assert relative(resumed.final.matrix, whole.final.matrix) < 1e-8
    with pytest.raises(ValueError, match="store must belong to the same run"):
        dln.gradient_flow(Killed(), point, t_end=1.0, rtol=1e-5, store=path)
    Killed.value = lambda self, x: loss.value(x) + 1.0
    with pytest.raises(ValueError, match="with other loss"):
        dln.gradient_flow(Killed(), point, t_end=1.0, store=path)
    (path / "checkpoint" / "state").write_text("nothing")
    with pytest.raises(ValueError, match="store must be a folder written by a run"):
        dln.gradient_flow(Killed(), point, t_end=1.0, store=path)


def test_blow_up_carries_the_trajectory(generator):
    repelling = losses.from_callable(lambda x: -(x.square().sum() ** 2))
    point = start(generator, 2)
    with pytest.raises(dln.FlowError, match="step size must stay above") as caught:
        dln.gradient_flow(repelling, point, t_end=10.0)
    path = caught.value.trajectory
    assert len(path) > 3
    assert bool(torch.isfinite(path.loss).all())
    huge = dln.Collapsed(1e200 * point.L, 1e200 * point.R, 2.0)
    with pytest.raises(ValueError, match="finite at the start"):
        dln.gradient_flow(quadratic(generator), huge, t_end=1.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "t_end or until must be given"),
        ({"t_end": -1.0}, ValueError, "t_end must be >= 0"),
        ({"t_end": math.nan}, ValueError, "t_end must be >= 0"),
        ({"t_end": "1"}, TypeError, "t_end must be a real number"),
        ({"t_end": math.inf}, ValueError, "until must be given"),
        ({"until": {"los": 1.0}}, ValueError, "until must hold rules among"),
        ({"until": {"loss": -1.0}}, ValueError, "until"),
        ({"until": {"loss": math.nan}}, ValueError, "until"),
        ({"t_end": 1.0, "save_at": [0.5, 0.2]}, ValueError, "save_at"),
        ({"t_end": 1.0, "save_at": [2.0]}, ValueError, "save_at"),
        ({"t_end": 1.0, "engine": "fast"}, ValueError, "engine must be one of"),
        ({"t_end": 1.0, "method": "euler"}, ValueError, "method must be one of"),
        ({"t_end": 1.0, "rtol": 0.0}, ValueError, "rtol"),
        ({"t_end": 1.0, "rebalance": 0.0}, ValueError, "rebalance must be positive"),
    ],
)
def test_bad_options(options, error, message, generator):
    with pytest.raises(error, match=message):
        dln.gradient_flow(quadratic(generator), start(generator, 3), **options)


def test_a_stored_run_can_be_continued_further(generator, tmp_path):
    loss, point = quadratic(generator), start(generator, 3)
    store = tmp_path / "run.store"
    first = dln.gradient_flow(loss, point, t_end=1.0, until={"steps": 5}, store=store)
    assert first.status == "steps"
    assert dln.gradient_flow(loss, point, t_end=0.5, store=store).status == "t_end"
    further = dln.gradient_flow(loss, point, t_end=1.0, store=store)
    assert float(further.t[-1]) == 1.0
    whole = dln.gradient_flow(loss, point, t_end=1.0)
    assert relative(further.final.matrix, whole.final.matrix) < 1e-7


def test_progress_reports(generator, capsys):
    loss, point = quadratic(generator), start(generator, 3)
    seen = []
    dln.gradient_flow(
        loss, point, t_end=1.0, progress=lambda fraction, info: seen.append((fraction, info["t"]))
    )
    assert seen[-1] == (1.0, 1.0)
    dln.gradient_flow(loss, point, t_end=1.0, progress=True)
    assert "loss" in capsys.readouterr().out


def test_a_rule_that_is_never_met_ends(generator):
    """The loss tends to 1 > 1e-8 while X tends to 0."""
    loss = losses.Quadratic(-torch.eye(2, dtype=F64))
    path = dln.gradient_flow(
        loss,
        dln.EndToEnd.of(torch.eye(2, dtype=F64), 2),
        until={"loss": 1e-8, "evaluations": 3000},
    )
    assert path.status == "evaluations"
    assert 3000 <= path.stats["evaluations"] < 10_000


def test_a_store_never_mixes_two_grids_or_rules(generator, tmp_path):
    loss = quadratic(generator)
    batch = dln.Collapsed.random(
        (6, 5), 3, 3, scale=0.3, batch=(3,), generator=generator, dtype=F64
    )
    dln.gradient_flow(loss, batch, t_end=1.0, store=tmp_path / "batch")
    with pytest.raises(ValueError, match="other save_at"):
        dln.gradient_flow(loss, batch, t_end=2.0, store=tmp_path / "batch")
    point, store = start(generator, 3), tmp_path / "single"
    first = dln.gradient_flow(loss, point, until={"loss": 1.0}, store=store)
    again = dln.gradient_flow(loss, point, until={"loss": 1.0}, store=store)
    assert torch.equal(first.loss, again.loss)
    tighter = dln.gradient_flow(loss, point, until={"loss": 1e-3}, store=store)
    assert (first.status, tighter.status) == ("loss", "loss")
    assert float(tighter.loss[-1]) <= 1e-3 < float(first.loss[-1])
    with pytest.raises(ValueError, match="t_end must not lie before"):
        dln.gradient_flow(loss, point, t_end=1e-3, store=store)


def test_no_time_and_no_samples(generator):
    loss = quadratic(generator)
    batch = dln.Collapsed.random(
        (6, 5), 3, 3, scale=0.3, batch=(2,), generator=generator, dtype=F64
    )
    assert dln.gradient_flow(loss, batch, t_end=0).status == ["t_end"] * 2
    empty = dln.Collapsed(batch.L[:0], batch.R[:0], 3)
    with pytest.raises(ValueError, match="at least one sample"):
        dln.gradient_flow(loss, empty, t_end=1.0)


def test_a_loss_that_ceases_to_be_a_number_is_not_recorded(generator):
    """Its gradient stays finite: nothing but the value tells."""
    y = torch.randn(6, 5, generator=generator, dtype=F64)

    class Broken(losses.Quadratic):
        def contract(self, left, right):
            value, *rest = super().contract(left, right)
            return torch.where(value < 1.0, torch.nan, value), *rest

    with pytest.raises(dln.FlowError, match="step size must stay above") as caught:
        dln.gradient_flow(Broken(y), start(generator, 2), t_end=50.0)
    path = caught.value.trajectory
    assert len(path) > 3
    assert float(path.loss.min()) >= 1.0


def test_progress_is_told_the_largest_loss(generator):
    batch = dln.Collapsed.random(
        (6, 5), 3, 3, scale=0.3, batch=(2,), generator=generator, dtype=F64
    )
    seen = []
    path = dln.gradient_flow(
        quadratic(generator), batch, t_end=1.0, progress=lambda _, info: seen.append(info["loss"])
    )
    assert seen[-1] == float(path.loss[-1].max())
    dln.kirwan_ness_flow(batch.factors(), 1.0, progress=lambda _, info: seen.append(info["loss"]))
    assert seen[-1] < 1e-20


def test_saved_times_come_as_numbers_or_arrays(generator):
    loss, point = quadratic(generator), start(generator, 3)
    for times in ([0, 0.5, 1], (0.0, 0.5, 1.0), torch.tensor([0.0, 0.5, 1.0]), 3):
        assert dln.gradient_flow(loss, point, t_end=1.0, save_at=times).t.tolist() == [0, 0.5, 1]
    for flow in (
        lambda at: dln.gradient_flow(loss, point, t_end=1.0, save_at=at),
        lambda at: dln.kirwan_ness_flow(point.factors(), 1.0, save_at=at),
    ):
        with pytest.raises(TypeError, match="save_at must be a real array or tensor, got str"):
            flow("soon")
        with pytest.raises(ValueError, match="save_at must be at least 2, got 1"):
            flow(1)


def test_a_run_of_no_time_is_its_start(generator):
    batch = dln.Collapsed.random((6, 5), 3, 3, batch=(2,), generator=generator, dtype=F64)
    for path in (
        dln.gradient_flow(quadratic(generator), batch, t_end=0.0),
        dln.kirwan_ness_flow(batch.factors(), 0.0),
    ):
        assert path.t.tolist() == [0.0]
        assert path.loss.shape == (1, 2)


def test_every_flow_tells_how_far_it_came(generator, monkeypatch):
    def failing(*args, **options):
        raise IntegrationError("step size must stay above", integrate(*args, **options))

    layers = start(generator, 3).factors()
    whole = dln.kirwan_ness_flow(layers, 1.0)
    monkeypatch.setattr("dln_geometry.dynamics.flows.run.integrate", failing)
    with pytest.raises(dln.FlowError, match="step size must stay above") as caught:
        dln.kirwan_ness_flow(layers, 1.0)
    assert torch.equal(caught.value.trajectory.loss, whole.loss)


@pytest.mark.parametrize(("balanced", "rebalance"), [(True, None), (True, 1e-13), (False, None)])
def test_runs_from_factors_continue_and_are_rebalanced(balanced, rebalance, tmp_path, generator):
    layers = dln.random_balanced((3, 5, 4, 3), rank=2, generator=generator, dtype=torch.float64)
    if not balanced:
        layers = (2.0 * layers[0], *layers[1:])
    loss = dln.losses.Quadratic(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    options = {"t_end": 0.8, "save_at": [0.0, 0.4, 0.8], "rtol": 1e-6, "rebalance": rebalance}
    whole = dln.gradient_flow(loss, layers, **options)
    store = tmp_path / "run"
    calls = []

    def told(fraction, info):
        calls.append(fraction)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dln.gradient_flow(loss, layers, progress=told, store=store, **options)
    assert store.exists()
    again = dln.gradient_flow(loss, layers, store=store, **options)
    assert type(again.final) is dln.Network
    for a, b in zip(whole.final, again.final, strict=True):
        assert torch.equal(a, b)
    if rebalance is not None:
        assert float(whole.defect.max()) < 1e-12
        exact = dln.gradient_flow(loss, layers, **{**options, "rebalance": None, "rtol": 1e-11})
        for a, b in zip(whole.final, exact.final, strict=True):
            assert float((a - b).abs().max()) < 1e-4
