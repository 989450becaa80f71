from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import dln_geometry.cli.completing.completion as command
from dln_geometry.cli import main
from dln_geometry.completion import MatrixCompleter
from dln_geometry.tables import load_ids
from tests.cli.completion.routes import PLAIN, QUICK, read_table
from tests.cli.routes import refusal, start_process, write_triples

FILES = ("ratings-completed.npy", "ratings-completed.json", "ratings-completed.png")


def test_it_is_the_estimator(ratings, capsys):
    x, known = ratings
    Path("pairs.csv").write_text("user,item\nu3,101\nu0,129\nstranger,100\n")
    assert main(["complete", "ratings.csv", *PLAIN, "--predict", "pairs.csv"]) == 0
    said = capsys.readouterr()
    assert "note: line 1 is read as a header" in said.out
    assert "note: line 1 of pairs.csv is read as a header" in said.out
    assert "1 of 3 entries have a row or column that the fit did not see" in said.err
    assert said.err.count("\n") == 1
    rows, cols = load_ids("ratings-completed.json")
    order = rows.places([f"u{k}" for k in range(40)])
    matrix = np.load("ratings-completed.npy")
    assert matrix.shape == (40, 30)
    hidden = ~known
    error = np.sqrt(np.mean((matrix[order] - x)[hidden] ** 2))
    assert error < 0.3 * x.std()
    header, lines = read_table("ratings-predictions.csv")
    assert header == ["row", "column", "prediction", "low", "high"]
    assert [cells[:2] for cells in lines] == [["u3", "101"], ["u0", "129"], ["stranger", "100"]]
    found = np.array([cells[2:] for cells in lines], dtype=float)
    assert np.all((found[:, 1] < found[:, 0]) & (found[:, 0] < found[:, 2]))
    places = rows.places(["u3", "u0"]), cols.places([101, 129])
    assert np.allclose(found[:2, 0], matrix[places], rtol=1e-6)
    for word in ("given", "validation rms error", "by the side means alone", "seconds"):
        assert word in said.out
    assert "held-out rms error" not in said.out


def test_results_are_written_and_replaced(ratings):
    assert main(["complete", "ratings.csv", *QUICK]) == 0
    for name in FILES:
        assert Path(name).is_file()
    assert imread(FILES[2]).std() > 0.01
    header, lines = read_table("ratings-curve.csv")
    assert header == ["time", "validation error"]
    t, error = np.array(lines, dtype=float).T
    assert np.all(np.diff(t) >= 0)
    assert error.min() < error[0]
    assert not list(Path().glob("*.part"))
    # A table that is not ours stays.
    Path("ratings-curve.csv").write_text("mine\n")
    assert main(["complete", "ratings.csv", *QUICK]) == 2
    assert Path("ratings-curve.csv").read_text() == "mine\n"


def test_a_test_share_teaches_nothing(ratings, capsys):
    """Other values of the test entries change no prediction, only the reported error."""
    x, known = ratings
    np.save("a.npy", np.where(known, x, np.nan))
    assert main(["complete", "a.npy", *QUICK, "--holdout", "0.2", "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert "held-out rms error" in said
    assert "held-out error (dB)" in said
    values = np.where(known, x, np.nan)
    places = np.argwhere(known)
    import torch

    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(3)).numpy()
    for i, j in places[order[: round(0.2 * len(places))]]:
        values[i, j] = 50.0
    np.save("b.npy", values)
    assert main(["complete", "b.npy", *QUICK, "--holdout", "0.2", "--seed", "3"]) == 0
    assert np.array_equal(np.load("a-completed.npy"), np.load("b-completed.npy"))


def test_options_reach_the_estimator(monkeypatch):
    seen = {}

    def fake(entries, plan, out, *, budget, as_json):
        seen["plan"] = plan

    monkeypatch.setattr(command, "complete_by_estimator", fake)
    Path("x.csv").write_text("0,0,1\n0,1,2\n1,0,3\n1,1,5\n")
    assert main(["complete", "x.csv"]) == 0
    plan = seen["plan"]
    assert plan.holdout == 0
    defaults = MatrixCompleter().get_params()
    assert {name: defaults[name] for name in plan.options} == plan.options
    more = "--depth inf --rank 2 --decay 0 --no-biases --bounds ,5 --loss poisson --starts 3"
    assert main(["complete", "x.csv", *more.split(), "--validation", "0", "--seconds", "9"]) == 0
    assert seen["plan"].options == {
        "depth": float("inf"),
        "rank": 2,
        "decay": 0.0,
        "biases": False,
        "bounds": (None, 5.0),
        "loss": "poisson",
        "starts": 3,
        "validation": 0.0,
        "seconds": 9.0,
        "rtol": 1e-3,
        "shrink": "auto",
        "refit": True,
        "patience": 12,
    }
    more = "--depth 2,2.5 --shrink 3 --no-refit --patience 7 --save-model m.npz --interval 0.5"
    assert main(["complete", "x.csv", *more.split(), "--recommend", "4"]) == 0
    plan = seen["plan"]
    given = {"depth": (2.0, 2.5), "shrink": 3.0, "refit": False, "patience": 7}
    assert given.items() <= plan.options.items()
    assert (plan.save_model, plan.interval, plan.recommend) == (Path("m.npz"), 0.5, 4)


@pytest.mark.parametrize("loss", ["logistic", "poisson"])
def test_links_write_predictions_without_intervals(loss, rng, capsys):
    mean = np.exp(rng.normal(size=(20, 1)) + rng.normal(size=15))
    x = rng.poisson(mean) if loss == "poisson" else rng.random(mean.shape) < mean / (1 + mean)
    write_triples("x.csv", x.astype(float), rng.random(x.shape) < 0.8)
    Path("pairs.csv").write_text("3,4\n1,2\n")
    more = ["--loss", loss, "--predict", "pairs.csv", "--holdout", "0.1"]
    assert main(["complete", "x.csv", *QUICK, "--layout", "triples", *more]) == 0
    assert "held-out log loss" in capsys.readouterr().out
    header, lines = read_table("x-predictions.csv")
    assert header == ["row", "column", "prediction"]
    assert [cells[:2] for cells in lines] == [["3", "4"], ["1", "2"]]
    found = np.load("x-completed.npy")
    assert np.all(found > 0)
    assert loss == "poisson" or np.all(found < 1)


def test_places_from_one_are_places_of_pairs_too(low_rank):
    x, known = low_rank
    write_triples("x.csv", x, known, first=1)
    Path("pairs.csv").write_text("1,1\n20,15\n")
    assert main(["complete", "x.csv", *QUICK, "--one-based", "--predict", "pairs.csv"]) == 0
    _, lines = read_table("x-predictions.csv")
    matrix = np.load("x-completed.npy")
    found = np.array([cells[:3] for cells in lines], dtype=float)
    assert found[:, :2].tolist() == [[1, 1], [20, 15]]
    assert np.allclose(found[:, 2], [matrix[0, 0], matrix[-1, -1]], rtol=1e-6)


def test_repeated_entries_follow_a_rule(ratings, capsys):
    lines = Path("ratings.csv").read_text()
    first = lines.splitlines()[1].rsplit(",", 1)
    Path("ratings.csv").write_text(f"{lines}{first[0]},{float(first[1]) + 2}\n")
    assert "(--duplicates)" in refusal(["complete", "ratings.csv"], capsys)
    for rule in ("mean", "last"):
        assert main(["complete", "ratings.csv", *QUICK, "--duplicates", rule]) == 0
        assert f"1 entries are repeated: the {rule} counts" in capsys.readouterr().out


def test_a_matrix_that_does_not_fit_is_left_out(capsys):
    lines = [f"{997 * k % 5000},{991 * k % 4999},{k % 5}" for k in range(60)]
    Path("x.csv").write_text("\n".join(lines) + "\n")
    Path("pairs.csv").write_text("0,1\n")
    small = ["--shape", "5000,5000", "--max-memory", "0.1", "--predict", "pairs.csv"]
    assert main(["complete", "x.csv", *QUICK, *small]) == 0
    said = capsys.readouterr().out
    assert "is not written: --predict" in said
    assert not Path("x-completed.npy").exists()
    assert Path("x-predictions.csv").exists()
    assert Path("x-completed.png").exists()


def test_a_single_row_takes_any_rank_and_pairs_need_no_decimals():
    Path("x.csv").write_text("id;a;b;c;d;e\nann;1,5;;2,5;3,5;4\n")
    Path("pairs.csv").write_text("ann,b\n")
    more = ["--decimal", ",", "--validation", "0", "--predict", "pairs.csv"]
    assert main(["complete", "x.csv", *QUICK, *more]) == 0
    assert np.load("x-completed.npy").shape == (1, 5)
    assert read_table("x-predictions.csv")[1][0][:2] == ["ann", "b"]


def test_two_entries_are_completed_without_choices(capsys):
    Path("x.csv").write_text("0,0,2\n1,1,3\n")
    assert main(["complete", "x.csv"]) == 0
    assert "warning: none of 2 entries can be held out" in capsys.readouterr().err
    assert np.isfinite(np.load("x-completed.npy")).all()


def test_a_constant_table_is_completed_by_the_constant():
    Path("x.csv").write_text("\n".join(f"{k % 6},{k % 5},2.5" for k in range(20)) + "\n")
    assert main(["complete", "x.csv", *QUICK]) == 0
    assert np.allclose(np.load("x-completed.npy"), 2.5)


def test_names_are_written_with_the_result(capsys):
    lines = [f"u{k % 5},{10**11 + k % 4},{k % 7}" for k in range(20)]
    Path("x.csv").write_text("user,item,rating\n" + "\n".join(lines) + "\n")
    assert main(["complete", "x.csv", *QUICK, "--validation", "0"]) == 0
    rows, columns = load_ids("x-completed.json")
    assert rows.names == tuple(f"u{k}" for k in range(5))
    assert columns.names == tuple(10**11 + k for k in range(4))
    assert np.load("x-completed.npy").shape == (5, 4)
    assert "note: line 1 is read as a header" in capsys.readouterr().out
    # Places need no names.
    Path("y.csv").write_text("0,1,2.5\n1,0,3\n1,1,0.5\n")
    assert main(["complete", "y.csv", "--rank", "1", "--validation", "0"]) == 0
    assert load_ids("y-completed.json") == (None, None)


def test_memory_is_estimated_before_it_is_taken(capsys):
    Path("x.csv").write_text("1,104000100004,5\n2,7,3\n1,7,4\n")
    for more in ([], ["--flow"]):
        shaped = ["complete", "x.csv", "--shape", "10,200000000000", *more]
        line = refusal(shaped, capsys)
        assert "the run on 10 x 200000000000 would take" in line
        assert "(--max-memory)" in line


def test_seconds_end_a_fit_with_the_best_so_far(ratings):
    begun = time.perf_counter()
    assert main(["complete", "ratings.csv", "--seconds", "1"]) == 0
    assert time.perf_counter() - begun < 30
    assert np.isfinite(np.load(FILES[0])).all()


def test_an_interrupt_is_one_line(ratings, tmp_path):
    process = start_process(["complete", "ratings.csv", "--starts", "1000"], tmp_path)
    assert process.stdout.readline().startswith("layout: triples")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 130, said
    # Warnings of the fit may stand above it.
    assert said.splitlines()[-1] == "interrupted: --seconds ends a run and keeps the best so far"
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "hint"),
    [([], "--seconds ends a run and keeps the best so far"),
     (["--flow", "--store", "x.zarr"], "the same command continues from x.zarr")],
)  # fmt: skip
def test_an_interrupt_at_the_first_line_is_the_same_one(
    ratings, options, hint, capsys, monkeypatch
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "print", interrupted, raising=False)
    assert main(["complete", "ratings.csv", *options]) == 130
    assert capsys.readouterr().err == f"interrupted: {hint}\n"
