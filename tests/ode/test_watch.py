"""Runs of autonomous fields that get no further end, with the reason."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dln_geometry.ode import integrate

F64 = torch.float64


def pull(t, y, out):
    """Pull with unit force to the first plane, and drift along it: the field jumps there."""
    out.copy_(torch.cat((-y[:, :1].sign(), torch.ones_like(y[:, 1:])), dim=1))
    return y[:, :1].abs() + 1.0


@pytest.mark.parametrize("method", ["auto", "rk3", "rk5", "rkc"])
@pytest.mark.parametrize("t_end", [3.0, math.inf])
def test_sliding_along_a_jump_is_noticed(method, t_end):
    y0 = torch.tensor([[0.53, 0.1], [0.31, 0.7]], dtype=F64)
    rules = {} if math.isfinite(t_end) else {"stop": {"never": (0, 0.5)}}
    path = integrate(pull, y0, t_end=t_end, method=method, autonomous=True, **rules)
    assert path.status == ["nonsmooth"] * 2
    np.testing.assert_allclose(path.t_final, y0[:, 0], rtol=1e-2)
    assert path.stats["evaluations"] < 6000


def test_a_jump_that_is_crossed_or_can_be_followed_is_no_obstacle():
    def crossing(t, y, out):
        out.copy_(torch.where(y > 0.5, 0.3, 1.0))
        return y

    y0 = torch.tensor([[0.1]], dtype=F64)
    path = integrate(crossing, y0, t_end=2.0, autonomous=True)
    assert path.status == ["t_end"]
    np.testing.assert_allclose(path.y, 0.5 + 0.3 * 1.6, rtol=1e-7)
    loose = integrate(
        pull, torch.tensor([[0.53, 0.1]], dtype=F64), t_end=1.0, rtol=1e-2, autonomous=True
    )
    assert loose.status == ["t_end"]


@pytest.mark.parametrize("method", ["auto", "rk3", "rk8"])
def test_stiff_smooth_fields_are_not_taken_for_jumps(method):
    rates = torch.tensor([1.0, 3e3], dtype=F64)

    def decay(t, y, out):
        torch.mul(y.sin(), -rates, out=out)
        return y[:, :1]

    y0 = torch.tensor([[1.0, 1.0]], dtype=F64)
    path = integrate(decay, y0, t_end=0.3, method=method, autonomous=True)
    assert path.status == ["t_end"]


def test_samples_at_rest_have_all_their_rows_at_once():
    def decay(t, y, out):
        torch.neg(y, out=out)
        return y.abs()

    y0 = torch.tensor([[0.0], [2.0]], dtype=F64)
    at = [0.0, 0.5, 1.0]
    path = integrate(decay, y0, t_end=1.0, save_at=at, autonomous=True)
    assert path.status == ["stationary", "t_end"]
    assert path.start.tolist() == [[True, False], [False, False]]
    np.testing.assert_allclose(path.saved["y"][:, 1, 0], 2 * np.exp(-np.array(at)), rtol=1e-7)
    one = integrate(decay, y0[:1], t_end=1.0, save_at=at, autonomous=True)
    assert one.stats["evaluations"] == 1
    assert one.saved["y"].flatten().tolist() == [0.0] * 3
    every = integrate(decay, y0[:1], t_end=1.0, autonomous=True)
    assert every.t.tolist() == [0.0, 1.0]
    rules = {"below": (0, -1.0)}
    endless = integrate(decay, y0[:1], t_end=math.inf, stop=rules, autonomous=True)
    assert (endless.status, endless.t.tolist()) == (["stationary"], [0.0])
    driven = integrate(decay, y0[:1], t_end=1.0, save_at=at)
    assert driven.status == ["t_end"]


def test_a_rule_below_rounding_stalls_and_a_start_of_rounding_is_marked():
    root = math.sqrt(2.0)

    def towards(t, y, out):
        out.copy_(2.0 - y * y)
        return out.abs()

    y0 = torch.tensor([[1.0], [1.3]], dtype=torch.float32)
    path = integrate(towards, y0, t_end=math.inf, stop={"slow": (0, 1e-12)}, autonomous=True)
    assert path.status == ["stalled"] * 2
    np.testing.assert_allclose(path.y, root, rtol=1e-6)
    assert path.stats["evaluations"] < 10_000
    start = torch.tensor([[root], [1.3]], dtype=F64)
    assert integrate(towards, start, t_end=0.1, autonomous=True).start[1].tolist() == [True, False]


def test_the_watch_continues_from_a_stored_state():
    y0 = torch.tensor([[0.53, 0.1]], dtype=F64)
    whole = integrate(pull, y0, t_end=3.0, autonomous=True)
    states = []
    integrate(pull, y0, t_end=3.0, autonomous=True, max_steps=100, checkpoint=states.append)
    again = integrate(pull, y0, t_end=3.0, autonomous=True, resume=states[-1])
    assert again.status == whole.status == ["nonsmooth"]
    assert again.t_final == whole.t_final


def test_the_default_bound_holds_with_an_end_too():
    def turn(t, y, out):
        out.copy_(torch.stack((-y[:, 1], y[:, 0]), dim=1))

    y0 = torch.tensor([[1.0, 0.0]], dtype=F64)
    bound = {"t_end": 1e9, "method": "rk3", "rtol": 1e-4}
    assert integrate(turn, y0, max_evaluations=300, **bound).status == ["evaluations"]
