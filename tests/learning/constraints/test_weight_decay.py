from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import nn

from dln_geometry.learning import dcs_, dcs_parameter_groups, dcs_penalty
from dln_geometry.testing import assert_close
from tests.learning.constraints.routes import F64, linear, mean_square, regression


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_plain_optimisers_with_the_groups_reach_the_lasso(optimiser, generator):
    # Far from the thresholds, where the decay of what vanishes would take forever.
    x = torch.linalg.qr(torch.randn(24, 8, generator=generator, dtype=F64)).Q * 24**0.5
    x = x @ (torch.eye(8, dtype=F64) + 0.05 * torch.randn(8, 8, generator=generator, dtype=F64))
    y = x @ torch.tensor([[2.0], [-1.5], [0.03], [0.0], [1.0], [-0.02], [-0.8], [0.0]], dtype=F64)
    net = nn.Sequential(linear(1, 8, generator))
    dcs_(net, "0.weight")
    kappa = 0.2
    groups = dcs_parameter_groups(net, kappa)
    if optimiser is torch.optim.SGD:
        step = optimiser(groups, lr=0.1, momentum=0.8)
        schedule = None
    else:
        step = optimiser(groups, lr=0.05)
        schedule = torch.optim.lr_scheduler.ExponentialLR(step, 0.997)
    loss = mean_square(net, x, y)
    for _ in range(3000):
        step.zero_grad()
        loss().backward()
        step.step()
        if schedule is not None:
            schedule.step()
    peer = Lasso(alpha=kappa, fit_intercept=False, tol=1e-14, max_iter=100000)
    peer.fit(x.numpy(), y.numpy().ravel())
    assert np.sum(peer.coef_ == 0) == 4
    assert np.abs(net[0].weight.detach().numpy().ravel() - peer.coef_).max() < 1e-10


def test_groups_of_the_optimiser_hold_every_parameter_once(generator):
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    dcs_(net, "0.weight", torch.eye(20)[:, :7])
    dcs_(net, "2.weight", groups="nuclear")
    groups = dcs_parameter_groups(net, {"0.weight": 0.1, "2.weight": 0.3}, weight_decay=0.01)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.3, 0.01]
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in net.parameters())
    # z, the two biases and nothing else decay like the rest.
    assert [tuple(p.shape) for p in groups[2]["params"]] == [(4,), (4, 5), (3,)]
    squares = [sum(float(p.detach().square().sum()) for p in g["params"]) for g in groups[:2]]
    penalty = dcs_penalty(net, {"0.weight": 0.1, "2.weight": 0.3})
    assert_close(penalty, (0.1 * squares[0] + 0.3 * squares[1]) / 2)
    whole = dcs_(nn.Linear(3, 2, bias=False), "weight")
    assert len(dcs_parameter_groups(whole, 0.1)) == 1


def test_decay_of_factors_is_coupled_and_that_of_the_rest_as_the_optimiser_has_it(generator):
    net = dcs_(linear(3, 4, generator), "weight", torch.eye(12, dtype=F64)[:, :5])
    optimiser = torch.optim.AdamW(dcs_parameter_groups(net, 0.3, weight_decay=0.2), lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    z, *factors = net.parameters()
    # The first step of Adam has the size lr, whatever the gradient, which here is the decay alone.
    for u, old in zip(factors, before[1:], strict=True):
        assert_close(u, old - 0.1 * old / (old.abs() + 1e-8 / 0.3))
    assert_close(z, (1 - 0.1 * 0.2) * before[0])


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "RAdam"])
def test_optimisers_with_decoupled_decay_couple_that_of_the_factors(name, generator):
    start = linear(1, 8, generator)
    x, y = regression((1, 8), generator)

    def trained(optimiser, groups_of, **options):
        net = dcs_(copy.deepcopy(start), "weight")
        step = optimiser(groups_of(dcs_parameter_groups(net, 0.2)), lr=0.05, **options)
        loss = mean_square(net, x, y)
        for _ in range(20):
            step.zero_grad()
            loss().backward()
            step.step()
        return net.weight.detach()

    kind = getattr(torch.optim, name)
    options = {} if name == "AdamW" else {"decoupled_weight_decay": True}
    found = trained(kind, list, **options)
    # The same optimiser with coupled decay, on groups that say nothing about it.
    coupled = torch.optim.Adam if name == "AdamW" else kind

    def bare(groups):
        return [{k: g[k] for k in ("params", "weight_decay")} for g in groups]

    assert torch.equal(found, trained(coupled, bare))
    assert not torch.equal(found, trained(kind, bare, **options))


def test_tied_factors_decay_once(generator):
    layer = dcs_(linear(4, 4, generator), "weight")
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    assert [len(g["params"]) for g in dcs_parameter_groups(twice, 0.1)] == [2]
    other = dcs_(linear(4, 4, generator), "weight")
    other.parametrizations.weight.original0 = layer.parametrizations.weight.original0
    shared = nn.Sequential(layer, other)
    (group,) = dcs_parameter_groups(shared, 0.1)
    assert len(group["params"]) == 3
    squares = sum(p.detach().square().sum() for p in shared.parameters())
    assert_close(dcs_penalty(shared, 0.1), 0.05 * squares)
    with pytest.raises(ValueError, match="kappa must be the same for tied factors, got 0.2"):
        dcs_penalty(shared, {"0.weight": 0.1, "1.weight": 0.2})
