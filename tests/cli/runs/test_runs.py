from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray
from matplotlib.image import imread
from safetensors.numpy import load_file

import dln_geometry as dln
from dln_geometry.cli import main
from dln_geometry.testing import assert_close
from tests.cli.routes import refusal


def told(arguments, capsys):
    """Run a command for machines; return its object of JSON, in which every number is finite."""
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    return json.loads(said.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture
def target(rng):
    y = rng.normal(size=(4, 3))
    np.save("Y.npy", y)
    return y


def test_flow_reaches_the_matrix(target, capsys):
    found = told(["flow", "Y.npy", "--depth", "3", "--out", "run.npz", "--figure", "f.pdf"], capsys)
    assert found["share_of_loss_left"] <= 1e-6
    assert found["shape"] == [4, 3]
    assert found["written"] == ["run.npz", "f.pdf"]
    s = np.linalg.svd(target, compute_uv=False)
    assert np.abs(found["singular_values"] - s).max() < 3e-3 * s.max()
    path = dln.Trajectory.load("run.npz")
    assert path.depth == 3
    assert float(path.loss[-1]) == found["loss"]
    assert Path("f.pdf").read_bytes().startswith(b"%PDF")


def test_flow_starts_where_it_is_told(target, capsys):
    np.save("S.npy", 0.1 * np.eye(4, 3))
    arguments = ["flow", "Y.npy", "--start", "S.npy", "--t-end", "0.5", "--save", "6"]
    found = told([*arguments, "--depth", "2", "--out", "run.csv"], capsys)
    start = dln.EndToEnd.of(0.1 * np.eye(4, 3), 2)
    path = dln.gradient_flow(dln.losses.Quadratic(target), start, t_end=0.5)
    assert_close(found["loss"], float(path.loss[-1]), ops=1e6)
    table = pd.read_csv("run.csv")
    assert table.time.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert {"loss", "defect", *(f"singular_values_{k}" for k in (1, 2, 3))} <= set(table)
    assert_close(table.loss.iloc[-1], found["loss"])


@pytest.mark.parametrize("suffix", [".nc", ".csv", ".tsv", ".parquet", ".pt", ".safetensors"])
def test_runs_are_written_in_every_format(suffix, target, capsys):
    arguments = ["langevin", "Y.npy", "--chains", "3", "--t-end", "0.1", "--dt", "0.01"]
    found = told([*arguments, "--save", "5", "--seed", "4", "--out", f"run{suffix}"], capsys)
    expected = np.array(found["mean_singular_values"])
    if suffix == ".nc":
        data = xarray.load_dataset("run.nc")
        assert dict(data.sizes) == {"time": 5, "batch": 3, "mode": 3}
        s = data.singular_values.values
    elif suffix in (".pt", ".safetensors"):
        read = load_file if suffix == ".safetensors" else torch.load
        s = np.asarray(read(f"run{suffix}")["singular_values"])
    else:
        read = pd.read_parquet if suffix == ".parquet" else pd.read_csv
        table = read(f"run{suffix}", **({"sep": "\t"} if suffix == ".tsv" else {}))
        assert table.batch.tolist() == [0, 1, 2] * 5
        s = table[[f"singular_values_{k}" for k in (1, 2, 3)]].to_numpy().reshape(5, 3, 3)
    assert_close(s[-1].mean(0), expected)


def test_langevin_without_a_loss_is_random_by_its_seed(capsys):
    arguments = ["langevin", "--shape", "4,3", "--rank", "2", "--t-end", "0.1", "--dt", "0.01"]
    first, again = (told([*arguments, "--seed", "1"], capsys) for _ in range(2))
    assert first["mean_singular_values"] == again["mean_singular_values"]
    assert len(first["mean_singular_values"]) == 2
    assert told(arguments, capsys)["mean_singular_values"] != first["mean_singular_values"]
    single = told([*arguments, "--dtype", "float32", "--depth", "inf"], capsys)
    assert single["depth"] == "inf"
    assert single["spread_of_singular_values"] is None
    assert single["mean_loss"] is None


def test_dyson_is_the_motion_that_is_asked_for(capsys):
    # Infinite index from 0: the zeros of a Hermite polynomial.
    found = told(["dyson", "--particles", "5", "--index", "inf", "--t-end", "2"], capsys)
    expected = dln.laws.hermite_zeros(5) * math.sqrt(2.0)
    assert np.abs(np.array(found["mean_positions"]) - expected.numpy()).max() < 1e-6
    assert found["index"] == "inf"
    arguments = ["dyson", "--shape", "5,3", "--t-end", "0.1", "--dt", "0.01", "--paths", "4"]
    found = told([*arguments, "--out", "d.nc", "--figure", "d.png"], capsys)
    assert (found["particles"], found["index"], found["motion_of"]) == (3, 1.0, "singular values")
    assert xarray.load_dataset("d.nc").states.shape == (11, 4, 3)
    assert imread("d.png").std() > 0.05
    found = told([*arguments, "--depth", "3", "--beta", "5", "--seed", "3"], capsys)
    options = {"beta": 5.0, "shape": (5, 3), "t_end": 0.1, "dt": 0.01}
    path = dln.dln_dyson(torch.ones(4, 3).double(), 3, **options, generator=3)
    assert_close(found["mean_positions"], path.final.mean(0))


def test_geodesic_is_measured_and_drawn(rng, capsys):
    x = rng.normal(size=(3, 3)) + 4 * np.eye(3)
    y = x + 0.3 * rng.normal(size=(3, 3))
    np.save("X.npy", x)
    torch.save({"weight": torch.from_numpy(y)}, "Y.pt")
    found = told(["geodesic", "X.npy", "Y.pt", "--depth", "3", "--out", "g.npz"], capsys)
    p, q = dln.EndToEnd.of(x, 3), dln.EndToEnd.of(y, 3)
    assert_close(found["distance"], float(dln.distance(p, q)))
    with np.load("g.npz") as held:
        assert held["matrix"].shape == (11, 3, 3)
        assert_close(held["matrix"][0], x, ops=1e4)
    assert main(["geodesic", "X.npy", "Y.pt", "--figure", "g.svg", "--points", "3"]) == 0
    assert main(["geodesic", "X.npy", "Y.pt", "--figure", "g.svg"]) == 0  # replaces its own
    assert "distance" in capsys.readouterr().out


FLOW = ["flow", "Y.npy"]
CHAIN = ["langevin", "Y.npy"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*FLOW, "--depth", "0.5"], "--depth must be a real number >= 1"),
        ([*FLOW, "--rank", "9"], "--rank must lie between 1 and 3"),
        ([*FLOW, "--scale", "0"], "--scale must be positive"),
        ([*FLOW, "--decay", "-1"], "--decay must be"),
        ([*FLOW, "--t-end", "nan"], "--t-end must be"),
        ([*FLOW, "--until-loss", "-1"], "--until-loss must be"),
        ([*FLOW, "--save", "5"], "--save must come with --t-end"),
        ([*FLOW, "--rtol", "2"], "--rtol must lie in (0, 1), got 2"),
        ([*FLOW, "--out", "run.xyz"], "--out must end in one of .npz, .nc"),
        ([*FLOW, "--figure", "run.npz"], "--figure must end in one of .png"),
        ([*FLOW, "--out", "x.png", "--figure", "x.png"], "--out must end in"),
        ([*FLOW, "--out", "Y.npz", "--store", "Y.npy"], "--store must not be the data"),
        ([*FLOW, "--dtype", "int8"], "--dtype must be one of float64, float32, got int8"),
        ([*FLOW, "--device", "tpu"], "--device must be one that is there, got"),
        ([*FLOW, "--device", "meta"], "--device must be one that is there"),
        ([*FLOW, "--seed", "-1"], "--seed must be a seed"),
        ([*FLOW, "--start", "X.npy"], "--start must be of shape 4 x 3, got 2 x 2"),
        ([*FLOW, "--key", "a"], "--key must name one of the matrices"),
        (["flow", "zero.npy"], "different from 0"),
        (["flow", "missing.npy"], "No such file or directory: missing.npy"),
        (["flow"], "argument 'matrix'"),
        (["langevin"], "--shape must be given, got neither"),
        ([*CHAIN, "--shape", "2,2"], "got both"),
        (["langevin", "--shape", "2"], "--shape must be two positive integers"),
        ([*CHAIN, "--beta", "0"], "--beta must be positive"),
        ([*CHAIN, "--kappa", "-1"], "--kappa must be"),
        ([*CHAIN, "--chains", "0"], "--chains must be"),
        ([*CHAIN, "--dt", "1e-12"], "--dt must make at most"),
        ([*CHAIN, "--t-end", "0"], "--t-end must be positive"),
        ([*CHAIN, "--save", "1"], "--save must be"),
        ([*CHAIN, "--method", "euler"], "--method must be"),
        ([*CHAIN, "--widths", "1"], "--widths"),
        (["dyson", "--index", "0"], "--index must be positive"),
        (["dyson", "--start", "1,x"], "--start must be numbers with commas between, got 1,x"),
        (["dyson", "--start", "1,nan"], "--start must be finite"),
        (["dyson", "--particles", "3", "--start", "1,2"], "--particles must be 2"),
        (["dyson", "--particles", "9", "--shape", "3,4"], "--particles must be 3"),
        (["dyson", "--scheme", "euler"], "--scheme must be one of isospectral"),
        (["dyson", "--scheme", "exact", "--index", "3.3"], "--scheme"),
        (["dyson", "--scheme", "exact", "--shape", "3,3"], "--scheme must be left out"),
        (["dyson", "--depth", "3", "--index", "2"], "--index must be left out"),
        (["dyson", "--depth", "0"], "--depth must be a real number >= 1"),
        (["dyson", "--paths", "0"], "--paths must be"),
        (["geodesic", "Y.npy"], "argument 'other'"),
        (["geodesic", "Y.npy", "X.npy"], "one shape, got 4 x 3 and 2 x 2"),
        (["geodesic", "X.npy", "low.npy"], "one rank, got 2 and 1"),
        (["geodesic", "zero.npy", "low.npy"], "zero.npy must hold a matrix different from 0"),
        (["geodesic", "X.npy", "X.npy", "--points", "1"], "--points must be"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, list) else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, said, target, capsys):
    np.save("X.npy", np.array([[1.0, 2.0], [3.0, 5.0]]))
    np.save("low.npy", np.ones((2, 2)))
    np.save("zero.npy", np.zeros((2, 2)))
    before = set(Path().iterdir())
    line = refusal(arguments, capsys)
    assert said.lower() in line.lower()
    assert set(Path().iterdir()) == before
