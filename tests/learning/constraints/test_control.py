from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry import learning

F64 = torch.float64


@pytest.mark.parametrize("groups", [None, "row"])
def test_training_ends_at_the_share_and_solves_the_problem_there(groups, generator):
    """The conditions of Karush, Kuhn and Tucker at the kappa that the control has found."""
    rows, columns = (1, 30) if groups is None else (12, 4)
    a = torch.randn(80, columns, generator=generator, dtype=F64)
    sizes = torch.linspace(0.02, 2, rows * columns, dtype=F64).reshape(rows, columns)
    b = a @ sizes.mT + 0.1 * torch.randn(80, rows, generator=generator, dtype=F64)
    net = nn.Linear(columns, rows, bias=False).double()
    learning.dcs_(net, "weight", groups=groups)
    parts = learning.dcs_parameter_groups(net, 0.01)
    optimizer = torch.optim.SGD(parts, lr=0.05, momentum=0.9)
    control = learning.SparsityControl(net, optimizer, 0.5, rate=0.05)
    for n in range(3000):
        optimizer.zero_grad()
        loss = (net(a) - b).square().sum() / 160
        loss.backward()
        optimizer.step()
        if n % 5 == 0 and n < 2000:
            share, kappa = control.step()
    assert share == pytest.approx(0.5, abs=1.5 / (30 if groups is None else 12))
    w = net.weight.detach().requires_grad_()
    (g,) = torch.autograd.grad((a @ w.mT - b).square().sum() / 160, w)
    w = w.detach()
    w, g = (x.reshape(-1, 1) if groups is None else x for x in (w, g))
    length = w.norm(dim=1)
    off = length <= 1e-3 * length.square().mean().sqrt()
    assert float(off.double().mean()) == pytest.approx(0.5, abs=2 / len(off))
    on = ~off
    pull = g[on] + kappa * w[on] / length[on, None]
    assert float(pull.norm(dim=1).max()) < 0.02 * kappa
    assert float(g[off].norm(dim=1).max()) < kappa * 1.02


def test_wrong_optimisers_are_refused():
    net = learning.dcs_(nn.Linear(3, 2), "weight")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="without other parameters"):
        learning.SparsityControl(net, optimizer, 0.5)
    groups = learning.dcs_parameter_groups(net, 0.0)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    assert learning.SparsityControl(net, optimizer, 0.5).kappa > 0
    with pytest.raises(ValueError, match="target must be below 1"):
        learning.SparsityControl(net, optimizer, 1.0)
    with pytest.raises(TypeError, match="optimizer must be"):
        learning.SparsityControl(net, net, 0.5)
    with pytest.raises(ValueError, match="rewritten by dcs_"):
        learning.SparsityControl(nn.Linear(3, 2), optimizer, 0.5)
