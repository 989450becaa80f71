from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry.learning import symmetries_of
from tests.learning.architecture.routes import CE, found
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
    groups = symmetries_of(net, x, loss=CE)
    assert groups == symmetries_of(net, loss=CE)
    mask = 1 + torch.rand(6, 5, 1, generator=generator, dtype=torch.float64)
    # With a mask the residual stream is no longer only added to and normalised.
    assert len(symmetries_of(net, (x, mask), loss=CE)) < len(groups)


def test_modules_of_torch_themselves_are_read():
    assert [g.kind for g in symmetries_of(nn.Linear(3, 4), loss=CE)] == ["translation"]
    layer = nn.TransformerEncoderLayer(6, 2, 10, batch_first=True, dropout=0.0)
    assert ("rescale", 10, ("linear1.weight", "linear1.bias", "linear2.weight")) in found(
        symmetries_of(layer)
    )
