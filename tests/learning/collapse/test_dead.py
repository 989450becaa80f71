"""Units that are off are named, each for its own reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dln_geometry.learning import DeadUnit, collapse_report


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            if kind == "convolution":
                self.first, self.second = nn.Conv2d(3, 7, 2), nn.Conv2d(7, 2, 2)
            else:
                self.first, self.second = nn.Linear(3, 7), nn.Linear(7, 2)
        self.flat = kind == "functional"

    def forward(self, x, *, scale):
        y = self.first(scale * x).relu()
        if self.flat:
            return functional.linear(y, self.second.weight, bias=self.second.bias)
        return self.second(y)


def reasons(report):
    return {(unit.unit, unit.reasons) for unit in report.dead}


@pytest.mark.filterwarnings("ignore:symmetries that hold units")
@pytest.mark.parametrize("kind", ["linear", "functional", "convolution"])
def test_dead_units_are_named_with_keyword_inputs(kind, generator):
    net = Net(kind).double()
    shape = (20, 3, 4, 4) if kind == "convolution" else (20, 3)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    inputs = {"scale": torch.tensor(1.5, dtype=torch.float64), "x": x}

    def report():
        target = torch.ones_like(net(**inputs).detach())
        return collapse_report(net, functional.mse_loss, (inputs, target), count=1)

    assert reasons(report()) == set()
    with torch.no_grad():
        net.first.weight[1] = net.first.bias[1] = 0
        net.second.weight[:, 3] = 0
        net.first.bias[4] = -100
        net.first.weight[5] = 0
        net.first.bias[5] = 1
        net.second.weight[:, 6] *= 1e-7
    found = report()
    assert reasons(found) == {
        (1, ("incoming", "inactive")),
        (3, ("outgoing",)),
        (4, ("inactive",)),
        (5, ("incoming",)),
        (6, ("outgoing",)),
    }
    assert all(
        isinstance(unit, DeadUnit) and unit.family.kind == "permutation" for unit in found.dead
    )
    lines = str(found).splitlines()
    assert "dead: unit 4 of first.weight, first.bias, second.weight: inactive" in lines


def test_units_between_linear_layers_are_named(generator):
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight[2] = 0
        net[3].weight[:, 1] = 0
    x, y = torch.randn(9, 3, generator=generator), torch.randn(9, 2, generator=generator)
    report = collapse_report(net, functional.mse_loss, (x, y), count=1)
    assert {(u.family.kind, u.unit, u.reasons) for u in report.dead} == {
        ("rotation", 2, ("incoming",)),
        ("permutation", 1, ("outgoing",)),
    }


def test_a_row_that_says_so_is_not_repeated(generator):
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight[2] = net[0].bias[2] = 0
        net[2].weight[:, 2] = 0
    x, y = torch.randn(9, 3, generator=generator), torch.randn(9, 2, generator=generator)
    report = collapse_report(net, functional.mse_loss, (x, y), count=1, weight_decay=9.0)
    assert reasons(report) == {(2, ("incoming", "outgoing", "inactive"))}
    assert "dead" not in str(report)
