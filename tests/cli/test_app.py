from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dln_geometry as dln
from dln_geometry.cli import main
from tests.cli.routes import refusal, start_process

TEXTS = {
    "empty.csv": "",
    "header.csv": "row,column,value\n",
    "words.csv": "1,2,3\n4,five,6\n",
    "ragged.csv": "1,2,3\n4,5\n",
    "equal.csv": "0,0,2\n1,1,2\n",
    "twice.csv": "0,1,2\n0,1,3\n1,0,1\n",
    "fraction.csv": "0.5,1,2\n1,0,3\n",
    "infinite.csv": "0,1\ninf,2\n",
    "two.csv": "0,1\n1,2\n",
    "good.csv": "0,0,1\n0,1,2\n1,0,3\n1,1,5\n",
    "wrong.npy": "this is no array",
    "wrong.npz": "this is no archive",
    "one.csv": "1,1,5\n",
    "wrong.mtx": "this is no matrix",
    "x.json": "{}",
}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["complete"], "DATA must be a file of known entries"),
        (["nothing"], "nothing"),
        (["--nothing"], "--nothing"),
        (["--out", "figure.txt"], "--out must end in one of .png"),
        (["--store", "good.csv"], "--store must be a folder"),
        (["complete", "missing.csv"], "No such file or directory: missing.csv"),
        (["complete", "."], "must end in one of"),
        (["complete", "x.json"], "must end in one of"),
        (["complete", "empty.csv"], "empty file"),
        (["complete", "header.csv"], "header alone"),
        (["complete", "words.csv"], "'five' at line 2, column 2"),
        (["complete", "ragged.csv"], "3 and 2 at line 2"),
        (["complete", "equal.csv", "--flow"], "different from their mean"),
        (["complete", "twice.csv"], "repeatedly"),
        (["complete", "infinite.csv"], "infinite"),
        (["complete", "two.csv", "--layout", "triples"], "2 columns"),
        (["complete", "fraction.csv", "--layout", "triples"], "whole numbers"),
        (["complete", "good.csv", "--layout", "list"], "layout must be one of"),
        (["complete", "good.csv", "--one-based"], "at least 1, got 0"),
        (["complete", "good.csv", "--shape", "1,1"], "at most 0"),
        (["complete", "good.csv", "--shape", "2"], "two positive integers"),
        (["complete", "good.csv", "--shape", "a,b"], "--shape must be integers"),
        (["complete", "bytes.csv"], "text file"),
        (["complete", "wrong.npy"], "array of numpy, got a damaged file"),
        (["complete", "short.npy"], "array of numpy, got a damaged file"),
        (["complete", "wrong.npz"], "archive of numpy, got a damaged file"),
        (["complete", "short.npz"], "archive of numpy, got a damaged file"),
        (["complete", "format.npz"], "sparse matrix of scipy"),
        (["entropy", "wrong.npy"], "array of numpy, got a damaged file"),
        (["balance", "objects.npy"], "one that holds no numbers"),
        (["complete", "wrong.mtx"], "Matrix Market"),
        (["complete", "vector.npy"], r"shape (m, n), got shape (3,)"),
        (["complete", "complex.npy"], "real numbers"),
        (["complete", "holes.npy"], "NaN alone"),
        (["complete", "two.npz"], "rows, cols, values, got a, b"),
        (["complete", "lengths.npz"], "(2,), (2,), (3,)"),
        (["complete", "good.csv", "--depth", "0.5"], "depth must be a real number >= 1"),
        (["complete", "good.csv", "--depth", "nan"], "depth must be a real number >= 1"),
        (["complete", "good.csv", "--depth", "deep"], "--depth"),
        (["complete", "good.csv", "--rank", "0"], "rank must lie between 1 and 2"),
        (["complete", "good.csv", "--rank", "3"], "rank must lie between 1 and 2"),
        (["complete", "good.csv", "--scale", "0"], "--scale must lie in (0, 10]"),
        (["complete", "good.csv", "--t-end", "-1"], "--t-end must be >= 0"),
        (["complete", "good.csv", "--until-loss", "-1"], "--until-loss must be >= 0"),
        (["complete", "good.csv", "--seconds", "nan"], "--seconds must be >= 0"),
        (["complete", "good.csv", "--holdout", "1"], "--holdout must lie in [0, 1)"),
        (["complete", "good.csv", "--holdout", "0.9"], "got 0 of 4 with --holdout 0.9"),
        (["complete", "good.csv", "--holdout", "0.7"], "too few entries are left to learn from"),
        (["complete", "one.csv"], "must be at least 2, got 1 of 1"),
        (
            ["complete", "one.csv", "--flow"],
            "must be at least 2, for their mean is taken away, got 1 of 1",
        ),
        (["complete", "one.csv", "--no-center", "--holdout", "0.999"], "at least 1, got 0 of 1"),
        (["complete", "good.csv", "--rank", "full"], "--rank must be an integer or auto, got full"),
        (["complete", "good.csv", "--decay", "1", "--flow"], "--decay must be left out of a flow"),
        (["complete", "good.csv", "--starts", "2", "--t-end", "1"], "got it with --t-end"),
        (["complete", "good.csv", "--predict", "good.csv", "--store", "s"], "--predict must be"),
        (["complete", "good.csv", "--bounds", "1,4", "--validation", "0.3"], "--bounds: entries"),
        (["complete", "good.csv", "--loss", "logistic"], "--loss: entries must lie in [0, 1]"),
        (["complete", "good.csv", "--predict", "nowhere.csv"], "No such file"),
        (["complete", "good.csv", "--predict", "words.csv"], "must hold places"),
        (["complete", "good.csv", "--predict", "good.npy"], "--predict"),
        (["complete", "good.csv", "--rtol", "0"], "rtol must be positive"),
        (["complete", "hole.npy", "--out", "hole"], "must not overwrite the data"),
        (["balance", "good.npy", "--depth", "0"], "depth must be a real number >= 1"),
        (["balance", "good.npy", "--depth", "2.5"], "--depth"),
        (["balance", "good.npy", "--widths", "1"], "widths must all be at least the rank 2"),
        (["balance", "good.npy", "--out", "W.zip"], "--out must end in one of .npz"),
        (["balance", "holes.npy"], "finite numbers"),
        (["entropy", "missing.npy"], "No such file or directory: missing.npy"),
        (["entropy", "vector.npy"], "shape (m, n)"),
        (["entropy", "two.npz"], "a single matrix, got a, b"),
        (["entropy", "good.npy", "--widths", "x"], "--widths must be integers"),
        (["entropy", "good.npy", "--depth", "0"], "depth must be a real number >= 1"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, list) else "",
)
def test_a_mistake_is_one_line(arguments, said, capsys):
    for name, text in TEXTS.items():
        Path(name).write_text(text)
    Path("bytes.csv").write_bytes(bytes(range(128, 256)))
    np.save("good.npy", np.array([[1.0, 2.0], [3.0, 5.0]]))
    np.save("vector.npy", np.ones(3))
    np.save("complex.npy", np.ones((2, 2)) * 1j)
    np.save("holes.npy", np.full((2, 2), np.nan))
    np.savez("two.npz", a=np.ones(2), b=np.ones(2))
    np.savez("lengths.npz", rows=[0, 1], cols=[0, 1], values=[1.0, 2.0, 3.0])
    np.save("hole.npy", np.array([[1.0, np.nan], [3.0, 5.0]]))
    np.save("objects.npy", np.array([None, {}]), allow_pickle=True)
    np.savez("format.npz", format=np.array("csr"), data=np.ones(2))
    for suffix in (".npy", ".npz"):
        whole = Path(("good" if suffix == ".npy" else "two") + suffix).read_bytes()
        Path("short" + suffix).write_bytes(whole[:-5])
    before = set(Path().iterdir())
    line = refusal(arguments, capsys)
    # Versions of typer differ in the case of the names of arguments.
    assert said.lower() in line.lower()
    assert "allow_pickle" not in line
    assert set(Path().iterdir()) == before


OPTIONS = {
    "depth": ("nan", "-1", "deep", "0", "1e400x"),
    "rank": ("-1", "0", "2.5", "nan", "99"),
    "decay": ("nan", "-1", "inf", "x"),
    "bounds": ("nan", "2,1", "1", "1,2,3", "x"),
    "loss": ("", "huber"),
    "validation": ("nan", "-1", "1", "x"),
    "starts": ("0", "-1", "1.5", "x"),
    "duplicates": ("", "first"),
    "scale": ("nan", "-1", "0", "inf", "x"),
    "t-end": ("nan", "-1", "inf", "x"),
    "until-loss": ("nan", "-1", "inf", "x"),
    "until-gradient": ("nan", "-1", "inf", "x"),
    "seconds": ("nan", "-1", "inf", "x"),
    "holdout": ("nan", "-1", "1", "x"),
    "seed": ("-1", "1.5", "nan", str(2**64)),
    "rtol": ("nan", "-1", "0", "1", "inf", "x"),
    "layout": ("nan", ""),
    "shape": ("nan", "-1,2", "0,0", "1,2,3", "2.5,2", ""),
    "delimiter": ("", "a", "7"),
    "decimal": ("", ";", "x"),
    "max-memory": ("nan", "-1", "0", "inf", "x", "1e-9"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_named_when_refused(name, capsys):
    Path("x.csv").write_text(TEXTS["good.csv"])
    for value in OPTIONS[name]:
        line = refusal(["complete", "x.csv", f"--{name}", value], capsys)
        assert name in line, (value, line)
    assert list(Path().iterdir()) == [Path("x.csv")]


@pytest.mark.parametrize("command", ["balance", "entropy"])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("depth", ("nan", "-1", "0", "x")),
        ("rank", ("-1", "0", "9", "nan")),
        ("widths", ("-1", "0", "nan", "1", "3,3")),
        ("delimiter", ("", "a")),
        ("max-memory", ("nan", "-1", "1e-9")),
    ],
)
def test_every_option_of_a_matrix_is_named(command, name, values, capsys):
    np.savetxt("x.csv", np.array([[1.25, 2.5], [3.5, 5.25]]), delimiter=",")
    for value in values:
        line = refusal([command, "x.csv", f"--{name}", value], capsys)
        assert name in line, (value, line)
    if command == "balance":
        assert "memory" in refusal(["balance", "x.csv", "--depth", "99999999999"], capsys)
        assert "--seed" in refusal(["balance", "x.csv", "--seed", "-1"], capsys)


def test_doubts_name_the_option_that_decides(capsys):
    Path("x.csv").write_text("1,2\n3,4\n")
    assert "give --header or --no-header" in refusal(["entropy", "x.csv"], capsys)
    assert main(["entropy", "x.csv", "--no-header"]) == 0
    Path("x.csv").write_text("1,5\n2,7\n3,1\n")
    assert "give --index or --no-index" in refusal(["entropy", "x.csv"], capsys)
    Path("x.csv").write_text("0,5;1,25\n2,5;3,75\n")
    assert "give --decimal ," in refusal(["entropy", "x.csv"], capsys)
    assert main(["entropy", "x.csv", "--decimal", ","]) == 0


def test_what_was_skipped_is_printed(rng, capsys):
    pd.DataFrame(rng.normal(size=(4, 4))).to_csv("x.csv")
    assert main(["entropy", "x.csv", "--depth", "3", "--json"]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["singular_values"]) == 4
    assert "note: line 1 is read as a header" in said.err
    assert "note: the first column is read as an index" in said.err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("no memory\nfor this"), 1, "no memory for this"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (FileNotFoundError(2, "No such file", "x"), 2, "No such file: x"),
        (OverflowError("too large"), 1, "too large"),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, code, said, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("dln_geometry.cli.photograph.complete_photograph", fail)
    assert main([]) == code
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_is_one_line(number, tmp_path):
    # Python names each module that it has imported: from the first of the package on.
    for imported in ("dln_geometry._startup", "torch._C", "dln_geometry.support"):
        process = start_process(["entropy", "missing.npy"], tmp_path, "-X", "importtime")
        while not (line := process.stderr.readline()).rstrip().endswith(f" {imported}"):
            assert line, f"{imported} must be imported"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert [x for x in said.splitlines() if not x.startswith("import time:")] == ["interrupted"]
        assert process.returncode == 128 + number


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dln {dln.__version__}\n"
    assert main(["complete", "--help"]) == 0
    assert "--depth" in capsys.readouterr().out


def test_module_runs_as_a_program(tmp_path):
    process = start_process(["entropy", "missing.npy"], tmp_path)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert said == "error: No such file or directory: missing.npy\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "flow Y.npy --depth two",
            "--depth must be a number, got two (Depth N >= 1, a real number",
        ),
        ("flow Y.npy --rank=2.5", "--rank must be a whole number, got 2.5 (Rank of X)"),
        ("flow Y.npy --t-end soon", "--t-end must be a number, got soon (End of time)"),
        ("langevin Y.npy --chains many", "--chains must be a whole number, got many (Number of"),
        ("balance Y.npy --depth 2.5", "--depth must be a whole number, got 2.5 (Number of layers)"),
        ("flow folder", "folder must be a file, got a folder"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_what_was_required(line, expected, capsys):
    np.save("Y.npy", np.eye(2))
    Path("folder").mkdir()
    assert expected in refusal(line.split(), capsys)


def test_the_matrix_zero_has_layers_and_no_nan(capsys):
    np.save("zero.npy", np.zeros((3, 2)))
    assert main(["balance", "zero.npy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["product_error"] == 0.0
    assert main(["entropy", "zero.npy"]) == 0
    assert "numerically 0" in capsys.readouterr().out
