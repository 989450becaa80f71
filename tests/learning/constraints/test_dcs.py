from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import nn
from torch.nn.utils import parametrize

from dln_geometry.learning import dcs_, dcs_norm, dcs_parameter_groups, dcs_penalty
from dln_geometry.learning.mirror import Mirror
from dln_geometry.testing import assert_close
from tests.learning.constraints.routes import F64, ista, linear, mean_square, regression, solve


def test_u_times_v_with_decay_is_the_lasso(generator):
    x, y = regression((1, 12), generator)
    layer = dcs_(linear(1, 12, generator), "weight")
    kappa = 0.13
    solve(layer, mean_square(layer, x, y), kappa)
    # scikit-learn minimises 1/(2n) |y - x w|^2 + alpha |w|_1.
    peer = Lasso(alpha=kappa, fit_intercept=False, tol=1e-14, max_iter=100000)
    peer.fit(x.numpy(), y.numpy().ravel())
    assert 2 <= np.sum(peer.coef_ == 0) <= 10
    assert np.abs(layer.weight.detach().numpy().ravel() - peer.coef_).max() < 1e-10


@pytest.mark.parametrize("columns", [1, 5, 24], ids="k={}".format)
def test_dcs_is_proximal_gradient_descent(columns, generator):
    x, y = regression((3, 8), generator)
    o = torch.linalg.qr(torch.randn(24, columns, generator=generator, dtype=F64)).Q
    layer = linear(3, 8, generator)
    start = layer.weight.detach().clone()
    dcs_(layer, "weight", o)
    kappa = 0.21
    solve(layer, mean_square(layer, x, y), kappa)

    def prox(w, h):
        c = o.mT @ w.reshape(-1)
        soft = c.sign() * (c.abs() - h * kappa).clamp(min=0)
        return w + (o @ (soft - c)).reshape(w.shape)

    expected = ista(x, y, prox, start)
    assert float((layer.weight.detach() - expected).abs().max()) < 1e-10
    c = o.mT @ expected.reshape(-1)
    assert columns == 1 or 0 < int((c.abs() < 1e-12).sum()) < columns
    assert_close(dcs_norm(layer)["weight"], (o.mT @ layer.weight.reshape(-1)).abs().sum())


def test_the_constraint_is_exact_above_the_largest_gradient_and_not_below(generator):
    x, y = regression((2, 6), generator)
    layer = linear(2, 6, generator)
    params = {"weight": layer.weight.detach()}
    mirror = Mirror.permutation(params, {"weight": 1}, 1, 4)
    # The constrained optimum has two equal columns: one regression on their sum.
    merged = torch.cat([x[:, :1], x[:, 1:2] + x[:, 4:5], x[:, 2:4], x[:, 5:]], 1)
    a, b, c, d, e = torch.linalg.lstsq(merged, y).solution
    w = torch.stack([a, b, c, d, b, e], -1)
    gradient = (x @ w.mT - y).mT @ x / x.shape[0]
    bound = float(mirror.coordinates({"weight": gradient}).abs().max())
    assert float(mirror.coordinates({"weight": w}).abs().max()) < 1e-12
    for factor, exact in ((1.03, True), (0.97, False)):
        net = dcs_(copy.deepcopy(layer), "weight", mirror)
        solve(net, mean_square(net, x, y), factor * bound)
        off = float(mirror.coordinates({"weight": net.weight.detach()}).abs().max())
        assert (off < 1e-9) == exact
        if exact:
            assert float((net.weight.detach() - w).abs().max()) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, F64], ids=str)
@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("kind", ["plain", "matrix", "mirror", "row", "block", "nuclear"])
def test_the_value_is_kept_there_and_back(kind, depth, dtype, generator):
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).to(dtype)
    w = net[0].weight
    with torch.no_grad():
        w.copy_(torch.randn(4, 6, generator=generator))
        w[1] = 0.0
        w[:, 2] = 0.0
    before = w.detach().clone()
    options = {
        "plain": {},
        "matrix": {"o": torch.eye(24)[:, 3:9]},
        "mirror": {"o": Mirror.rotation({"0.weight": w}, {"0.weight": 1}, torch.arange(6.0))},
        "row": {"groups": "row"},
        "block": {"groups": (3, 4)},
        "nuclear": {"groups": "nuclear", "rank": 3},
    }[kind]
    dcs_(net, "0.weight", depth=depth, **options)
    assert net[0].weight.dtype == dtype
    assert_close(net[0].weight.detach(), before)
    # Nothing is stuck at zero: a gradient reaches what has a product of zero.
    net[0].weight.sum().backward()
    factors = dcs_parameter_groups(net, 0.1)[0]["params"]
    moved = [p.detach() - 0.1 * p.grad for p in factors]
    assert all(bool(torch.isfinite(p).all()) for p in moved)
    assert parametrize.is_parametrized(net[0], "weight")
    parametrize.remove_parametrizations(net[0], "weight")
    assert_close(net[0].weight.detach(), before)
    assert [name for name, _ in net.named_parameters()] == [
        "0.bias", "0.weight", "2.weight", "2.bias"
    ]  # fmt: skip


def test_a_state_dict_and_a_copy_come_back_the_same(generator):
    def build():
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))
        dcs_(net, "0.weight", groups="row")
        dcs_(net, "2.weight", torch.eye(48)[:, ::5], depth=3)
        return net

    net, other = build(), build()
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 2, 4, 4, generator=generator)
    assert torch.equal(net(x), other(x))
    assert torch.equal(net(x), copy.deepcopy(net)(x))
    wide = copy.deepcopy(net).double()
    assert_close(wide(x.double()), net(x), ops=1000)


def test_a_large_parameter_needs_no_large_memory():
    layer = nn.Linear(1000, 1000, bias=False)
    params = dict(layer.named_parameters())
    mirror = Mirror.permutation(params, {"weight": 0}, range(0, 400), range(400, 800))
    dcs_(layer, "weight", mirror)
    assert mirror.dimension == 400_000
    layer.weight.sum().backward()
    sizes = sum(p.numel() for p in layer.parameters())
    assert sizes == 1_000_000 + 2 * 400_000


def test_bad_input():
    layer = nn.Linear(3, 2)
    with pytest.raises(TypeError, match="module must be a torch.nn.Module, got int"):
        dcs_(3, "weight")
    with pytest.raises(ValueError, match="must have the parameter 'wight', got weight, bias"):
        dcs_(layer, "wight")
    with pytest.raises(ValueError, match=r"o must have shape \(6, k\) for 'weight', got \(5, 1\)"):
        dcs_(layer, "weight", torch.ones(5, 1))
    with pytest.raises(ValueError, match="o must have orthonormal columns"):
        dcs_(layer, "weight", torch.ones(6, 1))
    both = Mirror.rescaling(dict(layer.named_parameters()), {"weight": 0, "bias": 0}, 1)
    with pytest.raises(ValueError, match="must be a mirror of 'weight' alone"):
        dcs_(layer, "weight", both)
    with pytest.raises(ValueError, match=r"q\['bias'\] must have shape \(2,\), got \(2, 3\)"):
        dcs_(layer, "weight", Mirror.rescaling({"bias": layer.bias}, {"bias": 0}, 1))
    with pytest.raises(TypeError, match="depth must be an integer"):
        dcs_(layer, "weight", depth=2.5)
    with pytest.raises(ValueError, match="depth must be at least 2, got 1"):
        dcs_(layer, "weight", depth=1)
    with pytest.raises(ValueError, match='groups must be None, "row"'):
        dcs_(layer, "weight", groups="rows")
    with pytest.raises(ValueError, match="groups must have 2 numbers"):
        dcs_(layer, "weight", groups=(2, 2, 2))
    with pytest.raises(ValueError, match=r"groups must have shape \(2, 3\), got \(3, 2\)"):
        dcs_(layer, "weight", groups=torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="groups must be integers"):
        dcs_(layer, "weight", groups=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="must fit the parameter of shape"):
        dcs_(layer, "bias", groups="column")
    with pytest.raises(ValueError, match="must be a matrix"):
        dcs_(layer, "bias", groups="nuclear")
    with pytest.raises(ValueError, match="rank must come with"):
        dcs_(layer, "weight", rank=2)
    with pytest.raises(ValueError, match="rank must lie between 1 and 2"):
        dcs_(layer, "weight", groups="nuclear", rank=3)
    with pytest.raises(ValueError, match="rank must be at least that of the parameter, 2"):
        dcs_(layer, "weight", groups="nuclear", rank=1)
    with pytest.raises(ValueError, match="spread must be positive"):
        dcs_(layer, "weight", spread=0.0)
    with pytest.raises(ValueError, match="must have a parameter rewritten by dcs_, got none"):
        dcs_parameter_groups(layer, 0.1)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    dcs_(layer, "weight")
    with pytest.raises(ValueError, match="must be plain, got one that is parametrised"):
        dcs_(layer, "weight")
    with pytest.raises(ValueError, match="kappa must be non-negative and finite, got -1.0"):
        dcs_parameter_groups(layer, -1.0)
    with pytest.raises(TypeError, match="kappa must be a real number"):
        dcs_penalty(layer, "a")
    with pytest.raises(ValueError, match=r"kappa must have the names \['weight'\], got \['bias'\]"):
        dcs_penalty(layer, {"bias": 0.1})
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="must not be tied"):
        dcs_(tied, "0.weight")
    with pytest.raises(ValueError, match="got a lazy one"):
        dcs_(nn.LazyLinear(3), "weight")
