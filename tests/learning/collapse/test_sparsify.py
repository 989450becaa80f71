from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry import learning
from dln_geometry.testing import assert_close
from tests.learning.collapse.routes import shaken

F64 = torch.float64


class Residual(nn.Module):
    """Convolutions with norms and a residual connection, flattened."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.inner = nn.Conv2d(4, 5, 3, padding=1)
        self.inner_norm = nn.BatchNorm2d(5, affine=False)
        self.out = nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x):
        y = torch.relu(self.norm(self.stem(x)))
        y = y + self.out(torch.relu(self.inner_norm(self.inner(self.depthwise(y)))))
        return self.head(y.flatten(1))


def test_units_are_removed_through_norms_and_residual_connections(generator):
    net = shaken(Residual().double(), generator)
    x = torch.randn(4, 2, 3, 3, generator=generator, dtype=F64)
    with torch.no_grad():
        net.inner.weight[1] = 0.0  # the norm keeps a constant, which goes into a bias
        net.out.weight[:, 3] = 0.0
        net.stem.weight[2] = 0.0
        net.out.weight[2] = 0.0
        net.out.bias[2] = 0.0
        net.norm.bias[2] = -1.0  # off behind the ReLU, so that borders see no constant
    report = learning.sparsify(net, x)
    small = report.model
    assert (small.inner.out_channels, small.out.in_channels) == (3, 3)
    assert small.inner_norm.num_features == 3
    assert_close(small(x), net(x).detach(), ops=1e4)
    assert report.change == 0.0
    assert net.inner.out_channels == 5
    assert "removed 2 of 5 units" in str(report)


def test_gains_of_norms_that_are_zero_remove_channels(generator):
    """As network slimming leaves them; a channel of the residual stream has other sources."""
    net = shaken(Residual().double(), generator)
    net.inner_norm = nn.BatchNorm2d(5).double().eval()
    with torch.no_grad():
        net.inner_norm.weight.copy_(torch.tensor([1.0, 0.0, 0.7, 0.0, 0.2]))
        net.inner_norm.bias.copy_(torch.tensor([0.3, -0.5, 0.1, 0.4, -0.2]))
        net.norm.weight[1] = 0.0
        net.norm.bias[1] = -1.0
    x = torch.randn(4, 2, 3, 3, generator=generator, dtype=F64)
    report = learning.sparsify(net, x)
    # One of the two is a constant of 0.4, which goes into the bias of the pointwise layer.
    assert report.model.inner.out_channels == report.model.inner_norm.num_features == 3
    assert report.model.stem.out_channels == 4
    y = torch.randn(4, 2, 3, 3, generator=generator, dtype=F64)
    assert_close(report.model(y), net(y).detach(), ops=1e4)


@pytest.mark.parametrize("bias", [True, False])
def test_constant_units_go_into_biases_and_empty_others(bias, generator):
    net = nn.Sequential(
        nn.Linear(3, 6),
        nn.Tanh(),
        nn.Linear(6, 5, bias=bias),
        nn.Sigmoid(),
        nn.Linear(5, 2, bias=bias),
    )
    net = shaken(net.double(), generator).train()
    with torch.no_grad():
        net[0].weight[1] = 0.0
        net[2].weight[:, [0, 4]] = 0.0
        net[4].weight[:, 2] = 0.0
        # Read by a unit alone that is read by nobody.
        net[2].weight[:, 5] = 0.0
        net[2].weight[2, 5] = 1.0
    x = torch.randn(7, 3, generator=generator, dtype=F64)
    report = learning.sparsify(net, x)
    assert [m.out_features for m in report.model if isinstance(m, nn.Linear)] == [2, 4, 2]
    assert_close(report.model(x), net(x).detach(), ops=1e4)
    assert report.model.training
    y = torch.randn(7, 3, generator=generator, dtype=F64)
    assert_close(report.model(y), net(y).detach(), ops=1e4)


def test_units_that_must_stay_are_named(generator):
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    net = shaken(net.double(), generator)
    with torch.no_grad():
        net[3].weight[:, 1] = 0.0
    x = torch.randn(5, 3, generator=generator, dtype=F64)
    report = learning.sparsify(net, x)
    assert report.removed == ()
    assert all(units == (1,) for _, units, _ in report.kept)
    assert_close(report.model(x), net(x).detach(), ops=1e4)


def test_target_and_names_choose_entries(generator):
    net = shaken(nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5)).double(), generator)
    x = torch.randn(3, 10, generator=generator, dtype=F64)
    report = learning.sparsify(net, x, target=0.6, names="0.*")
    assert set(report.zeros) == {"0.weight", "0.bias"}
    assert report.sparsity == pytest.approx(0.6, abs=0.01)
    assert report.change > 0
    only = learning.sparsify(net, x, threshold=0.5, remove=False)
    assert only.removed == ()
    assert only.sparsity > 0.2
    with pytest.raises(ValueError, match="names must match"):
        learning.sparsify(net, x, names="9.*")
    with pytest.raises(ValueError, match="outputs with finite entries, got none"):
        learning.sparsify(net, x * float("nan"))
    with torch.no_grad():
        net[0].bias[1] = float("inf")
    with pytest.raises(ValueError, match=r"NaN or infinity in '0.bias'"):
        learning.sparsify(net, x)
    with pytest.raises(ValueError, match="not be given with a threshold"):
        learning.sparsify(net, x, threshold=0.1, target=0.1)


def test_trained_constraints_become_a_smaller_model(generator):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    x = torch.randn(60, 4, generator=generator, dtype=F64)
    y = torch.tanh(x[:, :1])
    learning.dcs_(net, "2.weight")
    groups = learning.dcs_parameter_groups(net, 0.02)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for _ in range(400):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    report = learning.sparsify(net, x, threshold=1e-3)
    assert report.model[0].out_features < 12
    assert report.change < 1e-2
    assert not nn.utils.parametrize.is_parametrized(report.model[2])
