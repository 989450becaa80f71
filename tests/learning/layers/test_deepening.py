from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry import learning
from dln_geometry.testing import assert_close
from tests.learning.networks import Conv1D

F64 = torch.float64


class Block(nn.Module):
    """Attention, and one layer called in two places."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.shared = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        y = self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.shared(torch.tanh(self.shared(y))))


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_deepened_and_plain_are_equal(depth, dtype, generator):
    torch.manual_seed(0)
    net = Block().to(dtype).eval()
    net.shared.weight.requires_grad_(False)
    x = torch.randn(2, 5, 4, generator=generator, dtype=F64).to(dtype)
    deep = learning.deepen(net, depth)
    assert isinstance(deep.shared, learning.DeepLinear)
    assert type(net.shared) is nn.Linear
    assert not deep.training
    assert not deep.shared.weights[0].requires_grad
    # The output projection of the attention is a subclass of nn.Linear.
    assert isinstance(deep.attention.out_proj, nn.Linear)
    assert_close(deep(x), net(x), ops=1000)
    flat = learning.flatten_depth(deep)
    assert flat.state_dict().keys() == net.state_dict().keys()
    assert not flat.shared.weight.requires_grad
    assert_close(flat(x), net(x), ops=1000)


def test_where_chooses_by_patterns_and_functions():
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))

    def deep(where):
        made = learning.deepen(net, 2, where).named_modules()
        return [name for name, m in made if isinstance(m, learning.DeepLinear)]

    assert deep(None) == ["0", "1.0", "1.1"]
    assert deep("1.*") == ["1.0", "1.1"]
    assert deep(["0", "1.1"]) == ["0", "1.1"]
    assert deep(lambda name, layer: layer.out_features == 4) == ["0", "1.0"]
    assert isinstance(learning.deepen(net[0], 2), learning.DeepLinear)


def test_layers_that_cannot_be_replaced_are_named():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="shares its weight"):
        learning.deepen(tied, 2, "1")
    with pytest.raises(ValueError, match="none among"):
        learning.deepen(tied, 2)
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hooks"):
        learning.deepen(hooked, 2, "*")
    with pytest.raises(ValueError, match="parametrised"):
        learning.deepen(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), 2, "*")
    with pytest.raises(ValueError, match="where must match"):
        learning.deepen(nn.Sequential(nn.Linear(2, 2)), 2, "fc*")
    with pytest.raises(ValueError, match="rank at most 1"):
        learning.deepen(nn.Linear(3, 3), 2, hidden=1)


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular"),
    "grouped": lambda: nn.Conv1d(6, 4, 3, groups=2, dilation=2, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, output_padding=1),
    "grouped and transposed": lambda: nn.ConvTranspose3d(4, 6, (1, 2, 3), groups=2),
    "of one pixel": lambda: nn.Conv2d(4, 4, 1),
}


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_become_deep(name, depth, generator):
    torch.manual_seed(3)
    layer = CONVOLUTIONS[name]().double()
    layer.weight.requires_grad_(name != "grouped")
    x = torch.randn(2, layer.in_channels, *[7] * (layer.weight.ndim - 2), generator=generator)
    x = x.double()
    deep = learning.deepen(layer, depth)
    assert len(deep) == depth
    assert_close(deep(x), layer(x), ops=1000)
    # Balanced in each group: ``W_2^T W_2 = W_1 W_1^T`` of the kernels as matrices.
    if depth > 1 and not layer.transposed:
        g = layer.groups
        first, second = (
            one.weight.detach().reshape(g, -1, one.weight[0].numel()) for one in deep[:2]
        )
        assert_close(second.mT @ second, first @ first.mT, ops=1000)
    flat = learning.flatten_depth(deep)
    assert repr(flat) == repr(layer)
    assert flat.weight.requires_grad == layer.weight.requires_grad
    assert_close(flat.weight.detach(), layer.weight.detach(), ops=1000)
    with pytest.raises(ValueError, match="linear layers"):
        learning.deepen(deep, 2)


def test_convolutions_are_chosen_by_name():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(36, 2))
    assert type(learning.deepen(net, 2)[0]) is nn.Conv2d
    deep = learning.deepen(net, 3, "0", hidden=8)
    assert [one.out_channels for one in deep[0]] == [8, 8, 4]
    assert type(deep[2]) is nn.Linear
    with pytest.raises(ValueError, match="multiples of the 2 groups, got 3"):
        learning.deepen(nn.Conv2d(4, 4, 3, groups=2), 2, hidden=3)
    with pytest.raises(ValueError, match="rank at most 1"):
        learning.deepen(nn.Conv2d(4, 4, 3), 2, hidden=1)
    with pytest.raises(TypeError, match="widths must be integers"):
        learning.deepen(nn.Conv2d(4, 4, 3), 2, hidden="a")


def test_transposed_linear_layers_become_deep(generator):
    layer = Conv1D(5, 3).double()
    x = torch.randn(4, 2, 3, generator=generator, dtype=F64)
    net = nn.Sequential(layer, nn.GELU(), nn.Linear(5, 2).double())
    deep = learning.deepen(net, 3)
    assert deep[0].widths == (3, 3, 3, 5)
    assert_close(deep(x), net(x), ops=1000)
    flat = learning.flatten_depth(deep)
    assert_close(flat[0].weight.detach(), layer.weight.detach().mT, ops=1000)
    assert_close(flat(x), net(x), ops=1000)
