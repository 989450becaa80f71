from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from matplotlib.image import imread

import dln_geometry as dln
from dln_geometry.cli import completion, files, main, photograph, report
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.testing import assert_close

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every command runs in an empty folder, on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def low_rank(rng):
    """A 20 x 15 matrix of rank 2 with a mean, and where it is known."""
    x = 2.5 + rng.normal(size=(20, 2)) @ rng.normal(size=(2, 15))
    known = rng.random(x.shape) < 0.7
    # The largest places must be known for triples to have the whole shape.
    known[-1, -1] = True
    return x, known


def write_triples(path, x, known, first=0, header=None, delimiter=","):
    i, j = np.nonzero(known)
    lines = [
        delimiter.join((str(a + first), str(b + first), repr(float(x[a, b]))))
        for a, b in zip(i, j, strict=True)
    ]
    Path(path).write_text("\n".join([*([header] if header else []), *lines]) + "\n")


def refusal(arguments, capsys):
    """Run a command that must be refused; return the one line it says."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: ")
    return said.err


def start_process(arguments, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "dln_geometry", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# ---- the main job -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photograph")
    out, store = folder / "figure.png", folder / "store"
    photograph.run(out, store=store, quick=True)
    return out, store


def test_main_job_draws_a_figure(quick_job):
    picture = imread(quick_job[0])[..., :3]
    assert min(picture.shape[:2]) > 800
    # Not blank: black text, white paper, and the colours of the curves between.
    assert picture.min() < 0.1
    assert picture.max() == 1.0
    assert picture.std() > 0.1


def test_main_job_continues_from_its_store(quick_job, capsys):
    out, store = quick_job
    assert len(list(store.iterdir())) == 4
    again = Path("again.png")
    assert main(["--quick", "--store", str(store), "--out", str(again)]) == 0
    assert (imread(again) == imread(out)).all()
    said = capsys.readouterr().out
    assert "held-out" in said
    assert "figure: again.png" in said


def test_depth_completes_what_depth_one_leaves_grey():
    puzzle = photograph.hide(photograph.load_photograph(96), 0.6, torch.Generator().manual_seed(0))
    results = [
        photograph.complete(puzzle, depth, torch.Generator().manual_seed(1), None, lambda _: None)
        for depth in (1, 2, 3)
    ]
    # At depth 1 nothing is learnt about what is hidden: the start's error of 3e-4 stays.
    assert abs(results[0].held_out) < 0.01
    assert results[1].held_out < -3
    assert results[2].held_out < -3
    ranks = [report.effective_rank(r.trajectory.singular_values[-1]) for r in results]
    assert ranks[0] > 2 * ranks[1] > 2 * ranks[2]
    limit = photograph.STOP * 0.5 * float(puzzle.loss.values.square().sum())
    for result in results:
        loss = result.trajectory.loss
        assert loss[-1] <= limit < loss[-2]


def test_hidden_pixels_are_a_share_and_leave_no_trace_in_the_loss(generator):
    picture = torch.rand(12, 9, generator=generator)
    puzzle = photograph.hide(picture, 0.6, generator)
    assert int(puzzle.observed.sum()) == 108 - 65
    other = torch.where(puzzle.observed, picture, 0.5)
    twin = photograph.Puzzle(other, puzzle.observed, puzzle.mean, puzzle.unit)
    assert (twin.loss.values == puzzle.loss.values).all()
    # The centred pixels have the norm that their share of the whole picture has.
    norm = puzzle.loss.values.double().square().sum()
    assert_close(norm.float(), torch.tensor(43 / 108), ops=1000)


def test_interrupt_is_one_line_and_leaves_a_state(low_rank, tmp_path):
    x, known = low_rank
    np.save("x.npy", np.where(known, x, np.nan))
    # Without an end but the time of the clock: the interrupt comes in the middle.
    arguments = ["complete", "x.npy", "--until-loss", "0", "--store", "x.state"]
    process = start_process([*arguments, "--seconds", "60"], tmp_path)
    state = tmp_path / "x.state"
    for _ in range(600):
        if state.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted: the same command continues from x.state\n"
    held = torch.load(state, weights_only=True)["state"]["counts"]["steps"]
    assert held > 0


def test_interrupt_without_a_store_says_what_would_help(monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(photograph, "run", interrupt)
    assert main([]) == 130
    assert capsys.readouterr().err == "interrupted: give --store to be able to continue\n"


# ---- complete ---------------------------------------------------------------------------------


def test_complete_writes_matrix_trajectory_and_figure(low_rank, capsys):
    x, known = low_rank
    write_triples("x.csv", x, known, header="row,column,value")
    assert main(["complete", "x.csv", "--scale", "1e-4", "--until-loss", "1e-6"]) == 0
    matrix = np.load("x-completed.npy")
    assert matrix.shape == x.shape
    # The default is depth 3 from a small start: it finds the matrix, of rank 3 with its mean.
    assert np.linalg.norm(matrix - x) < 0.1 * np.linalg.norm(x - x.mean())
    path = Trajectory.load("x-completed.npz")
    assert path.depth == 3
    assert path.status == "loss"
    mean = matrix - path.final.matrix.numpy()
    assert_close(mean, np.full_like(mean, mean.mean()), scale=float(np.abs(matrix).max()))
    assert imread("x-completed.png").std() > 0.01
    said = capsys.readouterr().out
    known_entries = f"{int(known.sum())} known entries of 20 x 15"
    first = f"layout: triples (row, column, value) counted from 0; {known_entries}"
    assert said.splitlines()[0] == first
    for word in ("held-out rms error", "held-out error (dB)", "effective rank", "stopped by"):
        assert word in said
    mask = os.umask(0o022)
    os.umask(mask)
    for suffix in completion.WRITTEN:
        mode = stat.S_IMODE(Path(f"x-completed{suffix}").stat().st_mode)
        assert mode == 0o666 & ~mask, suffix
    assert not list(Path().glob("*.part"))


def test_complete_takes_every_kind_of_file(low_rank):
    x, known = low_rank
    holes = np.where(known, x, np.nan)
    i, j = np.nonzero(known)
    write_triples("a.csv", x, known)
    write_triples("b.tsv", x, known, first=1, delimiter="\t", header="user\titem\trating")
    write_triples("c.txt", x, known, delimiter=" ")
    Path("d.csv").write_text(
        "\n".join(";".join("" if np.isnan(v) else repr(float(v)) for v in row) for row in holes)
    )
    np.save("e.npy", holes)
    np.savez("f.npz", rows=i, cols=j, values=x[known], shape=np.array(x.shape))
    np.savez("g.npz", holes)
    sparse = scipy.sparse.coo_array((x[known], (i, j)), shape=x.shape)
    scipy.sparse.save_npz("h.npz", sparse.tocsr())
    scipy.io.mmwrite("i.mtx", sparse, precision=17)
    for path in sorted(Path().iterdir()):
        entries = files.read_entries(path, one_based=path.name == "b.tsv")
        assert entries.shape == x.shape, path
        read = np.full(x.shape, np.nan)
        read[entries.rows, entries.cols] = entries.values
        assert np.array_equal(read, holes, equal_nan=True), path


def test_layout_settles_what_a_table_of_three_columns_is(tmp_path):
    table = tmp_path / "x.csv"
    table.write_text("0,1,5\n1,0,7\n")
    assert files.read_entries(table).shape == (2, 2)
    assert files.read_entries(table, layout="matrix").shape == (2, 3)
    assert files.read_entries(table, shape=(4, 3)).shape == (4, 3)
    table.write_text("# ratings\n1\t2\t5\t881250949\n2\t1\t3\t881250950\n")
    entries = files.read_entries(table, layout="triples", one_based=True)
    assert entries.values.tolist() == [5, 3]
    assert entries.rows.tolist() == [0, 1]


ROWS = [(k % 7, k % 5, 0.5 * k + 1) for k in range(30)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        # User, item, rating and time.
        ([(*row, 881250949 + k) for k, row in enumerate(ROWS)], "4 columns of which the first two"),
        ([*ROWS, (-1, 2, 3.0)], "look like row and column in 30 of 31 lines"),
        ([*ROWS, (1.5, 2, 3.0)], "look like row and column in 30 of 31 lines"),
        ([*ROWS, (1, 2, "")], "look like row and column in 31 of 31 lines"),
        ([*ROWS, ("", 2, 3.0)], "look like row and column in 30 of 31 lines"),
        ([(k + 0.5, *row) for k, row in enumerate(ROWS)], "30 x 4 numbers without a hole"),
        ([(0.5, 1), (1, 2)], "2 x 2 numbers without a hole"),
    ],
)
def test_a_doubtful_layout_must_be_told(rows, said, capsys):
    Path("x.csv").write_text("\n".join(",".join(str(cell) for cell in row) for row in rows) + "\n")
    error = refusal(["complete", "x.csv"], capsys)
    assert said in error
    assert "give --layout triples or --layout matrix" in error
    assert list(Path().iterdir()) == [Path("x.csv")]
    # Said outright, anything goes.
    entries = files.read_entries(Path("x.csv"), layout="matrix")
    assert entries.shape == (len(rows), len(rows[0]))
    if len(rows[0]) == 4 and rows[0][0] == 0:
        assert files.read_entries(Path("x.csv"), layout="triples").shape == (7, 5)


def test_layouts_without_doubt_are_named(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array(ROWS))
    entries = files.read_entries(path)
    assert entries.shape == (7, 5)
    assert entries.layout == "triples (row, column, value) counted from 0"
    np.save(path, np.array([[0.5, 1, 2, 3], [np.nan, 1, 2, 3], [4, 5, 6, 7]]))
    assert files.read_entries(path).layout == "matrix"
    # Ratings with holes are no places.
    np.save(path, np.array([[4, np.nan, 2], [np.nan, 1, 2], [3, 5, np.nan]]))
    assert files.read_entries(path).shape == (3, 3)
    path = path.with_suffix(".mtx")
    scipy.io.mmwrite(path, scipy.sparse.coo_array(([1.0, 2.0], ([0, 1], [1, 0]))))
    assert files.read_entries(path).layout == "sparse matrix"
    scipy.io.mmwrite(path, np.eye(2))
    with pytest.raises(ValueError, match="2 x 2 numbers without a hole"):
        files.read_entries(path)


def test_zeros_that_a_sparse_matrix_stores_are_observed(tmp_path):
    path = tmp_path / "x.npz"
    scipy.sparse.save_npz(path, scipy.sparse.coo_array(([0.0, 2.0], ([0, 1], [1, 0]))))
    assert sorted(files.read_entries(path).values.tolist()) == [0.0, 2.0]


@pytest.mark.parametrize(
    "options",
    [
        ["--depth", "1"],
        ["--depth", "2.5", "--rank", "4"],
        ["--depth", "inf", "--rank", "3", "--t-end", "0.5"],
        ["--rank", "1"],
        ["--no-center", "--holdout", "0", "--until-gradient", "1"],
    ],
)
def test_complete_ends_by_itself(options, low_rank, capsys):
    x, known = low_rank
    np.save("x.npy", np.where(known, x, np.nan))
    assert main(["complete", "x.npy", "--out", "y", *options]) == 0
    assert np.isfinite(np.load("y.npy")).all()
    assert ("held-out" in capsys.readouterr().out) == ("0" not in options)


def test_infinite_depth_warns_of_what_stands_still(low_rank, capsys):
    x, known = low_rank
    np.save("x.npy", np.where(known, x, np.nan))
    begin = ["complete", "x.npy", "--t-end", "0.1", "--no-center"]
    for depth, rank, spaces in (
        ("inf", "3", "column space and row space"),
        # Twenty rows: the columns do not span.
        ("inf", "15", "column space"),
        ("3", "3", None),
    ):
        assert main([*begin, "--depth", depth, "--rank", rank]) == 0
        said = capsys.readouterr().err
        if spaces is None:
            assert said == ""
            continue
        assert said == (
            f"warning: at infinite depth a flow of rank {rank} keeps the {spaces} "
            "of its random start\n"
        )
        start = dln.Collapsed.random(
            x.shape, int(rank), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        u, _, vh = np.linalg.svd(start.matrix.numpy(), full_matrices=False)
        u, vh = u[:, : int(rank)], vh[: int(rank)]
        y = np.load("x-completed.npy")
        assert_close(u @ (u.T @ y), y, scale=float(np.abs(y).max()), ops=1000)
        assert_close((y @ vh.T) @ vh, y, scale=float(np.abs(y).max()), ops=1000)


def test_complete_continues_to_the_same_bits(low_rank):
    x, known = low_rank
    np.save("x.npy", np.where(known, x, np.nan))
    arguments = ["complete", "x.npy", "--until-loss", "1e-5"]
    assert main([*arguments, "--out", "whole"]) == 0
    stored = [*arguments, "--store", "state"]
    assert main([*stored, "--out", "first"]) == 0
    assert main([*stored, "--out", "second"]) == 0
    assert np.array_equal(np.load("whole.npy"), np.load("first.npy"))
    assert np.array_equal(np.load("whole.npy"), np.load("second.npy"))


def test_out_names_the_results_or_their_folder(low_rank):
    x, known = low_rank
    np.save("x.npy", np.where(known, x, np.nan))
    quick = ["complete", "x.npy", "--until-loss", "0.1"]
    Path("folder").mkdir()
    for out, written in (
        ("folder", "folder/x-completed"),
        ("new/name", "new/name"),
        ("z.npy", "z"),
    ):
        assert main([*quick, "--out", out]) == 0
        for suffix in completion.WRITTEN:
            assert Path(written + suffix).is_file()


# ---- balance and entropy ----------------------------------------------------------------------


def test_balance_writes_balanced_layers(rng, capsys):
    x = rng.normal(size=(5, 4))
    np.save("x.npy", x)
    before = os.umask(0o022)
    os.umask(before)
    for more in ([], ["--widths", "4,6,7,5"], ["--widths", "6", "--haar", "--seed", "3"]):
        assert main(["balance", "x.npy", "--depth", "3", "--out", "w/W.npz", *more]) == 0
        assert stat.S_IMODE(Path("w/W.npz").stat().st_mode) == 0o666 & ~before
        with np.load("w/W.npz") as archive:
            assert archive.files == ["W_1", "W_2", "W_3"]
            layers = [torch.from_numpy(archive[name]) for name in archive.files]
        assert bool(dln.is_balanced(layers))
        assert_close(dln.end_to_end(layers), x)
    assert [tuple(w.shape) for w in layers] == [(6, 4), (6, 6), (5, 6)]
    assert "W_3" in capsys.readouterr().out


def test_entropy_is_printed_for_machines_and_people(rng, capsys):
    x = rng.normal(size=(4, 4))
    np.savetxt("x.csv", x, delimiter=",", fmt="%.17g")
    assert main(["entropy", "x.csv", "--depth", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    point = dln.EndToEnd.of(x, 4)
    assert_close(found["entropy"], float(dln.entropy(point)))
    assert_close(found["singular_values"], point.s)
    share = point.s / point.s.sum()
    assert_close(found["effective_rank"], float((-(share * share.log()).sum()).exp()))
    assert main(["entropy", "x.csv", "--depth", "4"]) == 0
    said = capsys.readouterr().out
    assert f"{found['entropy']:.10g}" in said
    assert "4 (numerical)" in said
    assert main(["entropy", "x.csv", "--rank", "3"]) == 0
    assert "3 (given)" in capsys.readouterr().out


def test_entropy_counts_the_numerical_rank(rng, capsys):
    x = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 5))
    np.save("x.npy", x)
    assert main(["entropy", "x.npy", "--depth", "3", "--json", "--widths", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    point = dln.EndToEnd.of(x, 3, rank=2)
    assert len(found["singular_values"]) == found["rank"] == 2
    assert_close(found["entropy"], float(dln.entropy(point, widths=5)))
    # Minus infinity is no JSON.
    np.save("zero.npy", np.zeros((3, 3)))
    assert main(["entropy", "zero.npy", "--rank", "3", "--json", "--depth", "inf"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["entropy"] is None
    assert found["depth"] == "inf"
    assert found["effective_rank"] == 0


# ---- what is refused --------------------------------------------------------------------------

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
        (["complete"], "data"),
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
        (["complete", "equal.csv"], "different from their mean"),
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
        (["complete", "one.csv"], "must be at least 2, for their mean is taken away, got 1 of 1"),
        (["complete", "one.csv", "--no-center", "--holdout", "0.999"], "at least 1, got 0 of 1"),
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
    assert said in line
    assert "allow_pickle" not in line
    assert set(Path().iterdir()) == before


def test_a_store_of_another_run_is_refused(low_rank, capsys):
    x, known = low_rank
    np.save("x.npy", np.where(known, x, np.nan))
    stored = ["complete", "x.npy", "--until-loss", "0.1", "--store", "state"]
    assert main(stored) == 0
    capsys.readouterr()
    assert "same run" in refusal([*stored, "--depth", "2"], capsys)


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
