from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import nn

from dln_geometry.learning import dcs_, dcs_parameter_groups, dcs_penalty
from dln_geometry.testing import assert_close
from tests.learning.constraints.routes import F64, linear, mean_square


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
