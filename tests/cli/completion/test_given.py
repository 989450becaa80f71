"""Features, weights, held-out entries and saved models beside a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dln_geometry.cli import main
from dln_geometry.completion import MatrixCompleter
from tests.cli.completion.routes import PLAIN, QUICK, read_table
from tests.cli.routes import refusal


def sides_with_features(rng):
    """Write ratings whose rows have means that features tell, and features of further rows."""
    f = rng.normal(size=(35, 2))
    x = (3.0 + f @ [1.5, 0.5])[:, None] + rng.normal(size=20) + 0.1 * rng.normal(size=(35, 20))
    pairs = [f"u{i},{100 + j}" for i in range(30) for j in range(20) if (3 * i + j) % 4]
    place = {f"u{i},{100 + j}": x[i, j] for i in range(35) for j in range(20)}
    write = {
        "r.csv": ["user,item,rating", *(f"{p},{place[p]:.9g}" for p in pairs)],
        "w.csv": ["user,item,weight", *(f"{p},{1 + k % 3}" for k, p in enumerate(pairs))],
        "f.csv": ["user,a,b", *(f"u{i},{f[i, 0]:.9g},{f[i, 1]:.9g}" for i in range(35))],
        "p.csv": ["user,item", "u3,101", "u32,103", "u34,104"],
    }
    for name, lines in write.items():
        Path(name).write_text("\n".join(lines) + "\n")
    return x


def test_features_and_weights_reach_the_fit_and_a_saved_model_predicts(rng, capsys):
    x = sides_with_features(rng)
    fit = ["--depth", "2", "--rank", "1", "--decay", "1", "--shrink", "5", "--rtol", "1e-2"]
    given = ["--row-features", "f.csv", "--weights", "w.csv", "--validation", "0.2"]
    asked = ["--predict", "p.csv", "--interval", "0.5"]
    more = ["--recommend", "2", "--save-model", "m.npz"]
    assert main(["complete", "r.csv", *fit, *given, *asked, *more]) == 0
    assert "did not see" not in capsys.readouterr().err
    _, lines = read_table("r-predictions.csv")
    found = np.array([cells[2:] for cells in lines], dtype=float)
    truth = x[[3, 32, 34], [1, 3, 4]]
    assert np.abs(found[:, 0] - truth).max() < 0.4 * x.std()
    header, best = read_table("r-recommendations.csv")
    assert header == ["row", "column", "prediction"]
    assert len(best) == 60
    assert {tuple(cells[:2]) for cells in best}.isdisjoint(
        tuple(line.split(",")[:2]) for line in Path("r.csv").read_text().splitlines()
    )
    assert main(["complete", "--model", "m.npz", *asked]) == 0
    assert read_table("m-predictions.csv")[1] == lines
    assert "saved" in capsys.readouterr().out
    Path("new.csv").write_text("u31,100,2.5\nu31,101,3\nu99,100,2\n")
    # Row u99 has no features.
    line = refusal(["complete", "new.csv", "--model", "m.npz", "--layout", "triples"], capsys)
    assert "row_features must be given for all 32 rows" in line
    Path("new.csv").write_text("u31,100,2.5\nu31,101,3\n")
    grown = ["complete", "new.csv", "--model", "m.npz", "--layout", "triples", *asked]
    assert main([*grown, "--save-model", "m.npz"]) == 0
    assert MatrixCompleter.load("m.npz").shape_ == (31, 20)


def test_held_out_entries_may_be_given(ratings, capsys):
    lines = Path("ratings.csv").read_text().splitlines()
    held = lines[1::6]
    Path("held.csv").write_text("\n".join(lines[:1] + held) + "\n")
    rest = [line for line in lines if line not in held]
    Path("rest.csv").write_text("\n".join(rest) + "\n")
    run = ["complete", "rest.csv", *PLAIN, "--depth", "2,3", "--no-biases", "--no-refit"]
    assert main([*run, "--validation-entries", "held.csv", "--save-model", "m.npz"]) == 0
    completer = MatrixCompleter.load("m.npz")
    assert completer.depth_ == (2.0, 3.0)
    cells = [line.split(",") for line in held]
    found = completer.predict([c[0] for c in cells], [int(c[1]) for c in cells])
    gap = found - np.array([float(c[2]) for c in cells])
    assert completer.validation_error_ == pytest.approx(np.sqrt(np.mean(gap**2)))
    assert main([*run, "--json", "--validation", "0.1"]) == 0
    assert '"depth": [2.0, 3.0]' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--model", "none.npz"], "No such file"),
        (["--model", "ratings.csv"], "--model: path must be a saved fitted completer"),
        (["--model", "ratings.csv", "--depth", "2"], "--depth must be left out of a saved model"),
        (["--depth", "2,x"], "--depth must be numbers with commas"),
        (["--interval", "1"], "--interval must lie in (0, 1)"),
        (["--recommend", "0"], "--recommend must"),
        (["--patience", "0"], "--patience must"),
        (["--shrink", "-1"], "--shrink must"),
        (["--weights", "w.csv"], "--weights must hold every known entry"),
        (["--weights", "v.csv"], "--weights: v.csv must have empty or NaN cells to complete, got"),
        (["--predict", "v.csv", "--weights", "v.csv"], ": give --layout triples or --layout"),
        (["--row-features", "w.csv"], "row_features must have a line for every id"),
        (["--save-model", "m.txt"], "--save-model must end in one of .npz"),
        (["--save-model", "other.npz"], "--save-model must name new files"),
        (["--flow", "--recommend", "3"], "--recommend must be left out of a flow"),
    ],
)
def test_wrong_files_beside_the_table_are_refused(more, match, ratings, capsys):
    Path("w.csv").write_text("user,item,weight\nu1,100,2\nu2,101,1\n")
    Path("v.csv").write_text("user,item\n0,1\n99,3\n")
    np.savez("other.npz", x=np.ones(3))
    choices = () if more[0] in ("--model", "--flow") else QUICK
    assert match in refusal(["complete", "ratings.csv", *choices, *more], capsys)


def test_data_or_a_model_must_be_given(capsys):
    assert "DATA must be a file of known entries" in refusal(["complete"], capsys)
