from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dln_geometry.cli import main
from dln_geometry.cli.outputs import MATRICES, write_matrix
from dln_geometry.cli.reading import read_input
from tests.cli.routes import refusal


@pytest.mark.parametrize("suffix", MATRICES)
def test_a_matrix_comes_back_from_every_format(suffix, rng):
    x = rng.normal(size=(4, 3)) * 10.0 ** rng.integers(-12, 12, size=(4, 3))
    path = Path(f"X{suffix}")
    write_matrix(path, x)
    form = {"header": False, "index": False} if suffix in (".csv", ".tsv") else {}
    assert np.array_equal(read_input(path, **form).values, x)


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_layers_in_every_format_are_read_by_name(suffix, rng, capsys):
    np.save("x.npy", rng.normal(size=(3, 2)))
    out = f"W{suffix}"
    assert main(["balance", "x.npy", "--depth", "3", "--out", out]) == 0
    assert "--key must name one of the matrices" in refusal(["entropy", out, "--key", "V"], capsys)
    assert main(["entropy", out, "--key", "W_2", "--out", "s.csv"]) == 0
    assert len(Path("s.csv").read_text().split()) == 2


def test_a_file_of_half_precision_is_read(capsys):
    torch.save(torch.eye(3, dtype=torch.bfloat16) * 2, "x.pt")
    assert read_input(Path("x.pt")).values.tolist() == (2 * np.eye(3)).tolist()
    torch.save({"a": torch.eye(2), "b": torch.eye(3)}, "two.pt")
    assert "a, b, got none" in refusal(["entropy", "two.pt"], capsys)
    torch.save(torch.full((2, 2), torch.nan), "nan.pt")
    assert "finite numbers" in refusal(["entropy", "nan.pt"], capsys)


def test_a_matrix_of_weights_is_completed_and_warnings_are_lines(rng, capsys):
    x = torch.outer(torch.arange(1.0, 7), torch.arange(1.0, 6))
    x[torch.arange(5), torch.arange(5)] = torch.nan
    torch.save({"ratings": x, "other": torch.eye(2)}, "r.pt")
    arguments = ["complete", "r.pt", "--key", "ratings", "--depth", "2", "--rank", "1", "--json"]
    assert main([*arguments, "--no-center", "--holdout", "0", "--t-end", "2000"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["shape"], found["entries"], found["rank"]) == ([6, 5], 25, 1)
    assert found["observed_error"] < 1
    assert np.load("r-completed.npy").shape == (6, 5)


@pytest.mark.filterwarnings("always")
def test_a_warning_is_one_line(rng, capsys):
    np.save("Y.npy", 5 * rng.normal(size=(4, 3)))
    assert main(["langevin", "Y.npy", "--depth", "3", "--dt", "1", "--json"]) in (0, 2)
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("warning: dt = 1")
