from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import dln_geometry as dln
from dln_geometry.cli import main
from dln_geometry.dynamics.store import Store
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.testing import assert_close
from tests.cli.routes import refusal, run_code, start_process, write_triples

SUFFIXES = (".npy", ".npz", ".png", ".json")


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
    for suffix in SUFFIXES:
        mode = stat.S_IMODE(Path(f"x-completed{suffix}").stat().st_mode)
        assert mode == 0o666 & ~mask, suffix
    assert not list(Path().glob("*.part"))


@pytest.mark.parametrize(
    "options",
    [
        ["--flow", "--depth", "1"],
        ["--flow", "--depth", "2.5", "--rank", "4"],
        ["--depth", "inf", "--rank", "3", "--t-end", "0.5"],
        ["--flow", "--rank", "1"],
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
        for suffix in SUFFIXES:
            assert Path(written + suffix).is_file()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_interrupt_is_one_line_and_leaves_a_state(number, code, low_rank, tmp_path):
    x, known = low_rank
    np.save("x.npy", np.where(known, x, np.nan))
    # Without an end but the time of the clock and the bound of evaluations, which takes half a
    # minute: the interrupt comes in the middle.
    arguments = ["complete", "x.npy", "--until-loss", "0", "--store", "x.state"]
    begun = time.monotonic()
    process = start_process([*arguments, "--seconds", "60"], tmp_path)
    state = tmp_path / "x.state"
    # The line comes before the first step, which takes far less than what came before it.
    assert process.stdout.readline().startswith("layout: ")
    time.sleep(min(10.0, 0.5 * (time.monotonic() - begun)))
    process.send_signal(number)
    try:
        _, said = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == code
    assert said == "interrupted: the same command continues from x.state\n"
    held = Store(state, {}).read()["state"]["counts"]["steps"]
    assert held > 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_results_replace_nothing_but_earlier_results(suffix, low_rank, capsys):
    x, known = low_rank
    np.save("x.npy", np.where(known, x, np.nan))
    quick = ["complete", "x.npy", "--until-loss", "0.5", "--out", "y"]
    mine = Path("y" + suffix)
    mine.write_text("mine")
    assert "--force" in refusal(quick, capsys)
    assert mine.read_text() == "mine"
    assert main([*quick, "--force"]) == 0
    first = Path("y.npy").read_bytes()
    assert main([*quick, "--depth", "2"]) == 0
    assert Path("y.npy").read_bytes() != first


def test_results_store_and_data_are_apart(low_rank, capsys):
    x, known = low_rank
    np.save("x.npy", np.where(known, x, np.nan))
    before = Path("x.npy").read_bytes()
    Path("link.npy").symlink_to("x.npy")
    for more, said in (
        (["--out", "x", "--force"], "must not overwrite the data"),
        (["--out", "link", "--force"], "must not overwrite the data"),
        (["--store", "x.npy"], "--store must not be the data"),
        (["--store", "x-completed.npz", "--force"], "must not overwrite the data or the store"),
        (["--store", "."], "--store must be a new name or a folder written by a run"),
    ):
        assert said in refusal(["complete", "x.npy", *more], capsys)
    assert Path("x.npy").read_bytes() == before


def test_a_full_disk_ends_a_run_with_one_line(low_rank, tmp_path):
    x, known = low_rank
    np.save(tmp_path / "x.npy", np.where(known, x, np.nan))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from dln_geometry.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "sys.exit(main(['complete', 'x.npy', '--until-loss', '0.5', *sys.argv[1:]]))"
    )
    for more in ([], ["--store", "state"]):
        done = run_code(code, more, tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert done.stderr.startswith("error: ")
        assert not [path for path in tmp_path.iterdir() if path.suffix in (".part", ".npy")][1:]


def test_a_store_of_another_run_is_refused(low_rank, capsys):
    x, known = low_rank
    np.save("x.npy", np.where(known, x, np.nan))
    stored = ["complete", "x.npy", "--until-loss", "0.1", "--store", "state"]
    assert main(stored) == 0
    capsys.readouterr()
    assert "same run" in refusal([*stored, "--depth", "2"], capsys)
