from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry.learning import mirrors_of, symmetries_of
from dln_geometry.learning.architecture import symmetries_by_graph
from tests.learning.architecture.routes import CE, by_graph, found
from tests.learning.networks import build


class Branching(nn.Module):
    """Its path depends on values: it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5))
        self.used = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5))

    def forward(self, x):
        if x.sum() > 100:
            return x
        # A weight of the second is read on its own as well.
        return self.body(x) + self.used(x) * self.used[0].weight.sum()


@pytest.mark.parametrize("nested", [False, True])
def test_what_cannot_be_traced_is_said_and_tried(nested, generator):
    with torch.random.fork_rng():
        net = (
            nn.Sequential(Branching(), nn.Linear(5, 4)).double() if nested else Branching().double()
        )
    prefix = "0." if nested else ""
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    with pytest.warns(UserWarning, match="could be traced.*give an example_input") as caught:
        assert symmetries_of(net) == []
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="could be traced.*partly"):
        groups = symmetries_of(net, x)
    names = tuple(f"{prefix}body.{name}" for name in ("0.weight", "0.bias", "2.weight"))
    assert {("rescale", 6, names), ("permutation", 6, names)} <= found(groups)
    assert ("rescale", 6, tuple(n.replace("body", "used") for n in names)) not in found(groups)


def test_defaults_of_forward_are_taken_as_they_are(generator):
    net, x = build("attention", generator)
    groups = symmetries_by_graph(net, x, loss=CE)
    assert groups == symmetries_of(net, loss=CE)
    mask = 1 + torch.rand(6, 5, 1, generator=generator, dtype=torch.float64)
    # With a mask the residual stream is no longer only added to and normalised.
    assert len(symmetries_by_graph(net, (x, mask), loss=CE)) < len(groups)


def test_modules_of_torch_themselves_are_read():
    assert [g.kind for g in symmetries_of(nn.Linear(3, 4), loss=CE)] == ["translation"]
    layer = nn.TransformerEncoderLayer(6, 2, 10, batch_first=True, dropout=0.0)
    assert ("rescale", 10, ("linear1.weight", "linear1.bias", "linear2.weight")) in found(
        symmetries_of(layer)
    )


class Adapted(nn.Module):
    """A layer with an adapter of low rank, whose weights are in lists or dicts of parameters."""

    def __init__(self, kind, *, branching=True):
        super().__init__()
        self.base, self.branching = nn.Linear(4, 6), branching
        down, up = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(6, 2))
        if kind == "dicts":
            self.down, self.up = nn.ParameterDict({"a": down}), nn.ParameterDict({"a": up})
            self.key = "a"
        else:
            self.down, self.up = nn.ParameterList([down]), nn.ParameterList([up])
            self.key = 0
        self.more = nn.ModuleDict({"list": nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 6)])})

    def forward(self, x):
        if self.branching and x.sum() > 1e9:
            return x
        y = self.base(x) + x @ self.down[self.key].T @ self.up[self.key].T
        first, second = self.more["list"]
        return y + second(first(y).relu())


@pytest.mark.filterwarnings("ignore:not everything could be traced")
@pytest.mark.parametrize("kind", ["dicts", "lists"])
@pytest.mark.parametrize("nested", [False, True])
def test_lists_of_parameters_in_what_cannot_be_traced(kind, nested, generator):
    with torch.random.fork_rng():
        net = Adapted(kind)
        net = nn.Sequential(net, nn.ReLU(), nn.Linear(6, 3)) if nested else net
        plain = Adapted(kind, branching=False)
    assert by_graph(symmetries_of(net, torch.randn(7, 4, generator=generator))) == []
    names = ("more.list.0.weight", "more.list.0.bias", "more.list.1.weight")
    assert ("rescale", 5, names) in found(symmetries_of(plain))


class Forever(nn.Module):
    """Its loop ends by a value, which a symbol does not have."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        while not (isinstance(x, torch.Tensor) and x.abs().max() < 1e3):
            x = self.layer(x)
        return x


def test_a_loop_without_end_is_given_up(generator, monkeypatch):
    monkeypatch.setattr("dln_geometry.learning.architecture.tracing._MOST_OPERATIONS", 1000)
    with torch.random.fork_rng(), pytest.warns(UserWarning, match="could be traced"):
        assert by_graph(symmetries_of(Forever(), torch.randn(7, 4, generator=generator))) == []


def test_tracing_leaves_nothing_behind(generator):
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            self.last = x
            return self.layer(x)

    with torch.random.fork_rng():
        net = Remembers()
    symmetries_of(net, loss=CE)
    assert not hasattr(net, "last")


class Many(nn.Module):
    """Arguments of every kind."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x, pair, /, extra=None, *others, options, flag=False, **more):
        h = self.a(x) + self.b(pair[1]["y"])
        if flag:
            h = 2 * h
        if extra is not None:
            h = h * extra
        return {"out": self.c(h.relu()) * options["scale"], "kind": "dict"}


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Many()

    def forward(self, *, x, y, scale, **more):
        return self.inner(x, (None, {"y": y}), options={"scale": scale}, **more)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.up, self.down = nn.LSTM(4, 5), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x, state):
        return self.down(self.up(self.read(x, state)[0]).relu())


class Batched(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, batch):
        return self.net(batch["x"])


def test_arguments_of_every_kind(generator):
    x, y = torch.randn(5, 4, generator=generator), torch.randn(5, 3, generator=generator)
    state = torch.zeros(1, 4, 5)
    with torch.random.fork_rng():
        cases = {
            "keywords": (Keywords(), {"x": x, "y": y, "scale": torch.ones(5, 1), "flag": True}),
            "mapping with a numpy array": (Keywords(), {"x": x.numpy(), "y": y, "scale": 2.0}),
            "state": (Recurrent(), (torch.randn(3, 4, 4, generator=generator), (state, state))),
            "batch": (Batched(), ({"x": x},)),
            "list": (Batched(), [{"x": x}]),
        }
    for case, (net, inputs) in cases.items():
        groups = by_graph(symmetries_of(net, inputs))
        assert {g.kind for g in groups} == {"rescale", "permutation"}, case
        # Units whose outputs are added are an ensemble too: members of one kind.
        kinds = {f.kind for f in mirrors_of(net, inputs)} - {"ensemble"}
        assert kinds == {"permutation"}, case
    with pytest.raises(ValueError, match="can be called on, got .*5, 4.*missing"):
        symmetries_of(Recurrent(), x)
    with pytest.raises(ValueError, match=r"shape \(5, 3\), float: .*mat1 and mat2"):
        symmetries_of(Keywords(), {"x": y, "y": y, "scale": 1.0})
