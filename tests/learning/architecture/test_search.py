from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dln_geometry.learning import functionalize, symmetries_of, symmetry_residual
from dln_geometry.learning.architecture import symmetries_by_graph
from dln_geometry.testing import assert_close
from tests.learning.architecture.routes import (
    CE,
    by_graph,
    claimed_directions,
    found,
    outputs,
    parameters,
)
from tests.learning.networks import EPS, NETWORKS, build


@pytest.mark.parametrize("example", [False, True], ids=["", "example"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_claim_leaves_the_loss_unchanged(name, example, generator):
    net, x = build(name, generator)
    groups = symmetries_of(net, x if example else None, loss=CE)
    params = parameters(net)
    base = outputs(net, params, x)
    assert groups
    if example:
        assert by_graph(groups) == symmetries_by_graph(net, x, loss=CE)
    for group in groups:
        for _ in range(2):
            element = group.random_element(params, generator)
            moved = group.act(params, element)
            if group.kind != "permutation" or not torch.equal(element, torch.arange(group.units)):
                assert all(not torch.equal(moved[n], params[n]) for n in group.names), group
            # A gauge is as ill-conditioned as its exponential.
            condition = 1.0
            if group.kind == "gauge":
                condition = float(torch.linalg.cond(torch.linalg.matrix_exp(element)).max()) ** 2
            assert_close(outputs(net, moved, x), base, ops=3000, condition=condition)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_example_contradicts_nothing_and_changes_nothing(name, generator):
    net, x = build(name, generator)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.random.get_rng_state()
    without, with_example = symmetries_of(net, loss=CE), symmetries_by_graph(net, x, loss=CE)
    assert set(without) <= set(with_example)
    assert torch.equal(torch.random.get_rng_state(), state)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


COMPLETE = ("mlp", "layer norm", "batch norm", "weight norm", "prelu", "convolution", "conv1d")


def flat_directions(net, draws):
    """Return how many directions change no output on much data."""
    params = parameters(net)
    rows = []
    for x in draws:
        jacobian = torch.autograd.functional.jacobian(
            lambda *values, x=x: outputs(net, dict(zip(params, values, strict=True)), x),
            tuple(params.values()),
        )
        rows.append(torch.cat([j.flatten(2).flatten(0, 1) for j in jacobian], 1))
    s = torch.linalg.svdvals(torch.cat(rows))
    nullity = int((s < 1e-9 * s[0]).sum())
    assert float(s[-nullity - 1] / s[0]) > 1e-6, "the gap must be clear"
    return nullity


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPLETE)
def test_the_claims_are_all_flat_directions_that_there_are(name, generator):
    """The null space of the Jacobian over much data, against the span of the generators."""
    excess = []
    while 0 not in excess and len(excess) < 5:
        net, x = build(name, generator)
        batches = 1 + sum(p.numel() for p in net.parameters()) // 10
        draws = [build(name, generator)[1] for _ in range(batches)]
        claimed = claimed_directions(symmetries_of(net, x, loss=CE), parameters(net), generator)
        excess.append(flat_directions(net, draws) - claimed)
    # A unit that is active on all data, or on none, adds directions: the generic number is the
    # least. It cannot be less than what is claimed.
    assert min(excess) == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_become_symmetries(name, generator):
    net, x = build(name, generator)
    labels = torch.arange(x.shape[0]) % 3
    shape = net(x).shape
    target = labels.reshape(-1, *(1,) * (len(shape) - 2)).expand(shape[:-1]).reshape(-1)
    loss, params = functionalize(
        net, lambda y, t: functional.cross_entropy(y.reshape(-1, y.shape[-1]), t), (x, target)
    )
    for group in symmetries_of(net, loss=CE):
        if group.kind == "permutation":
            with pytest.raises(ValueError, match="kind must be continuous"):
                group.symmetry(params)
        else:
            assert symmetry_residual(loss, group.symmetry(params), params) < 1e-12, group


def test_groups_of_known_networks(generator):
    net, x = build("layer norm", generator)
    hidden, last = ("0.weight", "0.bias"), ("6.weight", "6.bias")
    assert found(symmetries_of(net, x, loss=CE)) == {
        ("translation", 1, hidden),
        ("scale", 1, hidden),
        ("permutation", 8, (*hidden, "1.weight", "1.bias", "3.weight")),
        ("rescale", 8, ("1.weight", "1.bias", "3.weight")),
        ("translation", 1, ("3.weight", "3.bias")),
        ("scale", 1, ("3.weight", "3.bias")),
        ("permutation", 6, ("3.weight", "3.bias", "4.weight", "4.bias", "6.weight")),
        ("translation", 1, last),
    }
    assert ("translation", 1, last) not in found(symmetries_of(net, x))
    net, x = build("convolution", generator)
    stream = ("1.weight", "1.bias", "4.bn2.weight", "4.bn2.bias")
    assert found(symmetries_of(net, x)) == {
        ("translation", 6, ("0.bias",)),
        ("scale", 6, ("0.weight",)),
        ("translation", 6, ("4.conv1.bias",)),
        ("scale", 6, ("4.conv1.weight",)),
        (
            "permutation",
            6,
            ("4.conv1.weight", "4.conv1.bias", "4.bn1.weight", "4.bn1.bias", "4.conv2.weight"),
        ),
        ("rescale", 6, ("4.bn1.weight", "4.bn1.bias", "4.conv2.weight")),
        # What the skip connection adds belongs together: both makers, both readers.
        ("rescale", 6, (*stream, "4.conv1.weight", "5.weight")),
        (
            "permutation",
            6,
            ("0.weight", "0.bias", "4.conv2.weight", *stream, "4.conv1.weight", "5.weight"),
        ),
        ("scale", 6, ("4.conv2.weight",)),
        ("rescale", 4, ("5.weight", "5.bias", "9.weight")),
        ("permutation", 4, ("5.weight", "5.bias", "9.weight")),
    }


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.second(functional.relu(self.first(functional.relu(self.first(x)))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(5, 4, bias=False), nn.Linear(4, 5, bias=False)
        self.up.weight = nn.Parameter(torch.zeros(5, 4))
        self.down.weight = self.up.weight

    def forward(self, x):
        return functional.linear(
            functional.relu(functional.linear(x, self.up.weight.T)), self.up.weight
        )


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        y = functional.relu(self.first(x))
        return y + self.second(y)


class Penalised(nn.Module):
    """A weight that the forward pass reads beside its layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.second(self.first(x).relu()) + self.first.weight.square().sum()


class Own(nn.Linear):
    """A linear layer by its class, but not by what it does."""

    def forward(self, x):
        return super().forward(x).sin() + 1


def hooked():
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    net[0].register_forward_hook(lambda module, args, output: output + 1)
    return net


@pytest.mark.parametrize(
    "make",
    [
        *(Twice, Tied, Skip, Penalised, hooked),
        lambda: nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 4)),
        lambda: nn.Sequential(Own(5, 6), nn.ReLU(), nn.Linear(6, 4)),
        lambda: nn.Sequential(
            nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4)
        ).eval(),
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Softmax(-1), nn.Linear(6, 4)),
        lambda: nn.Sequential(nn.Linear(5, 6), nn.AvgPool1d(2), nn.Linear(3, 4)),
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(5, 4)),
    ],
    ids=lambda make: getattr(make, "__name__", ""),
)
@pytest.mark.parametrize("example", [False, True], ids=["", "example"])
def test_what_is_no_scale_or_rescale_is_not_claimed(make, example):
    with torch.random.fork_rng():
        net = make().double()
    x = torch.linspace(-1, 1, 35, dtype=torch.float64).reshape(7, 5) if example else None
    for group in by_graph(symmetries_of(net, x)):
        assert group.kind in ("translation", "permutation")


def test_dropout_commutes_with_factors_alone(generator):
    with torch.random.fork_rng():
        net = nn.Sequential(
            nn.Linear(5, 6), nn.Dropout(0.4), nn.Linear(6, 7), nn.ReLU(), nn.Dropout(0.4),
            nn.Linear(7, 4),
        ).double()  # fmt: skip
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    assert [g.kind for g in by_graph(symmetries_of(net, x))] == ["rescale", "rescale"]
    params = parameters(net)
    base = outputs(net, params, x)
    for group in symmetries_of(net):
        moved = group.act(params, group.random_element(params, generator))
        assert_close(outputs(net, moved, x), base, ops=1000)
    assert [g.kind for g in by_graph(symmetries_of(net.eval(), x))] == [
        "gauge",
        "rescale",
        "permutation",
    ]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: symmetries_of(torch.ones(3)), TypeError, "module must be a torch.nn.Module"),
        (lambda: symmetries_of(nn.ReLU()), ValueError, "must have parameters, got a ReLU"),
        (lambda: symmetries_of(nn.Linear(2, 2), loss="mse"), ValueError, 'loss must be "cross_en'),
        (
            lambda: symmetries_of(nn.Sequential(nn.LazyLinear(3))),
            ValueError,
            "got '0.weight' without a shape",
        ),
    ],
)  # fmt: skip
def test_bad_input(make, error, message):
    with torch.random.fork_rng(), pytest.raises(error, match=message):
        make()


def test_epsilon_is_reported():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, eps=1e-3), nn.Tanh(), nn.Linear(4, 2))
    assert {g.epsilon for g in symmetries_of(net) if g.kind == "scale"} == {1e-3}
    assert EPS < 1e-100
