"""One writer at a time; full disks, wrong calls and places that are no folders."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time

import pytest
import torch

import dln_geometry as dln
from tests.dynamics.store.runs import (
    RUNS,
    files_of,
    made,
    run,
    stored,
    told,
)


def test_results_never_replace_a_store(tmp_path):
    path = stored(tmp_path).rename(tmp_path / "run.npz")
    with pytest.raises(IsADirectoryError):
        dln.Trajectory(t=torch.ones(1)).save(path)
    state = path / "checkpoint" / "state"
    os.symlink(state, tmp_path / "link.npz")
    with pytest.raises(ValueError, match="path must not be the store of a run"):
        dln.Trajectory(t=torch.ones(1)).save(tmp_path / "link.npz")
    run("gradient_flow", RUNS["gradient_flow"][0], path)


@pytest.mark.parametrize("name", RUNS)
def test_one_writer_at_a_time(name, tmp_path):
    path, options = tmp_path / "state", RUNS[name][0]
    refused = []

    def second(fraction, info):
        if not refused:
            with pytest.raises(ValueError, match=f"one run at a time, got {path}") as caught:
                run(name, options, path)
            refused.append(str(caught.value))

    run(name, {**options, "progress": second}, path)
    assert str(os.getpid()) in refused[0]
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_lock_that_another_run_has_taken_is_seen(tmp_path):
    path, options = tmp_path / "state", RUNS["gradient_flow"][0]

    def stolen(fraction, info):
        (tmp_path / "state.lock").write_text(f"elsewhere 7 ? {'0' * 32}")

    with pytest.raises(ValueError, match="process 7 on elsewhere"):
        dln.gradient_flow(**options, store=path, progress=stolen)
    # It is not this run's to remove; it counts as left behind after ten minutes.
    with pytest.raises(ValueError, match="process 7 on elsewhere"):
        run("gradient_flow", options, path)
    os.utime(tmp_path / "state.lock", (time.time() - 601,) * 2)
    run("gradient_flow", options, path)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_what_dead_writers_left_is_removed(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    dead, host = int(done.stdout), socket.gethostname()
    (tmp_path / "state.lock").write_text(f"{host} {dead} ? {'0' * 32}")
    stored(tmp_path)
    inside = tmp_path / "state" / "checkpoint"
    left = [f".state.{host}~{dead}~00000000.part", f".state.{host}~{os.getpid()}~00000000.part"]
    kept = [f".state.{host}~1~00000000.part", f".state.other~{dead}~00000000.part",
            f".state2.{host}~{dead}~00000000.part", "mine.part", ".state.part"]  # fmt: skip
    before = {p.name for p in inside.iterdir()}
    for name in left + kept:
        (inside / name).write_text("half")
    stored(tmp_path)
    assert {p.name for p in inside.iterdir()} == {*before, *kept}


@pytest.mark.parametrize("name", ["gradient_flow", "langevin"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_what_was_written(call, name, tmp_path, monkeypatch):
    """Whichever write it is that fails."""
    options, path = RUNS[name][0], tmp_path / "state"
    want, real = run(name, options, tmp_path / "whole"), getattr(os, call)
    for before in range(0, 400, 9):
        left = [before]

        def full(*args, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            try:
                got, caught = getattr(dln, name)(**made(options), store=path, every=0.0), None
            except OSError as error:
                caught = error
        if caught is None:
            break
        assert caught.errno == errno.ENOSPC
        assert str(path) in str(caught)
        assert not list(tmp_path.rglob("*.part"))
    else:
        pytest.fail("the run must end once the disk has room")
    assert all(map(torch.equal, told(want), told(got)))


def test_wrong_calls_say_what_is_wrong(tmp_path):
    options = {**RUNS["gradient_flow"][0], "store": tmp_path / "state"}
    for change, error, message in (
        ({"store": 3}, TypeError, "store must be a path, got int"),
        ({"store": 3.5}, TypeError, "store must be a path, got float"),
        ({"every": -1.0}, ValueError, "every must be non-negative"),
        ({"every": {"days": 1}}, ValueError, "every must hold seconds or steps"),
        ({"every": {"steps": "a"}}, TypeError, r"every\['steps'\] must be a real number"),
        (
            {"option": 1},
            TypeError,
            r"gradient_flow\(\) got an unexpected keyword argument 'option'",
        ),
        ({"loss": None}, TypeError, "loss must have the methods"),
        ({"start": None}, TypeError, "start must be a sequence of matrices"),
    ):
        with pytest.raises(error, match=message):
            dln.gradient_flow(**{**options, **change})
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match=f"got the folder {tmp_path}"):
        dln.gradient_flow(**{**options, "store": tmp_path})


def test_a_store_is_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    with pytest.raises(ValueError, match="store must be a folder, got the device or pipe"):
        dln.gradient_flow(**RUNS["gradient_flow"][0], store=tmp_path / "pipe")
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("name", RUNS)
def test_a_cut_chunk_and_the_store_of_another_run_are_refused(name, tmp_path):
    options, path, other = RUNS[name][0], tmp_path / "state", tmp_path / "other"
    run(name, options, path)
    chunks = [p for p in files_of(path) if p.name != "zarr.json"]
    for file in chunks:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=str(path)):
            run(name, options, path)
        file.write_bytes(whole)
    foreign = "langevin" if name == "dyson" else "dyson"
    run(foreign, RUNS[foreign][0], other)
    with pytest.raises(ValueError, match="store must"):
        run(name, options, other)
    run(name, options, path)
