"""How runs end: stop rules, limits of work and time, blow-up and NaN."""

from __future__ import annotations

import math
import time

import pytest
import torch

from dln_geometry.ode import (
    IntegrationError,
    integrate,
)
from dln_geometry.testing import assert_close
from tests.ode.routes import (
    Decay,
    relative_error,
)


def test_stop_rules_freeze_their_samples():
    rates = torch.tensor([[1.0], [5.0], [0.01]], dtype=torch.float64)
    y0 = torch.ones(3, 1, dtype=torch.float64)
    times = torch.linspace(0, 4, 9, dtype=torch.float64)
    run = integrate(Decay(rates), y0, t_end=4.0, save_at=times, stop={"speed": (0, 0.1)}, rtol=1e-6)
    assert run.status == ["speed", "speed", "speed"]
    # The third one starts below the threshold.
    assert run.t_final[2] == 0.0
    assert torch.equal(run.y[2], y0[2])
    for i in range(2):
        stop = float(run.t_final[i])
        exact = math.log(float(rates[i]) / 0.1) / float(rates[i])
        assert exact <= stop < 4.0
        assert relative_error(run.y[i], torch.exp(-rates[i] * stop)) < 1e-5
        late = times > stop
        assert late.any()
        assert torch.equal(run.saved["y"][late][:, i], run.y[i].expand(int(late.sum()), 1))
        assert (
            relative_error(run.saved["y"][~late][:, i, 0], torch.exp(-rates[i] * times[~late]))
            < 1e-5
        )


def test_stop_rule_of_a_single_sample_ends_its_rows():
    one = torch.ones(1, 1, dtype=torch.float64)
    run = integrate(Decay(one), one, t_end=math.inf, save_at=[0.0, 1.0, 50.0], stop={"s": (0, 0.1)})
    assert run.status == ["s"]
    assert run.t[:2].tolist() == [0.0, 1.0]
    assert len(run.t) == 3
    assert run.t[2] == run.t_final[0] < 50
    assert torch.equal(run.saved["y"][-1], run.y)


def test_limits_stop_with_their_names():
    one = torch.ones(2, 1, dtype=torch.float64)
    run = integrate(Decay(one), one, t_end=math.inf, max_steps=7)
    assert run.status == ["steps", "steps"]
    assert run.stats["steps"] + run.stats["rejected"] >= 7
    assert run.t[1] == run.t_final.max()
    assert integrate(Decay(one), one, t_end=1.0, max_seconds=0.0).status == ["seconds", "seconds"]


def test_a_limit_of_time_ends_a_trial_between_two_evaluations():
    one, counted = torch.ones(1, 1, dtype=torch.float64), []

    def slow(t, y, out):
        counted.append(time.sleep(0.02 if len(counted) > 20 else 0.0))
        torch.neg(y, out=out)

    run = integrate(slow, one, t_end=math.inf, max_seconds=0.05, method="rk8")
    assert run.status == ["seconds"]
    # A trial takes 13 evaluations; of these at most three fit into the time, and one is begun.
    assert len(counted) <= 25
    assert_close(run.y, torch.exp(-run.t_final)[:, None], ops=1e9)


def test_loose_tolerances_ask_for_no_endless_trial():
    """Stages are bounded: a trial of millions would outlast the limits of time and evaluations."""
    rates = torch.tensor([[1e-9, 1.0, 1e9]], dtype=torch.float64)
    options = {"t_end": math.inf, "rtol": 1.0, "method": "rkc"}
    run = integrate(Decay(rates), torch.ones_like(rates), **options, max_evaluations=3000)
    assert run.status == ["evaluations"]
    assert run.stats["evaluations"] < 3000 + 10_100


@pytest.mark.parametrize("method", ["rk5", "rk8", "rkc", "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blow_up_raises_with_the_solution_so_far(method, dtype):
    def square(t, y, out):
        torch.mul(y, y, out=out)

    y0 = torch.tensor([[1.0], [0.25]], dtype=dtype)
    with pytest.raises(IntegrationError, match="in sample 0, where the state has norm") as caught:
        integrate(square, y0, t_end=2.0, rtol=1e-4, method=method, save_at=[0.5, 0.9, 1.5])
    solution = caught.value.solution
    assert isinstance(caught.value, ValueError)
    assert solution.status[0] == "failed"
    assert solution.status[1] in ("t_end", "unfinished")
    assert 0.95 < float(solution.t_final[0]) < 1.05
    assert relative_error(solution.saved["y"][:2, 0, 0], [2.0, 10.0]) < 2e-2
    with pytest.raises(IntegrationError) as caught:
        integrate(square, y0[:1], t_end=2.0, rtol=1e-4, method=method)
    assert caught.value.solution.t[-1] > 0.95
    assert caught.value.solution.saved["y"].shape[0] == len(caught.value.solution.t)


@pytest.mark.parametrize("method", ["rk5", "rkc"])
def test_a_field_that_turns_nan_raises(method):
    def wall(t, y, out):
        out.copy_(torch.where(y < 1.0, 1.0, math.nan))

    y0 = torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(IntegrationError) as caught:
        integrate(wall, y0, t_end=2.0, rtol=1e-6, method=method)
    assert_close(caught.value.solution.t_final, [1.0], ops=1000)
    with pytest.raises(ValueError, match="field must be finite at the start"):
        integrate(wall, y0 + 2, t_end=2.0)
    with pytest.raises(ValueError, match="y0 must be finite at the start"):
        integrate(wall, y0 + math.nan, t_end=2.0)
