from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry import learning
from dln_geometry.testing import assert_close


def test_the_kernel_is_that_of_gradients_one_by_one(generator):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    net[0].bias.requires_grad_(False)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    trained = [p for p in net.parameters() if p.requires_grad]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(o, trained, retain_graph=True)])
        for o in net(x).flatten()
    ]
    j = torch.stack(rows)
    assert_close(learning.tangent_kernel(net, x), j @ j.mT, ops=300)


def test_the_distance_keeps_its_digits_near_zero(generator):
    k = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    k = k @ k.mT
    e = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    e = e - (e * k).sum() / k.square().sum() * k
    small = 1e-9
    expected = (small * e.norm() / k.norm()).square() / 2
    found = learning.kernel_distance(k, k + small * e)
    assert_close(found, expected, ops=1.0, condition=1e9)


def test_wrong_kernels_are_refused():
    with pytest.raises(ValueError, match="inputs must be given"):
        learning.kernel_distance(nn.Linear(2, 1), nn.Linear(2, 1))
    with pytest.raises(ValueError, match="must not be zero"):
        learning.kernel_distance(torch.zeros(2, 2), torch.eye(2))
    with pytest.raises(ValueError, match="shape of before"):
        learning.kernel_distance(torch.eye(3), torch.eye(2))


def test_modules_are_left_alone_whatever_wraps_them(generator):
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
        other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3, generator=generator)
    kernel = learning.tangent_kernel(net, x)
    assert_close(learning.tangent_kernel(nn.DataParallel(net), x), kernel)
    learning.training_regime(net, other, x)
    # Batches were seen in training mode, but not counted.
    assert not net[1].running_mean.any()
    assert other[1].num_batches_tracked == 0


def complex_layer():
    layer = nn.Linear(2, 1)
    layer.weight = nn.Parameter(torch.ones(1, 2, dtype=torch.complex64))
    return layer


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (complex_layer, TypeError, "parameters must be real, got"),
        (lambda: nn.Linear(2, 1, device="meta"), ValueError, "on the meta device"),
        (lambda: nn.Sequential(nn.Linear(2, 1), nn.Dropout()), ValueError, "put dropout layers"),
        (lambda: nn.Linear(3, 1), TypeError, "inputs must be what the module takes"),
    ],
)
def test_modules_without_a_kernel_are_named(make, error, message):
    with torch.random.fork_rng():
        with pytest.raises(error, match=message):
            learning.tangent_kernel(make(), torch.ones(3, 2))
        with pytest.raises(error, match=message):
            learning.training_regime(make(), make(), torch.ones(3, 2))
