"""A trajectory survives its file, and damaged files are refused."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.dynamics.store import Store
from dln_geometry.support import written_whole
from tests.dynamics.routes import flows, short_run, tensors


def test_saved_and_loaded_is_the_same(tmp_path, generator):
    for k, path in enumerate(flows(generator)):
        written = path.save(tmp_path / f"run{k}")
        assert written.suffix == ".npz"
        again = dln.Trajectory.load(written)
        for name in ("t", "loss", "singular_values", "defect"):
            assert torch.equal(getattr(again, name), getattr(path, name))
        assert type(again.final) is type(path.final)
        for got, want in zip(tensors(again.final), tensors(path.final), strict=True):
            assert torch.equal(got, want)
        assert again.status == path.status
        assert again.depth == path.depth
        assert again.stats == path.stats
        assert (again.points is None) == (path.points is None)
        if path.points is not None:
            assert torch.equal(again.points[-1].R, path.points[-1].R)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".npz"] * 4


def test_a_pair_in_the_normalized_metric_stays_so(tmp_path, generator):
    point = dln.Collapsed.random((3, 2), 2, 3, generator=generator).replace(normalized=True)
    path = dln.gradient_flow(losses.Quadratic(torch.eye(3, 2)), point, t_end=0.1)
    assert path.final.normalized
    assert dln.Trajectory.load(path.save(tmp_path / "run")).final.normalized


def test_a_record_is_saved_and_exported(tmp_path, generator):
    path, *_ = flows(generator)
    again = dln.Trajectory.load(path[2].save(tmp_path / "record"))
    assert torch.equal(again.singular_values, path.singular_values[2])
    assert torch.equal(again.final.L, path.points[2].L)
    assert path[2].to_xarray()["singular_values"].dims == ("mode",)


def test_files_that_are_no_trajectory(tmp_path):
    with pytest.raises(FileNotFoundError):
        dln.Trajectory.load(tmp_path / "missing.npz")
    text = tmp_path / "text.npz"
    text.write_text("not numpy")
    other = tmp_path / "other.npz"
    np.savez(other, a=np.ones(3))
    for path in (text, other):
        with pytest.raises(ValueError, match="must be a saved trajectory"):
            dln.Trajectory.load(path)


def test_the_suffix_may_be_left_out(tmp_path):
    assert short_run().save(tmp_path / "run") == tmp_path / "run.npz"
    assert len(dln.Trajectory.load(tmp_path / "run")) == 3
    # A folder of that name is not in the way.
    (tmp_path / "run").mkdir()
    assert len(dln.Trajectory.load(tmp_path / "run")) == 3
    with pytest.raises(FileNotFoundError, match="other"):
        dln.Trajectory.load(tmp_path / "other")


def test_damaged_files_are_one_kind_of_error(tmp_path):
    whole = short_run().save(tmp_path / "run").read_bytes()
    path = tmp_path / "damaged.npz"
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="must be a saved trajectory, got") as caught:
            dln.Trajectory.load(path)
        assert "allow_pickle" not in str(caught.value)
    path.write_bytes(whole[:200] + bytes(b ^ 255 for b in whole[200:]))
    with pytest.raises(ValueError, match="must be a saved trajectory, got"):
        dln.Trajectory.load(path)


GOOD = {"format": 1, "status": "t_end", "stats": {}, "depth": "1.0"}


@pytest.mark.parametrize(
    "meta",
    [
        {},
        3,
        [],
        "text",
        {**GOOD, "format": None},
        {**GOOD, "depth": "deep"},
        {**GOOD, "points": 2.5},
        {**GOOD, "points": 1, "point0": 4},
        {**GOOD, "final": {"kind": "collapsed", "depth": "1"}},
        {**GOOD, "final": {}},
        {"format": 1},
    ],
)
def test_damaged_descriptions(meta, tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, t=np.arange(3.0), meta=np.array(json.dumps(GOOD)))
    assert len(dln.Trajectory.load(path)) == 3
    np.savez(path, t=np.arange(3.0), meta=np.array(json.dumps(meta)))
    with pytest.raises(ValueError, match="must be a saved trajectory, got"):
        dln.Trajectory.load(path)


def test_what_else_is_no_trajectory(tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, meta=np.array(json.dumps(GOOD)))
    with pytest.raises(ValueError, match="must be a saved trajectory, got .* 't'"):
        dln.Trajectory.load(path)
    np.savez(path, t=np.arange(3.0), meta=np.array(json.dumps({**GOOD, "format": 9})))
    with pytest.raises(ValueError, match="must be a trajectory of format <= 2, got 9"):
        dln.Trajectory.load(path)
    np.save(tmp_path / "array.npy", np.ones(3))
    for other in (tmp_path / "array.npy", tmp_path):
        with pytest.raises(ValueError, match="must be a saved trajectory, got"):
            dln.Trajectory.load(other)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_the_umask_asks_for(mask, tmp_path):
    before = os.umask(mask)
    try:
        paths = [short_run().save(tmp_path / "run"), tmp_path / "new" / "state"]
        Store(paths[1], {}).save({"steps": 3})
        paths[1] = paths[1] / "checkpoint" / "state"
        # Also where there was a file.
        short_run().save(paths[0])
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o666 & ~mask] * 2


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted():
        with written_whole(path) as handle:
            handle.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(TypeError):
        dln.Trajectory(t=torch.ones(1), stats={"x": object()}).save(tmp_path / "run")
    with pytest.raises(Exception, match="pickle"):
        Store(tmp_path / "state", {}).save({"x": lambda: 0})
    assert [p.name for p in (tmp_path / "state" / "checkpoint").iterdir()] == ["zarr.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "state"]
    assert path.read_text() == "old"


def test_trajectories_that_do_not_fit_are_refused(tmp_path, generator):
    path = next(iter(flows(generator)))
    batched = dln.Trajectory(t=torch.arange(2.0), loss=torch.ones(2, 3), status=["a", "b", "c"])
    for whole, change, message in (
        (path, {"loss": path.loss[:-1]}, "loss must have shape"),
        (path, {"loss": torch.ones(len(path), dtype=torch.int64)}, "loss must hold real numbers"),
        (path, {"t": path.t.bool()}, "t must have shape"),
        (path, {"t": path.t.reshape(-1, 1)}, "t must have shape"),
        (path, {"points": path.points[1:]}, "points must be as many as times"),
        (path, {"stats": [1]}, "stats must hold"),
        (path, {"status": None}, "status must have one of 2 forms"),
        (batched, {"status": ["a"]}, "status must name 3 samples"),
        (batched, {"singular_values": torch.ones(2, 4, 5)}, "singular_values must have shape"),
    ):
        assert len(dln.Trajectory.load(whole.save(tmp_path / "run"))) == len(whole)
        written = replace(whole, **change).save(tmp_path / "run")
        with pytest.raises(ValueError, match=f"saved trajectory, got {written}: .*{message}"):
            dln.Trajectory.load(written)


@pytest.mark.parametrize("suffix", ["csv", "nc", "pt", "zarr", "json", "npy", "best"])
def test_the_suffix_of_another_format_is_refused(suffix, tmp_path):
    with pytest.raises(ValueError, match=rf"\.npz or have no suffix, .*\.{suffix}"):
        short_run().save(tmp_path / f"run.{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "file"),
    [("lr0.1", "lr0.1.npz"), ("run.NPZ", "run.NPZ"), ("a.csv.npz", "a.csv.npz"), ("v", "v.npz")],
)
def test_a_number_after_a_dot_is_no_suffix(name, file, tmp_path):
    written = short_run().save(tmp_path / name)
    assert written.name == file
    assert len(dln.Trajectory.load(tmp_path / name)) == len(short_run())
