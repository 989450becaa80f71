"""The page on the command line says what the commands do."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from dln_geometry.cli import main
from dln_geometry.cli.program import WORKERS
from tests.cli.routes import PAGE, documented_keys, write_triples


@pytest.fixture
def files(low_rank, generator):
    np.savetxt("X.csv", np.diag([2.0, 1.0]), delimiter=",")
    np.savetxt("Y.csv", np.array([[1.5, 0.2], [0.1, 1.0]]), delimiter=",")
    write_triples("r.csv", *low_rank)
    layers = {f"{k}.weight": torch.randn(3, 3, generator=generator) for k in range(2)}
    for k in range(2):
        torch.save({name: (1 + k) * w for name, w in layers.items()}, f"{k}.pt")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("balance", "X.csv --depth 3 --out W.npz"),
        ("entropy", "X.csv --depth 3"),
        ("flow", "X.csv --depth 2 --t-end 1 --out run.npz"),
        ("langevin", "X.csv --depth 2 --t-end 0.1 --dt 0.01 --chains 2"),
        ("dyson", "--particles 3 --t-end 0.1 --dt 0.01"),
        ("dyson", "--particles 3 --t-end 0.1 --dt 0.01 --depth 3"),
        ("geodesic", "X.csv Y.csv --depth 2"),
        ("moments", "0.pt"),
        ("charges", "0.pt 1.pt"),
        ("complete", "r.csv --depth 2 --rank 2 --seconds 2 --holdout 0.1"),
        ("complete --flow", "r.csv --depth 2 --rank 2 --until-loss 0.1 --holdout 0.1"),
        ("experiments", ""),
    ],
)
def test_the_keys_of_json_are_those_of_the_page(name, arguments, files, capsys):
    assert main([*name.split(), *arguments.split(), "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    outer, inner = documented_keys(name)
    if name == "dyson":
        outer -= {"index"} if "depth" in found else {"depth"}
    if name == "experiments":
        outer -= {"name", "theme", "title", "quick"}  # of a run
    assert found.keys() - {"written"} == outer
    for key, keys in inner.items():
        assert isinstance(found[key], list)
        # Keys that only records of a training loop have.
        measured = {"predicted", "residual", "tolerance", "broken"} if name == "charges" else set()
        assert all(entry.keys() == keys - measured for entry in found[key])


def test_every_command_is_on_the_page():
    assert set(WORKERS) == set(re.findall(r"^\|.*?`dln (\w+).*?` \|", PAGE, re.MULTILINE))
