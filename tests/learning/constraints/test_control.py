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
    for n in range(2000):
        optimizer.zero_grad()
        loss = (net(a) - b).square().sum() / 160
        loss.backward()
        optimizer.step()
        if n % 5 == 0 and n < 1500:
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


def test_each_parameter_ends_at_the_share_of_its_own(generator):
    """Two readers of the same features: each solves the Lasso problem at its own kappa."""
    a = torch.randn(80, 20, generator=generator, dtype=F64)
    sizes = torch.linspace(0.05, 2, 20, dtype=F64)
    b = a @ torch.stack([sizes, sizes]).mT + 0.1 * torch.randn(
        80, 2, generator=generator, dtype=F64
    )
    nets = nn.ModuleList(nn.Linear(20, 1, bias=False) for _ in range(2)).double()
    learning.dcs_(nets, ["0.weight", "1.weight"])
    parts = learning.dcs_parameter_groups(nets, 0.03)
    optimizer = torch.optim.SGD(parts, lr=0.05, momentum=0.9)
    target = {"0.weight": 0.25, "1.weight": 0.6}
    control = learning.SparsityControl(nets, optimizer, target, rate=0.1)
    assert len(optimizer.param_groups) == 2
    for n in range(2000):
        optimizer.zero_grad()
        sum((net(a)[:, 0] - b[:, k]).square().sum() / 160 for k, net in enumerate(nets)).backward()
        optimizer.step()
        if n % 5 == 0 and n < 1500:
            share, kappa = control.step()
    assert share == {k: pytest.approx(x, abs=1.5 / 20) for k, x in target.items()}
    assert kappa == control.kappa
    assert kappa["1.weight"] > 1.5 * kappa["0.weight"]
    for k, net in enumerate(nets):
        w = net.weight.detach()[0]
        g = a.mT @ (a @ w - b[:, k]) / 80
        on = w.abs() > 1e-3 * w.square().mean().sqrt()
        own = kappa[f"{k}.weight"]
        assert float((g[on] + own * w[on].sign()).abs().max()) < 0.03 * own
        assert float(g[~on].abs().max()) < 1.03 * own


def test_targets_that_name_nothing_or_tied_parameters_are_refused():
    nets = nn.ModuleList(learning.dcs_(nn.Linear(3, 2), "weight") for _ in range(2))
    optimizer = torch.optim.SGD(learning.dcs_parameter_groups(nets, 0.1), lr=0.1)
    control = learning.SparsityControl(nets, optimizer, {"1.weight": 0.5})
    share, kappa = control.step()
    assert set(share) == set(kappa) == {"1.weight"}
    # Parameters that are not named keep their decay.
    kept = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert kept[id(nets[0].parametrizations.weight.original0)] == 0.1
    assert kept[id(nets[1].parametrizations.weight.original0)] == kappa["1.weight"] > 0.1
    for bad in ({}, {"2.weight": 0.5}):
        with pytest.raises(ValueError, match="target must name"):
            learning.SparsityControl(nets, optimizer, bad)
    with pytest.raises(ValueError, match="must be below 1"):
        learning.SparsityControl(nets, optimizer, {"0.weight": 1.5})
    nets[1].parametrizations.weight = nets[0].parametrizations.weight
    optimizer = torch.optim.SGD(learning.dcs_parameter_groups(nets, 0.1), lr=0.1)
    with pytest.raises(ValueError, match="tied"):
        learning.SparsityControl(nets, optimizer, {"0.weight": 0.5, "1.weight": 0.5})


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
