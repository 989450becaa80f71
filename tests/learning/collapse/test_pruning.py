"""Units are removed from networks of many kinds: the smaller model has the outputs of the large."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from dln_geometry import learning
from dln_geometry.testing import assert_close
from tests.learning.collapse.routes import shaken
from tests.learning.networks import Conv1D

F64 = torch.float64
PIXELS, ROWS = (4, 3, 5, 5), (6, 5)


class Concatenated(nn.Module):
    """Two branches side by side, and the input beside them, as in DenseNet."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(7, 5, 3), nn.BatchNorm2d(12)
        self.out, self.head = nn.Conv2d(12, 6, 1), nn.Linear(6, 2)

    def forward(self, x):
        y = torch.cat([x, torch.relu(self.a(x))], 1)
        z = torch.cat([y[:, :, 1:-1, 1:-1], functional.gelu(self.b(y))], 1)
        return self.head(torch.relu(self.out(self.norm(z))).mean((2, 3)))


class Gated(nn.Module):
    """SwiGLU, and GLU of halves."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(5, 7), nn.Linear(5, 7), nn.Linear(7, 4)
        self.both, self.last = nn.Linear(4, 12), nn.Linear(6, 3)

    def forward(self, x):
        y = self.down(functional.silu(self.gate(x)) * self.up(x))
        return self.last(functional.glu(self.both(y)))


def bottleneck(groups, inner, outer, norm=nn.BatchNorm2d):
    first = nn.Conv2d(3, inner, 1, bias=False)
    second = nn.Conv2d(inner, outer, 3, padding=1, groups=groups, bias=False)
    end = [nn.ReLU6(), nn.Conv2d(outer, 2, 1), nn.Flatten(), nn.Linear(50, 2)]
    return nn.Sequential(first, norm(inner), nn.ReLU(), second, norm(outer), *end)


def transposed():
    middle = nn.ConvTranspose2d(6, 9, 2, groups=3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Tanh(), middle, nn.Tanh(), nn.ConvTranspose2d(9, 2, 1)
    )


def encoder():
    return nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)


# The network, its inputs, the slices that become zero (name, axis, entries), and the numbers of
# units that are left: of the axes of weights.
CASES = {
    "depthwise, unread": (
        lambda: bottleneck(6, 6, 6),
        PIXELS,
        [("6.weight", 1, [1, 4])],
        {("0.weight", 0): 4, ("3.weight", 0): 4, ("6.weight", 1): 4},
    ),
    "depthwise, by its own weight": (
        lambda: bottleneck(6, 6, 12),
        PIXELS,
        [("3.weight", 0, [2, 3])],
        {("0.weight", 0): 5, ("3.weight", 0): 10, ("6.weight", 1): 10},
    ),
    "grouped, inputs": (
        lambda: bottleneck(3, 6, 9),
        PIXELS,
        [("3.weight", 1, [1])],
        {("0.weight", 0): 3, ("3.weight", 0): 9, ("3.weight", 1): 1},
    ),
    "grouped, as many outputs of each": (
        lambda: bottleneck(3, 6, 9),
        PIXELS,
        [("6.weight", 1, [0, 4, 5, 7])],
        {("3.weight", 0): 6, ("3.weight", 1): 2, ("6.weight", 1): 6},
    ),
    "grouped, a whole group": (
        lambda: bottleneck(3, 6, 9),
        PIXELS,
        [("6.weight", 1, [3, 4, 5])],
        {("0.weight", 0): 4, ("3.weight", 0): 6, ("3.weight", 1): 2, ("6.weight", 1): 6},
    ),
    "grouped, uneven": (
        lambda: bottleneck(3, 6, 9),
        PIXELS,
        [("6.weight", 1, [4])],
        {("3.weight", 0): 9, ("6.weight", 1): 9},
    ),
    "grouped and transposed": (
        transposed,
        PIXELS,
        [("2.weight", 0, [0, 3, 5]), ("4.weight", 0, [0, 1, 2])],
        {("0.weight", 0): 2, ("2.weight", 0): 2, ("2.weight", 1): 3, ("4.weight", 0): 6},
    ),
    "group norm": (
        lambda: bottleneck(1, 6, 4, lambda n: nn.GroupNorm(n // 2, n)),
        PIXELS,
        [("3.weight", 1, [1, 2, 3])],
        {("0.weight", 0): 4, ("1.weight", 0): 4, ("3.weight", 1): 4},
    ),
    "concatenation": (
        Concatenated,
        PIXELS,
        [("out.weight", 1, [1, 5, 8]), ("b.weight", 1, [5]), ("b.weight", 0, [3])],
        {("a.weight", 0): 3, ("b.weight", 0): 3, ("b.weight", 1): 6, ("out.weight", 1): 9},
    ),
    "gates": (
        Gated,
        ROWS,
        [("down.weight", 1, [2, 6]), ("last.weight", 1, [0])],
        {("gate.weight", 0): 5, ("up.weight", 0): 5, ("both.weight", 0): 10},
    ),
    "transposed linear": (
        lambda: nn.Sequential(Conv1D(7, 5), nn.GELU(), Conv1D(3, 7)),
        ROWS,
        [("2.weight", 0, [1, 3]), ("0.weight", 1, [4])],
        {("0.weight", 1): 4, ("0.bias", 0): 4, ("2.weight", 0): 4},
    ),
    "transformer": (
        encoder,
        (2, 4, 6),
        [("linear2.weight", 1, [0, 5]), ("self_attn.out_proj.weight", 1, [0, 1, 2])],
        {("linear1.weight", 0): 6, ("self_attn.out_proj.weight", 1): 6},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_smaller_networks_have_the_outputs_of_large_ones(case, generator):
    make, shape, zeros, left = CASES[case]
    net = shaken(make(), generator)
    params = dict(net.named_parameters())
    with torch.no_grad():
        for name, axis, entries in zeros:
            params[name].movedim(axis, 0)[entries] = 0.0
    x, y = (torch.randn(shape, generator=generator, dtype=F64) for _ in range(2))
    report = learning.sparsify(net, x)
    assert report.change == 0.0
    found = dict(report.model.named_parameters())
    assert {key: found[key[0]].shape[key[1]] for key in left} == left
    assert set(found) == set(params)
    assert_close(report.model(y), net(y).detach(), ops=1e4)
    # The module tells its own sizes right, and is a module like others.
    again = report.model
    if case != "transposed linear":
        again = pickle.loads(pickle.dumps(again))
    again.load_state_dict(report.model.state_dict())
    assert_close(again(y), report.model(y).detach(), ops=1)
    assert "groups" not in str(report) or case.startswith("grouped")


def test_sizes_of_grouped_layers_follow(generator):
    net = shaken(bottleneck(3, 6, 9), generator)
    with torch.no_grad():
        net[6].weight[:, [0, 3, 4, 5]] = 0.0
    report = learning.sparsify(net, torch.randn(PIXELS, generator=generator, dtype=F64))
    layer = report.model[3]
    assert (layer.groups, layer.in_channels, layer.out_channels) == (2, 4, 6)
    (kept,) = report.kept
    assert kept[1:] == ((0,), "the groups of a convolution must stay alike")
    assert net[3].groups == 3


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_units_that_feed_themselves_stay(cell, dtype, generator):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.cell = nn.Linear(3, 4), cell(4, 5, num_layers=2, bidirectional=True)
            self.out, self.head = nn.Linear(10, 4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.cell(torch.tanh(self.first(x)))[0]
            return self.head(torch.relu(self.out(y)))

    net = shaken(Recurrent(), generator).to(dtype)
    with torch.no_grad():
        net.cell.weight_ih_l0[:, 2] = 0.0
        net.cell.weight_ih_l0_reverse[:, 2] = 0.0
        net.out.weight[:, 1] = 0.0
        net.head.weight[:, 2] = 0.0
    x = torch.randn(4, 2, 3, generator=generator, dtype=F64).to(dtype)
    small = learning.sparsify(net, x).model
    assert (small.first.out_features, small.cell.input_size) == (3, 3)
    assert (small.cell.hidden_size, small.out.out_features) == (5, 3)
    assert_close(small(x), net(x).detach(), ops=1e4)


def test_units_that_are_off_on_the_example_alone_stay(generator):
    """One summand has the gain zero, the other is off behind its ReLU for these inputs only."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(3, 4)
            self.out = nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.norm(self.a(x)) + torch.relu(self.b(x)))

    net = shaken(Sum(), generator)
    with torch.no_grad():
        net.norm.weight[[1, 2]] = 0.0
        net.b.bias[1] = -9.0
        net.b.weight[2], net.b.bias[2] = 0.0, 0.4
    x = torch.randn(5, 3, generator=generator, dtype=F64)
    report = learning.sparsify(net, x)
    assert report.model.out.in_features == 3  # the third unit is constant for all inputs
    assert_close(report.model(50 * x), net(50 * x).detach(), ops=1e4)
