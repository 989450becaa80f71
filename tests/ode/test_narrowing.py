from __future__ import annotations

import pytest
import torch

from dln_geometry.ode import KnownField, integrate
from dln_geometry.testing import assert_close
from tests.ode.routes import interrupted

F64 = torch.float64
RATES = torch.logspace(-1, 1.5, 32, dtype=F64)


def known(rates, calls, after=None):
    """A decay that counts its samples, of which some can be taken apart."""

    def field(t, y, out):
        calls.append(len(y))
        torch.mul(y - t[:, None].sin(), -rates[:, None], out=out)
        return y.norm(dim=-1, keepdim=True)

    def narrowed(samples):
        return known(rates[samples], calls, after)

    def jacobian(t, y):
        return -rates[:, None, None] * torch.eye(y.shape[-1], dtype=F64)

    if after is not None:
        field = until(field, calls, after)
    return KnownField(field, jacobian=jacobian, narrowed=narrowed)


def until(field, calls, after):
    def write(t, y, out):
        if len(calls) == after:
            calls.append(0)
            raise KeyboardInterrupt
        return field(t, y, out)

    return write


def run(calls, *, after=None, narrows=True, rates=RATES, **options):
    system = known(rates, calls, after)
    y0 = torch.ones(len(rates), 3, dtype=F64) * torch.linspace(1, 2, 3, dtype=F64)
    parts = {"narrowed": system.narrowed} if narrows else {}
    given = {"t_end": 3.0, "rtol": 1e-7, "save_at": [0.0, 0.3, 2.0, 3.0]} | options
    return integrate(system.field, y0, jacobian=system.jacobian, **parts, **given)


@pytest.mark.parametrize("method", ["rk5", "rk8", "rkc", "rodas", "auto"])
@pytest.mark.parametrize("stop", [{}, {"small": (0, 0.4)}], ids=["end", "rule"])
def test_samples_that_stop_leave_the_batch_and_change_nothing(method, stop):
    few, all_ = [], []
    # A rule at the norm of the solution stops the fast samples early.
    a, b = (
        run(calls, narrows=narrows, method=method, stop=stop)
        for calls, narrows in ((few, True), (all_, False))
    )
    assert min(few) < len(RATES) == min(all_)
    assert a.status == b.status
    assert a.stats["evaluations"] == b.stats["evaluations"]
    assert_close(a.y, b.y, ops=300)
    assert_close(a.saved["y"], b.saved["y"], ops=300)
    assert_close(a.t_final, b.t_final, ops=300)
    assert_close(a.obs, b.obs, ops=300)


@pytest.mark.parametrize("method", ["rk8", "rkc", "rodas", "auto"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_narrowed_run_continues_to_the_same_bits(method, share):
    calls, states = [], []
    options = {"method": method, "stop": {"small": (0, 0.4)}}
    whole = run(calls, **options)
    after = int(share * len(calls))
    with pytest.raises(KeyboardInterrupt):
        run([], after=after, checkpoint=states.append, **options)
    resumed = run([], resume=states[-1], **options)
    for name in ("y", "t_final", "obs"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    assert torch.equal(resumed.saved["y"], whole.saved["y"])
    assert resumed.status == whole.status


def test_samples_that_left_come_back_where_a_rule_has_moved():
    states, calls = [], []
    first = run([], stop={"small": (0, 0.9)}, checkpoint=states.append, method="rk8")
    assert "small" in first.status
    again = run(calls, stop={"small": (0, 0.2)}, resume=states[-1], method="rk8")
    other = run([], stop={"small": (0, 0.2)}, method="rk8")
    assert max(calls) == len(RATES)
    assert again.status == other.status
    assert float((again.y - other.y).norm() / other.y.norm()) < 1e-3


def test_files_of_whole_batches_are_continued():
    states = []
    whole = run([], checkpoint=states.append, stop={"small": (0, 0.4)}, max_evaluations=200)
    assert whole.status.count("evaluations")
    state = {k: v for k, v in states[-1].items() if k != "live"}
    resumed = run([], resume=state, stop={"small": (0, 0.4)})
    assert "evaluations" not in resumed.status


def test_a_failing_sample_is_named_by_its_place_in_the_batch():
    place = 30

    def system(marks):
        def field(t, y, out):
            out.copy_(-marks[:, None] * y)
            torch.where(marks[:, None] < 0, y.square() * 0.2, out, out=out)
            return y.norm(dim=-1, keepdim=True)

        return KnownField(field, narrowed=lambda samples: system(marks[samples]))

    marks = torch.ones(32, dtype=F64)
    marks[place] = -1.0
    known = system(marks)
    y0 = torch.ones(len(marks), 1, dtype=F64)
    with pytest.raises(Exception, match=f"in sample {place}") as caught:
        integrate(
            known.field, y0, t_end=9.0, stop={"small": (0, 0.5)}, narrowed=known.narrowed,
            method="rk5", rtol=1e-6,
        )  # fmt: skip
    assert caught.value.solution.status[place] == "failed"
    assert len(caught.value.solution.y) == len(marks)


def test_every_step_and_every_value_of_a_monitor_is_of_the_whole_batch():
    for options in ({"keep_steps": True}, {"monitor": lambda y: y.norm(dim=-1)}):
        calls = []
        run(calls, method="rk5", stop={"small": (0, 0.4)}, **options)
        assert set(calls) == {len(RATES)}


def test_a_field_that_cannot_be_taken_apart_stays_whole():
    calls = []
    system = known(RATES, calls)
    y0 = torch.ones(len(RATES), 3, dtype=F64)
    options = {"t_end": 3.0, "stop": {"small": (0, 0.4)}, "narrowed": lambda samples: None}
    integrate(interrupted(system.field, -1), y0, **options)
    assert set(calls) == {len(RATES)}
