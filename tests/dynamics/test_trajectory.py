"""A trajectory survives its file, and exports to xarray."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses


def flows(generator):
    y = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    loss = losses.Quadratic(y)
    collapsed = dln.Collapsed.random((5, 4), 3, 3, generator=generator, dtype=torch.float64)
    batch = dln.Collapsed.random((5, 4), 3, math.inf, batch=(2,), generator=generator)
    return [
        dln.gradient_flow(loss, collapsed, t_end=0.4, keep_points=True),
        dln.gradient_flow(loss, batch, t_end=0.4),
        dln.gradient_flow(loss, [torch.ones(3, 4), torch.eye(5, 3)], t_end=0.4),
        dln.gradient_flow(loss, dln.EndToEnd.of(y * 0.5, 1), t_end=0.4),
    ]


def tensors(point):
    if isinstance(point, dln.Collapsed):
        return (point.L, point.R)
    if isinstance(point, dln.EndToEnd):
        return (point.u, point.s, point.vh)
    return point


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


def test_xarray_names_its_axes(generator):
    single, batch, layered, _ = (path.to_xarray() for path in flows(generator))
    assert single["singular_values"].dims == ("time", "mode")
    assert batch["singular_values"].dims == ("time", "batch", "mode")
    assert batch["loss"].sizes == {"time": 101, "batch": 2}
    assert layered.attrs["depth"] == 2.0
    assert single.attrs["status"] == "t_end"
    np.testing.assert_array_equal(single["time"], np.unique(single["time"]))


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
