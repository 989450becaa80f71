from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import dln_geometry as dln
from dln_geometry.cli import main
from dln_geometry.cli.exchange import read_weights
from dln_geometry.tables import Budget
from dln_geometry.testing import assert_close
from tests.cli.routes import refusal

MODEL = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2, bias=False))

no_model = 3

def fails():
    raise RuntimeError("out of order")
"""


def told(arguments, capsys):
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    return json.loads(said.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture
def layers(generator):
    widths = (3, 5, 4, 2)
    return [
        torch.randn(b, a, generator=generator, dtype=torch.float64) for a, b in pairwise(widths)
    ]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_moments_of_a_checkpoint(suffix, layers, capsys):
    # More than ten names: safetensors sorts 10 before 2.
    names = [f"net.{2 * k + 6}.weight" for k in range(3)]
    held = dict(zip(names, layers, strict=True)) | {"net.6.bias": torch.zeros(5).double()}
    path = f"model{suffix}"
    if suffix == ".npz":
        np.savez(path, **{name: x.numpy() for name, x in held.items()})
    elif suffix == ".pt":
        torch.save({"epoch": 3, "model_state_dict": held}, path)
        names = [f"model_state_dict.{name}" for name in names]
    else:
        save_file(held, path)
    found = told(["moments", path, "--out", "G.npz", "--figure", "s.png"], capsys)
    assert [layer["name"] for layer in found["layers"]] == names
    (chain,) = found["chains"]
    assert chain["layers"] == names
    assert chain["shape"] == [2, 3]
    assert not chain["balanced"]
    expected = dln.moments(layers)
    assert_close(chain["moment_norms"], [float(g.norm()) for g in expected])
    assert_close(chain["moment_traces"], [float(g.trace()) for g in expected], ops=1000)
    s = torch.linalg.svdvals(dln.end_to_end(layers))
    assert_close(chain["end_to_end"]["singular_values"], s, ops=1000)
    for layer, w in zip(found["layers"], layers, strict=True):
        s = torch.linalg.svdvals(w)
        assert_close(layer["singular_values"], s, ops=1000)
        assert_close(layer["stable_rank"], float((w.norm() / s[0]).square()), ops=1000)
        assert layer["rank"] == len(s)
    assert len(found["left_out"]) == 1
    with np.load("G.npz") as held:
        assert_close(held[f"{names[0]}->{names[1]}"], expected[0])


def test_layers_are_named_in_any_order_and_transposed(layers, capsys):
    np.savez("m.npz", c=layers[2].mT, a=layers[0].mT, b=layers[1].mT)
    found = told(["moments", "m.npz", "--layers", "a,b,c", "--transpose"], capsys)
    assert_close(found["chains"][0]["moment_norms"][0], float(dln.moments(layers)[0].norm()))
    assert "--transpose" in refusal(["moments", "m.npz", "--layers", "a,b"], capsys)
    assert "name tensors of the file, c, a, b" in refusal(
        ["moments", "m.npz", "--layers", "z"], capsys
    )
    found = told(["moments", "m.npz"], capsys)
    assert len(found["layers"]) == 3


def test_balanced_layers_are_told_so(generator, capsys):
    network = dln.random_balanced((4, 5, 3), generator=generator, dtype=torch.float64)
    np.savez("m.npz", **{f"W_{k}": w for k, w in enumerate(network, start=1)})
    (chain,) = told(["moments", "m.npz"], capsys)["chains"]
    assert chain["balanced"]
    assert max(chain["imbalance"]) < 1e-14
    assert main(["moments", "m.npz"]) == 0
    assert "2 layers, balanced" in capsys.readouterr().out
    np.savez("zero.npz", W_1=np.zeros((2, 3)), W_2=np.zeros((2, 2)))
    found = told(["moments", "zero.npz"], capsys)
    assert found["layers"][0]["effective_rank"] == found["layers"][0]["stable_rank"] == 0


def train(net, steps, lr):
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).double()
    for _ in range(steps):
        net.zero_grad()
        net(x).square().sum().mul(0.05).backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= lr * p.grad


def test_charges_of_checkpoints_of_a_model(capsys):
    Path("net.py").write_text(MODEL)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2, bias=False)).double()
    for k, lr in enumerate((0.0, 1e-4, 1e-4)):
        train(net, 100, lr)
        torch.save(net.state_dict(), f"{k}.pt")
    files = ["0.pt", "1.pt", "2.pt"]
    for model in (["--model", "net.py:make"], ["--model", "net:make", "--example-input", "8,3"]):
        (group,) = told(["charges", *files, *model], capsys)["groups"]
        assert group["label"] == "rescale(0.weight, 0.bias, 2.weight)"
    w = net.state_dict()
    total = w["0.weight"].square().sum() + w["0.bias"].square().sum() - w["2.weight"].square().sum()
    assert_close(group["charge"][-1], float(total), ops=1000)
    # Gradient flow conserves charges: steps of 1e-4 leave a small change.
    assert group["change"][0] == 0
    assert 0 < group["change"][2] < 1e-3
    # Without the model: the same group, if there is said to be ReLU between the layers.
    (bare,) = told(["charges", *files, "--relu", "--out", "c.nc"], capsys)["groups"]
    assert_close(bare["charge"], group["charge"], ops=1000)
    # As linear layers: the trace of the gauge is the same sum, but single charges move.
    (linear,) = told(["charges", *files], capsys)["groups"]
    assert linear["label"] == "gauge(0.weight, 0.bias, 2.weight)"
    assert_close(linear["charge"], group["charge"], ops=1000)
    assert linear["change"][2] > 10 * group["change"][2]


def test_charges_of_a_record(capsys):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    with dln.learning.ChargeMonitor(net, optimizer, every=2) as monitor:
        for _ in range(6):
            optimizer.zero_grad()
            net(torch.ones(5, 3).double()).square().sum().backward()
            optimizer.step()
    monitor.save("record.npz")
    found = told(["charges", "record.npz", "--figure", "c.png"], capsys)
    assert found["steps"] == [0, 2, 4, 6]
    assert found["groups"][0]["broken"] is False
    assert_close(found["groups"][0]["charge"], monitor.record().charge[:, 0])
    assert main(["charges", "record.npz"]) == 0
    assert "residual" in capsys.readouterr().out


class Whole(nn.Module):
    pass


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["moments", "missing.pt"], "No such file or directory: missing.pt"),
        (["moments", "empty.pt"], "empty file"),
        (["moments", "wrong.pt"], "damaged"),
        (["moments", "wrong.safetensors"], "damaged"),
        (["moments", "wrong.npz"], "damaged"),
        (["moments", "whole.pt"], "save model.state_dict() instead"),
        (["moments", "x.txt"], "must end in one of .pt"),
        (["moments", "vectors.npz"], "matrices of real numbers"),
        (["moments", "nan.npz"], "finite numbers"),
        (["moments", "good.npz", "--out", "G.csv"], "--out must end in one of .npz"),
        (["moments", "good.npz", "--out", "good.npz", "--force"], "must not overwrite the data"),
        (["moments", "good.npz", "--layers", "v"], "--layers must name tensors"),
        (["charges"], "argument 'files"),
        (["charges", "good.npz", "missing.npz"], "No such file or directory: missing.npz"),
        (["charges", "good.npz", "--model", "net.py"], "--model must be file.py:NAME"),
        (["charges", "good.npz", "--model", "no.py:make"], "got no file no.py"),
        (["charges", "good.npz", "--model", "net.py:other"], "which it has not"),
        (["charges", "good.npz", "--model", "net.py:no_model"], "which is int"),
        (["charges", "good.npz", "--model", "net.py:fails"], "RuntimeError: out of order"),
        (["charges", "good.npz", "--model", "no.such:make"], "ModuleNotFoundError"),
        (["charges", "good.npz", "--model", "net.py:make"], "must hold 0.weight once, got none"),
        (["charges", "good.npz", "--example-input", "2,3"], "must come with --model"),
        (
            ["charges", "good.npz", "--model", "net.py:make", "--example-input", "2,9"],
            "--model",
        ),
        (["charges", "good.npz", "--model", "net.py:make", "--loss", "mse"], "--model"),
        (["charges", "good.npz", "--model", "net.py:make", "--relu"], "--relu must be left out"),
        (["charges", "good.npz", "other.npz"], "once, got none"),
        (["charges", "other.npz"], "two layers must follow each other"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, list) else "",
)
def test_a_mistake_is_one_line(arguments, said, capsys):
    Path("net.py").write_text(MODEL)
    Path("empty.pt").write_bytes(b"")
    Path("x.txt").write_text("1")
    for suffix in ("pt", "safetensors", "npz"):
        Path(f"wrong.{suffix}").write_bytes(b"nothing of the kind, but long enough to be read")
    torch.save(nn.Linear(2, 2), "whole.pt")
    np.savez("vectors.npz", v=np.ones(3))
    np.savez("nan.npz", W=np.full((2, 2), np.nan))
    np.savez("good.npz", W_1=np.eye(2), W_2=np.ones((3, 2)))
    np.savez("other.npz", a=np.eye(2))
    line = refusal(arguments, capsys)
    assert said.lower() in line.lower()


def test_nothing_in_a_checkpoint_is_run():
    class Evil:
        def __reduce__(self):
            return print, ("this must not be said",)

    torch.save({"w": torch.ones(2, 2), "evil": Evil()}, "evil.pt")
    with pytest.raises(ValueError, match="must hold tensors alone"):
        read_weights(Path("evil.pt"), Budget())
    torch.save(torch.ones(100, 100), "large.pt")
    with pytest.raises(ValueError, match="memory"):
        read_weights(Path("large.pt"), Budget(1000))
