"""Ensembles: members of any kind, with and without layers that read blocks of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry.learning.collapse import MirrorFamily, collapse_report, mirrors_of
from dln_geometry.learning.functional import functionalize
from dln_geometry.testing import assert_close
from tests.learning.collapse.routes import wave

F64 = torch.float64


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(5, 4, batch_first=True)

    def forward(self, x):
        return self.cell(x.unsqueeze(1))[0][:, 0]


class Ensemble(nn.Module):
    """Members whose outputs are added, read by one layer, mixed by a gate, or scaled one by one."""

    def __init__(self, member, how, count=3):
        super().__init__()
        self.how, self.members = how, nn.ModuleList(member() for _ in range(count))
        if how == "read":
            self.head = nn.Linear(4 * count, 2)
        elif how == "gate":
            self.gate = nn.Linear(5, count)
        elif how == "scales":
            self.scales = nn.ParameterList(nn.Parameter(torch.ones(4)) for _ in range(count))

    def forward(self, x):
        outputs = [member(x) for member in self.members]
        if self.how == "read":
            return self.head(torch.cat(outputs, -1))
        if self.how == "gate":
            weights = self.gate(x).softmax(-1)
            return sum(weights[:, k : k + 1] * y for k, y in enumerate(outputs))
        if self.how == "scales":
            return sum(s * y for s, y in zip(self.scales, outputs, strict=True))
        return sum(outputs)


MEMBERS = {
    "linear": lambda: nn.Linear(5, 4),
    "normed": lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 4)),
    "recurrent": Recurrent,
}
CASES = [("linear", "read"), ("normed", "gate"), ("recurrent", "sum"), ("linear", "scales")]


def found(net, x):
    return [family for family in mirrors_of(net, x) if family.kind == "ensemble"]


@pytest.mark.parametrize(("member", "how"), CASES)
def test_members_are_found_and_their_exchange_is_a_symmetry(member, how, generator):
    torch.manual_seed(1)
    net = Ensemble(MEMBERS[member], how).double()
    x = torch.randn(8, 5, generator=generator, dtype=F64)
    (family,) = found(net, x)
    others = {"read": {"head.bias"}}.get(how, set())
    assert set(family.names) == {n for n, _ in net.named_parameters()} - others
    loss, params = functionalize(net, wave, x)
    defects = family.defects(params)
    for pair in ((0, 1), (2, 0)):
        mirror = family.mirror(params, pair)
        assert mirror.is_symmetric(loss, params, rtol=1e-9, generator=generator)
        assert_close(mirror.defect(params), defects[pair])
    assert_close(family.closest(params, 1)[0][0], defects[~torch.eye(3, dtype=torch.bool)].min())


class Parts(nn.Module):
    """Layers of one shape that are no ensemble, but two of them."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = (nn.Linear(5, 5) for _ in range(3))
        self.attention = nn.ModuleDict({k: nn.Linear(5, 5) for k in ("q", "k", "v")})

    def forward(self, x):
        y = self.out(torch.tanh(self.left(x)) * torch.tanh(self.right(x)))
        q, k, v = (self.attention[name](y) for name in ("q", "k", "v"))
        return (q @ k.mT).softmax(-1) @ v


def test_layers_of_one_shape_are_members_only_if_they_can_be_exchanged(generator):
    torch.manual_seed(0)
    x = torch.randn(8, 5, generator=generator, dtype=F64)
    (family,) = found(Parts().double(), x)
    assert family.members == (("left.weight", "left.bias"), ("right.weight", "right.bias"))
    chain = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    assert not found(chain.double(), x)
    # Each member has statistics of its own in evaluation mode.
    net = Ensemble(MEMBERS["normed"], "sum").double()
    assert len(found(net, x)) == 1
    assert not found(net.eval(), x)


def test_members_collapse_under_weight_decay(generator):
    """With enough decay an ensemble ends as one network; the report says so before."""
    torch.manual_seed(3)
    net = Ensemble(MEMBERS["linear"], "sum", 2).double()
    data = tuple(torch.randn(12, n, generator=generator, dtype=F64) for n in (5, 4))
    options = {"weight_decay": 0.3, "count": 1}
    families = found(net, data[0])

    def record():
        report = collapse_report(net, nn.MSELoss(), data, families=families, **options)
        return report.records[0]

    before = record()
    assert before.status == "collapsing"
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(data[0]), data[1]).backward()
        optimizer.step()
    after = record()
    assert after.status == "collapsed"
    assert after.defect < 1e-6 * before.defect


def test_members_must_be_alike():
    members = (("a", "b"), ("c", "d"))
    family = MirrorFamily("ensemble", {}, 2, members=members)
    assert family.names == ("a", "b", "c", "d")
    for bad in ((("a", "b"), ("c",)), (("a",),), ()):
        with pytest.raises(ValueError, match="members must be"):
            MirrorFamily("ensemble", {}, 2, members=bad)
    with pytest.raises(ValueError, match="members must be"):
        MirrorFamily("permutation", {"a": 0}, 2, members=members)
