from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dln_geometry import learning
from dln_geometry.testing import assert_close

F64 = torch.float64


class Scaled(nn.Module):
    """``alpha (g - g_0)``: large alpha makes training lazy (Chizat, Oyallon, Bach)."""

    def __init__(self, net, alpha):
        super().__init__()
        self.net, self.alpha, self.start = net, alpha, copy.deepcopy(net).requires_grad_(False)

    def forward(self, x):
        return self.alpha * (self.net(x) - self.start(x))


def test_scales_of_the_output_go_from_rich_to_lazy(generator):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    x = torch.randn(10, 3, generator=generator, dtype=F64)
    y = torch.randn(10, 1, generator=generator, dtype=F64)
    found = []
    for alpha in (1.0, 8.0, 64.0, 256.0):
        net = Scaled(copy.deepcopy(plain), alpha)
        before = copy.deepcopy(net)
        optimizer = torch.optim.SGD(net.net.parameters(), lr=0.3 / alpha**2)
        for _ in range(60):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
        found.append(learning.training_regime(before, net, x, y))
    for name in ("kernel_distance", "linearization_error", "parameter_distance"):
        values = [getattr(one, name) for one in found]
        assert values == sorted(values, reverse=True)
        assert values[-1] < values[0] / 20
    gains = [one.alignment[1] - one.alignment[0] for one in found]
    assert gains[0] > 20 * abs(gains[-1])
    # All steps in the direction of the first order: the error falls like 1 / alpha.
    assert found[-2].linearization_error / found[-1].linearization_error == pytest.approx(
        4, rel=0.2
    )


def test_measures_are_those_of_the_jacobian(generator):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    after = copy.deepcopy(net)
    with torch.no_grad():
        for p in after.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=F64)
    x = torch.randn(5, 3, generator=generator, dtype=F64)
    y = torch.randn(5, 2, generator=generator, dtype=F64)
    found = learning.training_regime(net, after, x, y)
    rows = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(o, net.parameters(), retain_graph=True)]
        )
        for o in net(x).flatten()
    ]
    j = torch.stack(rows)
    q, r = (nn.utils.parameters_to_vector(m.parameters()).detach() for m in (net, after))
    change = (after(x) - net(x)).detach().flatten()
    error = (change - j @ (r - q)).norm() / change.norm()
    assert_close(torch.tensor(found.linearization_error, dtype=F64), error, ops=300)
    distance = torch.tensor(found.parameter_distance, dtype=F64)
    assert_close(distance, (r - q).norm() / q.norm(), ops=300)
    k = j @ j.mT
    aligned = (k * torch.outer(y.flatten(), y.flatten())).sum() / k.norm() / y.square().sum()
    assert_close(torch.tensor(found.alignment[0], dtype=F64), aligned, ops=300)
    same = learning.training_regime(net, net, x)
    assert (same.kernel_distance, same.linearization_error, same.parameter_distance) == (0, 0, 0)
    assert same.alignment is None


def test_wrong_pairs_and_targets_are_refused():
    net, x = nn.Linear(2, 1), torch.ones(3, 2)
    with pytest.raises(ValueError, match="parameters of before"):
        learning.training_regime(net, nn.Linear(2, 1, bias=False), x)
    with pytest.raises(ValueError, match="targets must have the shape"):
        learning.training_regime(net, net, x, torch.ones(3))
    with pytest.raises(ValueError, match="targets must have the shape"):
        learning.training_regime(net, net, x, torch.zeros(3, 1))
