from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import torch

import dln_geometry as dln
from dln_geometry.cli import main
from dln_geometry.testing import assert_close
from tests.cli.routes import refusal


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


def test_layers_replace_nothing_but_earlier_layers(rng, capsys):
    np.save("x.npy", rng.normal(size=(3, 3)))
    np.savez("W.npz", mine=np.ones(2))
    assert "--force" in refusal(["balance", "x.npy"], capsys)
    assert main(["balance", "x.npy", "--force"]) == 0
    assert main(["balance", "x.npy", "--depth", "3"]) == 0
    np.savez("y.npz", W_1=rng.normal(size=(3, 3)))
    assert "must not overwrite the data" in refusal(["balance", "y.npz", "--out", "y.npz"], capsys)


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
