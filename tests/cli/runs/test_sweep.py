"""`dln sweep`: a command for every combination of values of its options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import xarray

from dln_geometry.cli import main

CONFIG = """
command = "entropy"
arguments = ["Y.csv"]
[axes]
depth = [2, 3.5]
"""


@pytest.fixture(autouse=True)
def matrix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("Y.csv").write_text("2.5,0.1\n0.3,1.5\n")
    Path("sweep.toml").write_text(CONFIG)


def test_a_sweep_holds_what_the_command_says(capsys):
    assert main(["sweep", "sweep.toml", "--out", "sweep.nc", "--store", "sweep.zarr"]) == 0
    found = xarray.open_dataset("sweep.nc", engine="scipy")
    capsys.readouterr()
    for depth in (2.0, 3.5):
        assert main(["entropy", "Y.csv", "--depth", str(depth), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert float(found["entropy"].sel(depth=depth)) == said["entropy"]
    assert main(["sweep", "sweep.toml", "--store", "sweep.zarr", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["values"]["entropy"] == found["entropy"].values.tolist()
    Path("sweep.toml").write_text(CONFIG.replace("3.5", "4"))
    assert main(["sweep", "sweep.toml", "--store", "sweep.zarr"]) == 2
    assert "store must belong to the same run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("entropy", "entropi"), "command must be one of"),
        (("[axes]", "[axis]"), "must hold command, options, axes, arguments, got axis"),
        (("depth = [2, 3.5]", ""), "axes must hold at least one option"),
        (("depth = [2, 3.5]", "depth = 2"), "axes.depth must be a list"),
        (("depth = [2, 3.5]", "depth = [2, 2]"), "depth must hold different"),
        (("[axes]", "[options]\ndepth = 2\n[axes]"), "depth must stand in options or in axes"),
        (("command", "= command"), "must be a TOML file"),
        (("arguments = [", "arguments = 3 # ["), "arguments must be a list"),
    ],
)
def test_wrong_files_say_what_is_wrong(change, said, capsys):
    Path("sweep.toml").write_text(CONFIG.replace(*change))
    assert main(["sweep", "sweep.toml"]) == 2
    assert said in capsys.readouterr().err


def test_a_run_that_fails_is_named(capsys):
    Path("sweep.toml").write_text(CONFIG.replace("3.5", "0.5"))
    assert main(["sweep", "sweep.toml"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "run failed at depth = 0.5" in said
