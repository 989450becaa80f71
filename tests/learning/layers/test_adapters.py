"""Adapters of low rank: the layers of PEFT and loralib by their attributes, and chains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry import learning
from dln_geometry.testing import assert_close

F64 = torch.float64


class Adapted(nn.Module):
    """The attributes of a LoRA layer of PEFT."""

    def __init__(self, n, r, m):
        super().__init__()
        self.base_layer = nn.Linear(n, m)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(n, r, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(r, m, bias=False)})
        self.scaling = {"default": 0.5}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_adapters_hold_the_nearest_update_in_balance(rank, generator):
    adapter = Adapted(5, rank, 4).double()
    update = torch.randn(4, 3, generator=generator, dtype=F64)
    update = update @ torch.randn(3, 5, generator=generator, dtype=F64)
    assert learning.balanced_adapter_(adapter, update) is adapter
    a, b = adapter.lora_A["default"].weight, adapter.lora_B["default"].weight
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    nearest = u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]
    assert_close((0.5 * b @ a).detach(), nearest, ops=1000)
    assert_close((b.mT @ b).detach(), (a @ a.mT).detach(), ops=1000)


def test_deeper_adapters_and_wrong_ones(generator):
    weights = [torch.zeros(b, a, dtype=F64) for a, b in ((5, 2), (2, 3), (3, 4))]
    update = torch.randn(4, 1, generator=generator, dtype=F64) @ torch.ones(1, 5, dtype=F64)
    learning.balanced_adapter_(weights, update, scaling=2.0)
    assert_close(2.0 * weights[2] @ weights[1] @ weights[0], update, ops=1000)
    with pytest.raises(ValueError, match="name must be one of"):
        learning.balanced_adapter_(Adapted(5, 2, 4), torch.zeros(4, 5), name="other")
    with pytest.raises(ValueError, match="update must have shape"):
        learning.balanced_adapter_(Adapted(5, 2, 4), torch.zeros(5, 4))
    with pytest.raises(TypeError, match="lora_A"):
        learning.balanced_adapter_(nn.Tanh(), torch.zeros(4, 5))
    layer = Adapted(5, 2, 4)
    layer.use_dora = {"default": True}
    with pytest.raises(ValueError, match="DoRA"):
        learning.balanced_adapter_(layer, torch.zeros(4, 5))
    wrong = [nn.Conv1d(2, 3, 3), nn.Conv1d(3, 2, 3)]
    with pytest.raises(ValueError, match="kernel of one point"):
        learning.balanced_adapter_(wrong, torch.zeros(2, 6))
    with pytest.raises(ValueError, match="one group"):
        learning.balanced_adapter_([nn.Conv1d(4, 2, 1, groups=2)], torch.zeros(2, 2))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(5, 2))
    with pytest.raises(TypeError, match="computed"):
        learning.balanced_adapter_([normed, nn.Linear(2, 4)], torch.zeros(4, 5))


class Convolved(nn.Module):
    """A convolution of PEFT: the kernel is in A."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Conv2d(3, 5, (3, 2), padding=1)
        self.lora_A = nn.ModuleDict({"own": nn.Conv2d(3, 4, (3, 2), padding=1, bias=False)})
        self.lora_B = nn.ModuleDict({"own": nn.Conv2d(4, 5, 1, bias=False)})
        self.scaling = {"own": 2.0}

    def forward(self, x):
        return self.base_layer(x) + 2.0 * self.lora_B["own"](self.lora_A["own"](x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions_move_as_if_the_kernel_had_the_update(layout, generator):
    layer = Convolved().double().to(memory_format=layout)
    left = torch.randn(5, 4, generator=generator, dtype=F64)
    update = left @ torch.randn(4, 18, generator=generator, dtype=F64)
    x = torch.randn(2, 3, 6, 6, generator=generator, dtype=F64)
    learning.balanced_adapter_(layer, update.reshape(5, 3, 3, 2), name="own")
    found = layer(x)
    with torch.no_grad():
        layer.base_layer.weight += update.reshape(5, 3, 3, 2)
    assert_close(found.detach(), layer.base_layer(x).detach(), ops=1000)
    a, b = (m["own"].weight.detach().flatten(1) for m in (layer.lora_A, layer.lora_B))
    assert_close(b.mT @ b, a @ a.mT, ops=1000)


class Numbers(nn.Module):
    """An embedding of PEFT: parameters with names of their own."""

    def __init__(self):
        super().__init__()
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.lora_embedding_A = nn.ParameterDict({"default": torch.zeros(2, 7, dtype=F64)})
        self.lora_embedding_B = nn.ParameterDict({"default": torch.zeros(4, 2, dtype=F64)})
        self.scaling = {"default": 0.5}


class Plain(nn.Module):
    """A layer of loralib; its weight may be transposed."""

    def __init__(self, fan_in_fan_out):
        super().__init__()
        self.fan_in_fan_out, self.scaling = fan_in_fan_out, 0.5
        self.lora_A = nn.Parameter(torch.zeros(2, 7, dtype=F64))
        self.lora_B = nn.Parameter(torch.zeros(4, 2, dtype=F64))


@pytest.mark.parametrize("kind", ["embedding", "plain", "transposed", "sequence"])
def test_updates_have_the_shape_of_the_weight(kind, generator):
    update = torch.randn(4, 2, generator=generator, dtype=F64)
    update = update @ torch.randn(2, 7, generator=generator, dtype=F64)
    if kind == "sequence":
        chain = [nn.Linear(i, j, bias=False) for i, j in ((7, 3), (3, 2), (2, 4))]
        net = learning.balanced_adapter_(nn.Sequential(*chain).double(), update)
        assert_close(net(torch.eye(7, dtype=F64)).detach(), update.mT, ops=1000)
        return
    layer = Numbers() if kind == "embedding" else Plain(kind == "transposed")
    given = update if kind == "plain" else update.mT
    learning.balanced_adapter_(layer, given)
    if kind == "embedding":
        a, b = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    else:
        a, b = layer.lora_A, layer.lora_B
    assert_close((0.5 * b @ a).detach(), update, ops=1000)
    with pytest.raises(ValueError, match="update must have shape"):
        learning.balanced_adapter_(layer, given.mT)
