from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dln_geometry.ode import (
    Chebyshev,
    integrate,
)
from dln_geometry.testing import assert_close
from tests.ode.routes import (
    START,
    Decay,
    pendulum,
    pendulum_exact,
    pendulum_numpy,
    relative_error,
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["rk3", "rk5", "rk8", "rkc", "auto"])
def test_tolerance_is_met_on_a_nonstiff_problem(method, dtype):
    exact = pendulum_exact(10.0)
    errors = []
    for rtol in (1e-3, 1e-4, 1e-5):
        run = integrate(
            pendulum, START.to(dtype), t_end=10.0, rtol=rtol, method=method, blocks=[2, 1]
        )
        assert run.y.dtype == run.t.dtype == dtype
        errors.append(relative_error(run.y[0], exact))
        # Second and third order accumulate more steps of an error near the tolerance.
        assert errors[-1] <= (300 if method in ("rkc", "rk3") else 50) * rtol
    assert errors[2] < errors[0]


def test_tight_tolerance_agrees_with_scipy_at_every_save_time():
    times = np.linspace(0.5, 10, 20)
    run = integrate(pendulum, START, t_end=10.0, rtol=1e-11, save_at=times)
    reference = solve_ivp(
        pendulum_numpy, (0, 10), START[0].numpy(), "DOP853", times, rtol=1e-13, atol=1e-14
    )
    assert run.saved["y"].shape == (20, 1, 3)
    assert relative_error(run.saved["y"][:, 0], reference.y.T) < 1e-9
    assert run.stats["by_method"].keys() == {"rk8"}


@pytest.mark.parametrize("method", ["rk5", "rk8", "rkc"])
def test_samples_of_a_batch_step_as_if_alone(method):
    # Time scales a thousand apart.
    speed = torch.tensor([[1.0], [30.0], [1000.0]], dtype=torch.float64)
    start = torch.tensor([[1.2, -0.4], [0.3, 0.9], [-1.0, 0.5]], dtype=torch.float64)

    def field(v):
        def write(t, y, out):
            out[:, :1] = v * y[:, 1:]
            out[:, 1:] = -v * (torch.sin(y[:, :1]) + 0.2 * y[:, 1:])
            return (y * y).sum(1, keepdim=True)

        return write

    rtol = 1e-4 if method == "rkc" else 1e-6
    kwargs = {"t_end": 0.5, "rtol": rtol, "method": method, "save_at": [0.0, 0.1, 0.37]}
    together = integrate(field(speed), start, **kwargs)
    assert together.saved["y"].shape == (3, 3, 2)
    trials = []
    for i in range(3):
        alone = integrate(field(speed[i : i + 1]), start[i : i + 1], **kwargs)
        trials.append(alone.stats["steps"] + alone.stats["rejected"])
        if method == "rkc":
            # Its stages are those of the stiffest sample, hence only the accuracy is the same.
            assert relative_error(together.saved["y"][:, i], alone.saved["y"][:, 0]) < 300 * rtol
        else:
            assert_close(together.y[i], alone.y[0], ops=1000)
            assert_close(together.saved["y"][:, i], alone.saved["y"][:, 0], ops=1000)
    # The slow samples do not wait for the fast one, nor the reverse.
    if method != "rkc":
        assert together.stats["steps"] <= max(trials)
    assert 5 * min(trials) < max(trials)


def test_error_norm_is_invariant_under_rotation_of_a_block(generator):
    n = 6
    a = torch.randn(n, n, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    y0 = torch.randn(1, n, generator=generator, dtype=torch.float64)

    def straight(t, y, out):
        out.copy_(torch.tanh(y @ a.T @ a) @ -a.T)

    def turned(t, y, out):
        out.copy_(torch.tanh(y @ rotation @ a.T @ a) @ -a.T @ rotation.T)

    plain = integrate(straight, y0, t_end=2.0, rtol=1e-6)
    other = integrate(turned, y0 @ rotation.T, t_end=2.0, rtol=1e-6)
    assert plain.stats["steps"] == other.stats["steps"]
    assert_close(other.y, plain.y @ rotation.T, ops=1000)


def test_a_small_block_is_resolved_beside_a_large_one():
    rates = torch.tensor([[0.1, 3.0]], dtype=torch.float64)
    y0 = torch.tensor([[1e6, 1e-3]], dtype=torch.float64)
    exact = y0 * torch.exp(-rates)
    fine = integrate(Decay(rates), y0, t_end=1.0, rtol=1e-6, atol=0.0, blocks=[1, 1])
    assert relative_error(fine.y[0, 1:], exact[0, 1:]) < 1e-5
    coarse = integrate(Decay(rates), y0, t_end=1.0, rtol=1e-6)
    assert coarse.stats["steps"] < fine.stats["steps"]


def test_absolute_tolerance_per_sample():
    rates = torch.ones(2, 1, dtype=torch.float64)
    y0 = torch.ones(2, 1, dtype=torch.float64)
    atol = torch.tensor([1e-2, 1e-9])
    run = integrate(Decay(rates), y0, t_end=3.0, rtol=1e-9, atol=atol)
    errors = (run.y - torch.exp(-3 * rates)).abs().flatten()
    assert errors[0] > 10 * errors[1]
    assert errors[1] < 1e-7


def test_a_start_at_zero_and_a_start_at_rest():
    ones = torch.ones(1, 2, dtype=torch.float64)
    from_zero = integrate(Decay(ones, target=2.0), 0 * ones, t_end=1.0)
    assert relative_error(from_zero.y, 2 * (1 - math.exp(-1.0)) * ones) < 1e-6
    at_rest = integrate(Decay(ones, target=1.0), ones, t_end=100.0)
    assert torch.equal(at_rest.y, ones)
    assert at_rest.stats["steps"] < 20
    none = integrate(Decay(ones), ones, t_end=0.0)
    assert none.status == ["t_end"]
    assert torch.equal(none.saved["y"], ones[None])


def test_single_sample_saves_every_step_and_batch_the_ends():
    rates = torch.tensor([[1.0], [5.0]], dtype=torch.float64)
    y0 = torch.ones(2, 1, dtype=torch.float64)
    one = integrate(Decay(rates[:1]), y0[:1], t_end=2.0, rtol=1e-6)
    assert len(one.t) == one.stats["steps"] + 1
    assert (one.t.diff() > 0).all()
    assert one.t[0] == 0
    assert one.t[-1] == 2.0
    assert relative_error(one.saved["y"][:, 0, 0], torch.exp(-one.t)) < 1e-5
    two = integrate(Decay(rates), y0, t_end=2.0, rtol=1e-6)
    assert two.t.tolist() == [0.0, 2.0]
    assert torch.equal(two.saved["y"], torch.stack([y0, two.y]))


def test_save_points_are_met_exactly_and_do_not_cost_the_step_size():
    rates = torch.tensor([[1.0]], dtype=torch.float64)
    y0 = torch.ones(1, 1, dtype=torch.float64)
    plain = integrate(Decay(rates), y0, t_end=4.0, rtol=1e-6, method="rk5")
    times = torch.linspace(0, 4, 9, dtype=torch.float64)[1:]
    saved = integrate(Decay(rates), y0, t_end=4.0, rtol=1e-6, method="rk5", save_at=times)
    assert torch.equal(saved.t, times)
    assert relative_error(saved.saved["y"][:, 0, 0], torch.exp(-times)) < 1e-5
    # One more step for each of the 8 stops at most, and no time to grow back.
    assert saved.stats["steps"] <= plain.stats["steps"] + 8


def test_record_sees_states_and_observables_that_belong_together():
    seen = []

    def record(y, obs):
        seen.append(len(y))
        return {
            "check": (y[:, 0] ** 2 + y[:, 1] ** 2) - obs[:, 0],
            "outer": y[:, :, None] * y[:, None],
        }

    y0 = torch.cat([START, 0.5 * START])
    run = integrate(pendulum, y0, t_end=3.0, save_at=[0.0, 1.0, 2.5], record=record, rtol=1e-6)
    assert run.saved["outer"].shape == (3, 2, 3, 3)
    assert_close(run.saved["check"], torch.zeros(3, 2), ops=10, scale=1.0)
    assert run.obs is not None
    assert_close(run.obs[:, 0], (run.y[:, :2] ** 2).sum(1), ops=10)
    assert sum(seen) == 6


BAD = [
    ({"t_end": -1.0}, "t_end must be"),
    ({"t_end": math.nan}, "t_end must be"),
    ({"t_end": math.inf}, "t_end must be finite"),
    ({"method": "euler"}, "method must be one of"),
    ({"save_at": [0.0, 2.0, 1.0]}, "save_at must be finite and strictly increasing"),
    ({"save_at": [0.0, math.nan]}, "save_at must be finite"),
    ({"save_at": []}, "save_at must be a non-empty vector"),
    ({"save_at": [0.0, 11.0]}, r"save_at must lie in \[0, 10.0\]"),
    ({"save_at": [-1.0, 1.0]}, "save_at must lie in"),
    ({"blocks": [1, 1]}, "blocks must be positive and sum to 3"),
    ({"blocks": [4, -1]}, "blocks must be at least 1, got -1"),
    ({"rtol": 0.0}, "rtol must be positive"),
    ({"rtol": math.nan}, "rtol must be positive"),
    ({"atol": -1.0}, "atol must be finite"),
    ({"atol": torch.ones(2)}, "atol must be a number or have shape"),
    ({"stop": {"x": (5, 0.0)}}, "stop must name columns"),
    ({"stop": {"x": (-1, 0.0)}}, "stop"),
    ({"stop": {"t_end": (0, 0.0)}}, "reserved"),
    ({"max_steps": -1}, "max_steps must be"),
    ({"max_seconds": math.nan}, "max_seconds must be"),
    ({"resume": {}}, "resume must be"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments_say_what_was_required(arguments, message):
    with pytest.raises(ValueError, match=message):
        integrate(pendulum, START, **{"t_end": 10.0, "rtol": 1e-3, **arguments})


def test_bad_states():
    with pytest.raises(TypeError, match="y0 must be a floating tensor"):
        integrate(pendulum, START.long(), t_end=1.0)
    with pytest.raises(TypeError, match="y0 must be a floating tensor"):
        integrate(pendulum, [[1.0]], t_end=1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="y0 must have shape"):
        integrate(pendulum, START[0], t_end=1.0)
    with pytest.raises(ValueError, match="stages must be"):
        Chebyshev(1)


@pytest.mark.parametrize("given", [START.clone(), START.mT.contiguous().mT])
def test_the_state_takes_the_memory_of_its_start_where_that_is_allowed(given):
    before, options = given.clone(), {"t_end": 1.0, "rtol": 1e-5, "blocks": [2, 1]}
    run = integrate(pendulum, given, **options)
    assert torch.equal(given, before)
    again = integrate(pendulum, given, overwrite=True, **options)
    assert torch.equal(again.y, run.y)
    assert (again.y.data_ptr() == given.data_ptr()) == given.is_contiguous()
    with pytest.raises(TypeError, match="overwrite must be"):
        integrate(pendulum, given, overwrite=1.0, **options)
