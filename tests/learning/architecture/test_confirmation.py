"""What an example refutes, keeps and tells."""

from __future__ import annotations

import copy
import random
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dln_geometry.learning import symmetries_of, symmetry_coverage
from dln_geometry.learning.architecture import symmetries_by_graph
from tests.learning.architecture.routes import (
    by_graph,
    claimed_directions,
    found,
    parameters,
    rank_of,
)
from tests.learning.networks import NETWORKS, build

F64 = torch.float64
UNTRACED = pytest.mark.filterwarnings("ignore:not everything could be traced")


class Opaque(nn.Module):
    """A network whose path depends on values, so that only trials can tell what it has."""

    def __init__(self, net, change=None):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        y = self.net(x)
        return y if self.change is None else y + self.change(self.net, x)


def mlp(generator, *, widths=(5, 7, 4), unit=nn.ReLU):
    with torch.random.fork_rng():
        layers = [nn.Linear(*pair) for pair in pairwise(widths)]
    body = [m for layer in layers[:-1] for m in (layer, unit())]
    net = nn.Sequential(*body, layers[-1])
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 2)
    return net


def draw(generator, *shape):
    return torch.randn(shape, generator=generator)


# The smallest changes that break a symmetry, and the kinds that survive them.
CHANGES = {
    "a sum": (lambda net, x: 0.01 * net[:2](x).sum(), {"permutation"}),
    "a small sum": (lambda net, x: 1e-6 * net[:2](x).sum(), {"permutation"}),
    "one unit": (lambda net, x: 1e-3 * net[:2](x)[:, :1], set()),
    "a saturating sum": (
        lambda net, x: (0.1 * net[:2](x).sum(-1, keepdim=True)).tanh(),
        {"permutation"},
    ),
    "a penalty": (lambda net, x: 1e-4 * net[2].weight.square().sum(), {"permutation"}),
    "nothing": (lambda net, x: 0.0, {"permutation", "rescale"}),
}


@UNTRACED
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("zero_head", [False, True], ids=["", "zero head"])
def test_small_changes_of_the_output_are_seen(change, zero_head, generator):
    function, kinds = CHANGES[change]
    net = Opaque(mlp(generator), function)
    if zero_head:
        net = nn.Sequential(net, nn.Linear(4, 3))
        nn.init.zeros_(net[1].weight)
        nn.init.zeros_(net[1].bias)
    groups = by_graph(symmetries_of(net, draw(generator, 6, 5)))
    assert {g.kind for g in groups if "net.0.weight" in g.names[0]} == kinds


@UNTRACED
@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 1e-1])
@pytest.mark.parametrize("spread", [1e-3, 1.0])
def test_slack_is_for_the_epsilon_of_a_normalisation_alone(epsilon, spread, generator):
    """Also where the epsilon is larger than the variance: the group states it."""

    def net(change):
        body = mlp(generator, widths=(5, 7, 4), unit=lambda: nn.LayerNorm(7, eps=epsilon))
        return Opaque(body, change)

    x = spread * draw(generator, 6, 5)
    scales = [g for g in symmetries_of(net(None), x) if g.kind == "scale"]
    assert [g.epsilon for g in scales] == [epsilon]
    broken = net(lambda net, x: 1e-4 * net[0](x).sum())
    assert not [g for g in symmetries_of(broken, x) if g.kind == "scale"]


def test_the_epsilon_of_rms_norm_is_that_of_the_precision():
    net = nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.Tanh(), nn.Linear(4, 2))
    (scale,) = (g for g in symmetries_of(net) if g.kind == "scale")
    assert scale.epsilon == torch.finfo(torch.float32).eps


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rows", [1, 2])
def test_a_small_batch_keeps_all_groups(name, rows, generator):
    net, x = build(name, generator)
    if rows == 1 and name in ("batch norm",):
        with pytest.raises(ValueError, match="example_input must be what the module can be called"):
            symmetries_by_graph(net, x[:1])
        return
    assert symmetries_by_graph(net, x[:rows]) == symmetries_by_graph(net, x)


def test_one_short_row_of_tokens_tells_as_much_as_many(generator):
    """Tokens are drawn from all rows of the embedding, not from those of the example alone."""
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3)).double()
    report = symmetry_coverage(net, torch.tensor([[2, 2, 5]]))
    # Matrices on the embedding and the layer, and shifts that the bias takes up.
    assert (report.found, report.true) == (20, 20)
    other = torch.randint(7, (60, 3), generator=generator)
    params = parameters(net)
    assert rank_of(lambda at: torch.func.functional_call(net, at, (other,)), params) == 47


def test_a_batch_of_two_through_batch_norm_keeps_all_groups(generator):
    with torch.random.fork_rng():
        net = nn.Sequential(
            nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 20), nn.BatchNorm1d(20),
            nn.ReLU(), nn.Linear(20, 3),
        )  # fmt: skip
    groups = found(symmetries_of(net, draw(generator, 64, 6)))
    assert found(symmetries_of(net, draw(generator, 2, 6))) == groups
    assert len(groups) == 8


def test_units_that_are_off_on_the_example_are_tried_elsewhere(generator):
    net = mlp(generator, widths=(5, 30, 4))
    with torch.no_grad():
        net[0].bias.fill_(-3.0)
        net[0].bias[3] = -1e6
    groups = by_graph(symmetries_of(net, draw(generator, 2, 5)))
    assert {g.kind for g in groups} == {"rescale", "permutation"}


class Masked(nn.Module):
    """Unit 2 never reaches the output."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("mask", torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]))

    def forward(self, x):
        return x if x.sum() > 1e9 else self.net[2](self.net[:2](x) * self.mask)


@UNTRACED
def test_units_that_could_not_be_tried_are_named(generator):
    names = "net.0.weight, net.0.bias, net.2.weight"
    with pytest.warns(UserWarning, match=rf"rescale of {names} \(units 2\)"):
        groups = by_graph(symmetries_of(Masked(mlp(generator)), draw(generator, 9, 5)))
    # The mask knows one unit from another.
    assert {g.kind for g in groups} == {"rescale"}

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(generator)

        def forward(self, x):
            return self.net(x) * 0.0 + x[:, :4]

    with pytest.warns(UserWarning, match="could not be tried: noise in these parameters"):
        symmetries_of(Unused(), draw(generator, 9, 5))


@UNTRACED
@pytest.mark.parametrize("kind", ["relu", "norm", "linear"])
def test_no_more_is_claimed_than_the_rank_of_the_jacobian_leaves(kind, rng, generator):
    """Random networks with random small terms added: the groups may not exceed the null space."""
    terms = [
        lambda net, x: 0.01 * net[:2](x).sum(),
        lambda net, x: 0.01 * net[0](x)[:, :3].sin(),
        lambda net, x: 1e-3 * net[0].weight.square().sum(),
        lambda net, x: 0.01 * net[:3](x).tanh().sum(-1, keepdim=True),
        lambda net, x: 0.0,
    ]
    units = {"relu": nn.ReLU, "norm": None, "linear": nn.Identity}
    total = 0
    for _ in range(8):
        term = terms[rng.integers(len(terms))]
        widths = (3, *rng.integers(3, 5, size=2).tolist(), 3)
        unit = units[kind] or (lambda w=widths[1]: nn.LayerNorm(w, eps=1e-200))
        if kind == "norm":
            widths = (3, widths[1], widths[1], 3)
        net = Opaque(mlp(generator, widths=widths, unit=unit), term).double()
        x = torch.randn(40, 3, generator=generator, dtype=F64)
        groups = symmetries_of(net, x[:5])
        params = parameters(net)
        rank = rank_of(lambda at, net=net, x=x: torch.func.functional_call(net, at, (x,)), params)
        claimed = claimed_directions(groups, params, generator)
        assert claimed <= sum(p.numel() for p in params.values()) - rank, (kind, widths, groups)
        total += claimed
    assert total > 10


class Careless(nn.Module):
    """It draws from every generator, remembers, and writes into its argument."""

    def __init__(self, net):
        super().__init__()
        self.net, self.norm, self.calls = net, nn.BatchNorm1d(4), 0

    def forward(self, x):
        self.calls, self.last = self.calls + 1, x
        x.mul_(1.0)
        noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
        return functional.dropout(self.norm(self.net(x)) * noise, 0.5, self.training)


def global_states():
    array = np.random.get_state()[1].tolist()  # noqa: NPY002
    return random.getstate(), array, torch.get_rng_state().tolist()


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_user_changes(fails, generator):
    net, x = Careless(mlp(generator)).double(), draw(generator, 5, 5).double()
    if fails:
        net.register_forward_hook(lambda module, args, output: 1 / 0)
    before, given = copy.deepcopy(net.state_dict()), x.clone()
    states = global_states()
    if fails:
        with pytest.raises(ValueError, match="can be called on, got torch.float64.*ZeroDivision"):
            symmetries_of(net, x)
    else:
        assert symmetries_of(net, x)
    assert states == global_states()
    assert torch.equal(x, given)
    assert net.calls == 0
    assert not hasattr(net, "last")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Shapely(nn.Module):
    """It takes one shape only, and warns."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        if x.shape[0] != 3:
            raise RuntimeError("three rows only")
        warnings.warn("beware", stacklevel=1)
        return self.net(x)


class Single(nn.Module):
    """It works in single precision inside."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.float())


class Converging(nn.Module):
    """Its loop ends at its own parameters, and at few others."""

    def __init__(self, net):
        super().__init__()
        self.net, self.rate = net, nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        z = torch.ones(())
        while z > 1e-2:
            z = z * self.rate if self.rate == 0.5 else z
        return self.net(x)


@UNTRACED
@pytest.mark.parametrize("wrap", [Shapely, Single, Converging])
def test_modules_that_take_little_else_are_tried(wrap, generator):
    net = wrap(mlp(generator))
    if wrap is Converging:
        assert by_graph(symmetries_of(net, draw(generator, 3, 5))) == []
        return
    groups = by_graph(symmetries_of(net, draw(generator, 3, 5)))
    assert {g.kind for g in groups} == {"rescale", "permutation"}
