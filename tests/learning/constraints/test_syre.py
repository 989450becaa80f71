from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from dln_geometry.learning.constraints import syre_
from dln_geometry.learning.mirror import Mirror
from dln_geometry.testing import assert_close
from tests.learning.mirror.routes import HIDDEN

F64 = torch.float64


def _net(dtype=F64):
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("anisotropy", [0.0, 0.5])
def test_the_function_is_kept_and_only_the_centre_of_decay_moves(anisotropy, dtype, generator):
    net = _net(dtype)
    plain = copy.deepcopy(net)
    syre_(net, sigma=0.3, anisotropy=anisotropy, generator=generator)
    x = torch.randn(4, 5, generator=generator, dtype=dtype)
    assert_close(net(x), plain(x))
    # A step of SGD with decay is one on f(q) + k/2 sum d (q - q_0)^2, in the variable z.
    k, lr = 0.7, 0.01
    site = net[0].parametrizations["weight"]
    offset, scale = site[0].offset, site[0].scale
    d = torch.ones_like(offset) if scale is None else scale.double() ** -2
    q = plain[0].weight
    plain(x).square().sum().backward()
    expected = q.grad + k * (d * (q - offset)).to(dtype)
    net(x).square().sum().backward()
    before = net[0].weight.detach().clone()
    torch.optim.SGD(net.parameters(), lr=lr, weight_decay=k).step()
    moved = (before - net[0].weight.detach()) / lr
    assert_close(moved, expected / d, ops=1000, condition=1 / lr)


def test_the_law_of_the_offsets(generator):
    layer = nn.Linear(400, 300, dtype=F64)
    syre_(layer, anisotropy=0.4, generator=generator)
    site = layer.parametrizations["weight"][0]
    assert abs(float(site.offset.std()) * math.sqrt(400) / 0.01 - 1) < 4 / math.sqrt(2 * 120000)
    assert abs(float(site.offset.mean())) < 4 * 0.01 / math.sqrt(400 * 120000)
    bias = layer.parametrizations["bias"][0]
    assert abs(float(bias.offset.std()) * math.sqrt(400) / 0.01 - 1) < 4 / math.sqrt(600)
    decays = site.scale.square().reciprocal()
    assert float(decays.min()) >= 0.6 - 1e-12
    assert float(decays.max()) <= 1.4 + 1e-12
    assert abs(float(decays.mean()) - 1) < 4 * 0.4 / math.sqrt(3 * 120000)


def test_no_mirror_is_left_in_loss_and_decay_together(generator):
    net = _net()
    x = torch.randn(9, 5, generator=generator, dtype=F64)
    y = torch.randn(9, 3, generator=generator, dtype=F64)

    def trained(net, decay):
        def loss(q):
            out = torch.func.functional_call(net, q, (x,))
            return (out - y).square().mean() + decay * sum(z.square().sum() for z in q.values())

        return loss, {name: p.detach() for name, p in net.named_parameters()}

    loss, params = trained(net, 0.1)
    mirrors = [
        Mirror.permutation(params, HIDDEN, 1, 4),
        Mirror.rescaling(params, HIDDEN, 2),
    ]
    assert all(mirror.is_symmetric(loss, params, generator=generator) for mirror in mirrors)
    syre_(net, sigma=0.05, generator=generator)
    loss, params = trained(net, 0.1)
    axes = {
        f"{name.rpartition('.')[0]}.parametrizations.{name.rpartition('.')[2]}.original": axis
        for name, axis in HIDDEN.items()
    }
    for mirror in (
        Mirror.permutation(params, axes, 1, 4),
        Mirror.rescaling(params, axes, 2),
    ):
        assert mirror.residual(loss, params, generator=generator) > 1e-3


def test_neurons_that_started_equal_separate(generator):
    x = torch.randn(40, 3, generator=generator, dtype=F64)
    y = torch.stack([x[:, 0].tanh(), x[:, 1].tanh()], -1)
    gaps = []
    for remove in (False, True):
        net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double()
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.full(p.shape, 0.5))
        if remove:
            syre_(net, generator=generator)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.2, weight_decay=2e-3)
        for _ in range(400):
            optimiser.zero_grad()
            (net(x) - y).square().mean().backward()
            optimiser.step()
        w = net[0].weight.detach()
        gaps.append(float((w[0] - w[1]).norm()))
    # On the mirror gradient descent stays, until rounding has grown.
    assert gaps[0] < 1e-5
    assert gaps[1] > 0.5


def test_the_offset_is_in_the_state_and_goes_with_the_parametrisation(generator):
    net = syre_(_net(), ["0.weight", "2.bias"], generator=generator)
    names = [name for name, _ in net.named_parameters()]
    assert "0.parametrizations.weight.original" in names
    assert "0.bias" in names
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = syre_(_net(), ["0.weight", "2.bias"])
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(4, 5, generator=generator, dtype=F64)
    assert torch.equal(net(x), other(x))
    before = net[0].weight.detach().clone()
    parametrize.remove_parametrizations(net[0], "weight")
    assert_close(net[0].weight.detach(), before)


def test_every_common_layer_takes_it(generator):
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6)
    )
    attention = nn.MultiheadAttention(6, 2, batch_first=True)
    x = torch.randn(3, 2, 4, 4, generator=generator)
    z = torch.randn(3, 5, 6, generator=generator)
    before, attended = net(x), attention(z, z, z, need_weights=False)[0]
    syre_(net, generator=generator)
    syre_(attention, generator=generator)
    assert_close(net(x), before, ops=1000)
    assert_close(attention(z, z, z, need_weights=False)[0], attended, ops=1000)


def test_bad_input():
    with pytest.raises(TypeError, match="module must be a torch.nn.Module, got str"):
        syre_("net")
    net = _net()
    with pytest.raises(ValueError, match="must have the parameter '0.wight'"):
        syre_(net, ["0.bias", "0.wight"])
    # Nothing was changed on the way.
    assert not parametrize.is_parametrized(net[0])
    with pytest.raises(ValueError, match="must have parameters to change, got none"):
        syre_(nn.Tanh())
    with pytest.raises(ValueError, match="sigma must be non-negative"):
        syre_(net, sigma=-1.0)
    with pytest.raises(ValueError, match="anisotropy must be below 1"):
        syre_(net, anisotropy=1.0)
    with pytest.raises(TypeError, match="generator must be a torch.Generator"):
        syre_(net, generator="3")
    syre_(net, "0.weight")
    with pytest.raises(ValueError, match="must be plain, got one that is parametrised"):
        syre_(net, "0.weight")
