from __future__ import annotations

import pytest
import torch

import dln_geometry as dln
from dln_geometry import sharded
from dln_geometry.testing import assert_close
from tests.dynamics.sharded import cases, doors, messages
from tests.dynamics.sharded.processes import run_on

COUNTS = 2, pytest.param(4, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=COUNTS)
def runs(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "of"
    return run_on(request.param, cases.every_case, folder)


@pytest.mark.parametrize("name", cases.CASES)
def test_several_processes_run_the_flow_of_one(runs, name):
    loss, point, options = cases.CASES[name]
    path = cases.flow(loss, point, options)
    expected = cases.told(path)
    # Error estimates are differences of the size rtol: relative to them, a rounding is eps/rtol,
    # and so much do the times of free steps move.
    ends_freely = "loss" in options.get("until", {}) or options.get("save_at", 0) is None
    kind = {"ops": 1000, "condition": 1e4 if ends_freely else 1.0}
    for rank, results in enumerate(runs):
        if isinstance(results, Exception):
            raise results
        found = results[name]
        assert found["stats"] == expected["stats"], rank
        assert found["status"] == expected["status"]
        for part in ("t", "loss", "matrix", "singular values"):
            assert_close(found[part], expected[part], **kind)
        assert_close(1.0 + found["defect"], 1.0 + expected["defect"], **kind)
        for one, two in zip(found.get("points", ()), path.points or (), strict=True):
            assert_close(one, two.matrix, **kind)


def test_monitors_observables_and_points_that_no_process_has(tmp_path):
    found, again = (run_on(count, cases.watched, tmp_path / f"{count}") for count in (2, 3))
    first = found[0]
    start = dln.Collapsed.of(dln.EndToEnd.of(first["start"], 2.5, rank=2))
    loss = cases.quadratic(9, 7)
    more = {
        "monitor": cases.VALIDATION,
        "patience": 5,
        "observe": {"norm": lambda p: p.matrix.norm()},
    }
    path = dln.gradient_flow(loss, start, **cases.LONG, **more)
    seen = path.monitored
    assert path.status == first["status"]
    for result in (*found, *again):
        for part, expected in (
            ("start", first["start"]),
            ("matrix", path.final.matrix),
            ("values", seen.values),
            ("value", path.loss[0]),
            ("norm", path.observed["norm"]),
            ("singular values", torch.tensor([1.0, 0.5])),
        ):
            assert_close(result[part], expected, ops=1000, condition=1e4)
        assert result["defect"] < 1e-14
    for results in (found, again):
        rows = torch.cat([result["rows"] for result in results])
        assert_close(rows, loss.gradient(first["start"]), ops=1000)


def test_another_number_of_processes_goes_on_from_the_store(tmp_path):
    folder = tmp_path / "run.zarr"
    (whole, _) = run_on(2, cases.stored, tmp_path / "whole", tmp_path / "whole.zarr", None)
    one, two, three = run_on(3, cases.stored, tmp_path / "three", folder, 3)
    assert one["status"] == two["status"] == three["status"] == "steps"
    # The last of two ends on the way; the other one says so, and does not wait for it.
    told, gone = run_on(2, cases.stored, tmp_path / "two", folder, None, 2)
    assert gone is None
    assert isinstance(told, sharded.WorkerError)
    assert "a process of the run has ended" in str(told)
    with sharded.alone() as mesh:
        last = cases.stored(mesh, folder, None)
    assert last["status"] == whole["status"] == "t_end"
    assert last["stats"] == whole["stats"]
    assert one["stats"]["steps"] < last["stats"]["steps"]
    for part in ("loss", "matrix", "singular values"):
        assert_close(last[part], whole[part], ops=1000, condition=1e4)


def test_wrong_calls_raise_the_same_error_in_all_processes(tmp_path):
    one, two = run_on(2, doors.errors, tmp_path / "runs")
    for name, (_, words) in doors.WRONG.items():
        assert words in one[name], f"{name}: {one[name]}"
        assert one[name] == two[name]


def test_without_processes_there_is_no_mesh():
    with pytest.raises(ValueError, match="call sharded.mesh"):
        sharded.distribute(cases.POINT, None)
    with pytest.raises(ValueError, match="started by torchrun"):
        sharded.mesh(device="cpu")


def test_the_paper_model_counts_what_is_sent_and_multiplied(tmp_path):
    for rank, found in enumerate(run_on(2, messages.counted, tmp_path / "runs")):
        for (name, depth), (sent, products) in found.items():
            entries = len(messages.LOSSES["sparse"].rows) if name == "sparse" else None
            cost = sharded.evaluation_cost(
                messages.SHAPE,
                messages.RANK,
                entries=entries,
                processes=2,
                depth=depth,
                dtype=torch.float64,
            )
            told = sent["gather"], sent["scatter"], sent["sum"], sent["calls"]
            assert told == (cost.gathered, cost.scattered, cost.summed, cost.messages), rank
            # Besides: products of r x r matrices.
            assert 0 <= products - cost.products <= 20 * messages.RANK**3, (name, depth)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((5, 4, 9), "process must lie between 0 and 3, got 9"),
        ((5, 0, 0), "processes must be at least 1"),
        ((-5, 4, 1), "count must be at least 0"),
        ((5.5, 2, 0), "count must be an integer"),
    ],
)
def test_rows_of_no_process_are_refused(arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        sharded.rows_of(*arguments)
