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

F64 = torch.float64


def _regression(shape, generator, noise=0.3, dtype=F64):
    """Return inputs (n, d) and outputs (n, m) of a sparse linear map of shape (m, d)."""
    m, d = shape
    x = torch.randn(3 * d, d, generator=generator, dtype=dtype)
    w = torch.randn(m, d, generator=generator, dtype=dtype)
    w = torch.where(torch.rand(m, d, generator=generator, dtype=dtype) < 0.4, w, 0.0)
    y = x @ w.mT + noise * torch.randn(3 * d, m, generator=generator, dtype=dtype)
    return x, y


def _linear(m, d, generator, dtype=F64):
    layer = nn.Linear(d, m, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(m, d, generator=generator, dtype=dtype))
    return layer


def _solve(module, loss, kappa):
    """Minimise a loss plus the decay of the factors, to rounding: LBFGS, then Newton's method."""
    params = list(module.parameters())
    optimiser = torch.optim.LBFGS(
        params, max_iter=3000, max_eval=6000, history_size=50, tolerance_grad=1e-9,
        tolerance_change=0.0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def gradient(**options):
        g = torch.autograd.grad(loss() + dcs_penalty(module, kappa), params, **options)
        return torch.cat([x.flatten() for x in g])

    def closure():
        optimiser.zero_grad()
        value = loss() + dcs_penalty(module, kappa)
        value.backward()
        return value

    optimiser.step(closure)
    for _ in range(3):
        g = gradient(create_graph=True)
        rows = [torch.autograd.grad(x, params, retain_graph=True) for x in g]
        h = torch.stack([torch.cat([x.flatten() for x in row]) for row in rows])
        values, vectors = torch.linalg.eigh((h + h.mT) / 2)
        # Directions that change nothing (the gauge of U V) have no curvature.
        inverse = torch.where(values.abs() > 1e-8 * values.max(), 1 / values, 0.0)
        step = vectors @ (inverse * (vectors.mT @ g.detach()))
        pieces = step.split([p.numel() for p in params])
        with torch.no_grad():
            for p, piece in zip(params, pieces, strict=True):
                p.sub_(piece.reshape(p.shape))
    assert float(gradient().abs().max()) < 1e-12


def _ista(x, y, prox, start, steps=20000):
    """Proximal gradient descent on ``1/(2n) |y - x w^T|^2``: the other route."""
    n = x.shape[0]
    h = float(n / torch.linalg.eigvalsh(x.mT @ x)[-1])
    w = start.clone()
    for _ in range(steps):
        before, w = w, prox(w - h * ((w @ x.mT - y.mT) @ x) / n, h)
        if float((w - before).abs().max()) < 1e-14:
            break
    return w


def _mean_square(layer, x, y):
    return lambda: (layer(x) - y).square().sum() / (2 * x.shape[0])


def test_u_times_v_with_decay_is_the_lasso(generator):
    x, y = _regression((1, 12), generator)
    layer = dcs_(_linear(1, 12, generator), "weight")
    kappa = 0.13
    _solve(layer, _mean_square(layer, x, y), kappa)
    # scikit-learn minimises 1/(2n) |y - x w|^2 + alpha |w|_1.
    peer = Lasso(alpha=kappa, fit_intercept=False, tol=1e-14, max_iter=100000)
    peer.fit(x.numpy(), y.numpy().ravel())
    assert 2 <= np.sum(peer.coef_ == 0) <= 10
    assert np.abs(layer.weight.detach().numpy().ravel() - peer.coef_).max() < 1e-10


@pytest.mark.parametrize("columns", [1, 5, 24], ids="k={}".format)
def test_dcs_is_proximal_gradient_descent(columns, generator):
    x, y = _regression((3, 8), generator)
    o = torch.linalg.qr(torch.randn(24, columns, generator=generator, dtype=F64)).Q
    layer = _linear(3, 8, generator)
    start = layer.weight.detach().clone()
    dcs_(layer, "weight", o)
    kappa = 0.21
    _solve(layer, _mean_square(layer, x, y), kappa)

    def prox(w, h):
        c = o.mT @ w.reshape(-1)
        soft = c.sign() * (c.abs() - h * kappa).clamp(min=0)
        return w + (o @ (soft - c)).reshape(w.shape)

    expected = _ista(x, y, prox, start)
    assert float((layer.weight.detach() - expected).abs().max()) < 1e-10
    c = o.mT @ expected.reshape(-1)
    assert columns == 1 or 0 < int((c.abs() < 1e-12).sum()) < columns
    assert_close(dcs_norm(layer)["weight"], (o.mT @ layer.weight.reshape(-1)).abs().sum())


def test_the_constraint_is_exact_above_the_largest_gradient_and_not_below(generator):
    x, y = _regression((2, 6), generator)
    layer = _linear(2, 6, generator)
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
        _solve(net, _mean_square(net, x, y), factor * bound)
        off = float(mirror.coordinates({"weight": net.weight.detach()}).abs().max())
        assert (off < 1e-9) == exact
        if exact:
            assert float((net.weight.detach() - w).abs().max()) < 1e-10


@pytest.mark.parametrize("groups", ["row", "column", (2, 3), "labels"], ids=str)
def test_groups_are_the_group_lasso(groups, generator):
    x, y = _regression((4, 7), generator)
    layer = _linear(4, 7, generator)
    start = layer.weight.detach().clone()
    if groups == "labels":
        groups = torch.randint(5, (4, 7), generator=generator) * 3 - 4
        labels = groups
    else:
        row, column = torch.arange(4)[:, None], torch.arange(7)
        labels = {"row": row + 0 * column, "column": column + 0 * row}.get(
            groups, 10 * (row // 2) + column // 3
        )
    dcs_(layer, "weight", groups=groups)
    assert_close(layer.weight, start)
    kappa = 0.9
    _solve(layer, _mean_square(layer, x, y), kappa)
    masks = [labels == g for g in labels.unique()]

    def prox(w, h):
        w = w.clone()
        for mask in masks:
            length = w[mask].norm()
            w[mask] *= (1 - h * kappa / length).clamp(min=0)
        return w

    expected = _ista(x, y, prox, start)
    assert float((layer.weight.detach() - expected).abs().max()) < 1e-10
    assert any(float(expected[mask].norm()) < 1e-12 for mask in masks)
    norm = sum(layer.weight[mask].norm() for mask in masks)
    assert_close(dcs_norm(layer)["weight"], norm)


@pytest.mark.parametrize("rank", [None, 4], ids=str)
def test_two_matrices_are_the_nuclear_norm(rank, generator):
    x, y = _regression((4, 6), generator)
    layer = _linear(4, 6, generator)
    start = layer.weight.detach().clone()
    dcs_(layer, "weight", groups="nuclear", rank=rank)
    assert_close(layer.weight, start)
    kappa = 0.8
    _solve(layer, _mean_square(layer, x, y), kappa)

    def prox(w, h):
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        return (u * (s - h * kappa).clamp(min=0)) @ vh

    expected = _ista(x, y, prox, start)
    assert float((layer.weight.detach() - expected).abs().max()) < 1e-10
    s = torch.linalg.svdvals(expected)
    assert 0 < int((s < 1e-10).sum()) < 4
    assert_close(dcs_norm(layer)["weight"], torch.linalg.svdvals(layer.weight).sum())


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("groups", [None, "row", "nuclear"], ids=str)
def test_n_factors_cost_the_power_two_over_n(groups, depth, generator):
    # With next to no spread the factors are balanced.
    options = {"groups": groups, "depth": depth, "spread": 1e-9}
    layer = dcs_(_linear(4, 6, generator), "weight", **options)
    w = layer.weight.detach()
    sizes = {None: w.abs(), "row": w.norm(dim=1), "nuclear": torch.linalg.svdvals(w)}[groups]
    kappa = 0.37
    expected = kappa * depth / 2 * (sizes ** (2 / depth)).sum()
    # Balanced factors are the cheapest: at the start the penalty is its least value...
    assert_close(dcs_penalty(layer, kappa), expected)
    assert_close(kappa * dcs_norm(layer)["weight"], expected)
    # ... and no other factors of the same parameter cost less.
    for p in layer.parameters():
        p.data.mul_(torch.exp(0.3 * torch.randn(p.shape, generator=generator, dtype=F64)))
    assert dcs_penalty(layer, kappa) >= kappa * dcs_norm(layer)["weight"]


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("groups", [None, "row", "nuclear"], ids=str)
def test_the_optimum_of_n_factors_is_stationary_for_the_power(groups, depth, generator):
    layer = _linear(4, 6, generator)
    target = layer.weight.detach().clone() * 3
    dcs_(layer, "weight", groups=groups, depth=depth)
    kappa = 0.2
    _solve(layer, lambda: (layer.weight - target).square().sum() / 2, kappa)
    w = layer.weight.detach()
    # The derivative of kappa N/2 size^(2/N) is kappa size^(2/N - 1), along the unit vector.
    power = 2 / depth - 1
    if groups == "nuclear":
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        slope = (u * torch.where(s > 1e-6, s, torch.inf) ** power) @ vh
        # What has gone is pulled back by less than any decay; the rest is stationary.
        off = u[:, s > 1e-6].mT @ (w - target + kappa * slope) @ vh[s > 1e-6].mT
        kept = s > 1e-6
    elif groups == "row":
        sizes = w.norm(dim=1)
        kept = sizes > 1e-6
        unit = w[kept] / sizes[kept, None]
        off = (w - target)[kept] + kappa * unit * sizes[kept, None] ** power
    else:
        kept = w.abs() > 1e-6
        off = (w - target)[kept] + kappa * w[kept].sign() * w[kept].abs() ** power
    assert int(kept.sum()) >= 3
    assert float(off.abs().max()) < 1e-10


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


@pytest.mark.parametrize("groups", [None, "row", "nuclear"], ids=str)
@pytest.mark.parametrize("depth", [2, 3])
def test_a_parameter_of_zeros_can_learn(groups, depth, generator):
    layer = _linear(3, 4, generator)
    nn.init.zeros_(layer.weight)
    dcs_(layer, "weight", groups=groups, depth=depth)
    assert not layer.weight.any()
    target = 0.5 + torch.rand(3, 4, generator=generator, dtype=F64)
    target[1:] *= -1
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(1500):
        optimiser.zero_grad()
        (layer.weight - target).square().sum().backward()
        optimiser.step()
    assert float((layer.weight.detach() - target).abs().max()) < 1e-6


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_plain_optimisers_with_the_groups_reach_the_lasso(optimiser, generator):
    # Far from the thresholds, where the decay of what vanishes would take forever.
    x = torch.linalg.qr(torch.randn(24, 8, generator=generator, dtype=F64)).Q * 24**0.5
    x = x @ (torch.eye(8, dtype=F64) + 0.05 * torch.randn(8, 8, generator=generator, dtype=F64))
    y = x @ torch.tensor([[2.0], [-1.5], [0.03], [0.0], [1.0], [-0.02], [-0.8], [0.0]], dtype=F64)
    net = nn.Sequential(_linear(1, 8, generator))
    dcs_(net, "0.weight")
    kappa = 0.2
    groups = dcs_parameter_groups(net, kappa)
    if optimiser is torch.optim.SGD:
        step = optimiser(groups, lr=0.1, momentum=0.8)
        schedule = None
    else:
        step = optimiser(groups, lr=0.05)
        schedule = torch.optim.lr_scheduler.ExponentialLR(step, 0.997)
    loss = _mean_square(net, x, y)
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


def test_groups_of_vectors_and_of_kernels(generator):
    layer = nn.Conv2d(3, 4, 2, dtype=F64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 3, 2, 2, generator=generator, dtype=F64))
    w, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    for name, groups, expected in (
        ("weight", "row", w.flatten(1).norm(dim=1).sum()),
        ("weight", "column", w.movedim(1, 0).flatten(1).norm(dim=1).sum()),
        ("weight", (1, 1, 2, 2), w.flatten(2).norm(dim=2).sum()),
        ("weight", "nuclear", torch.linalg.svdvals(w.flatten(1)).sum()),
        ("bias", "row", b.abs().sum()),
        ("bias", (3,), b[:3].norm() + b[3:].norm()),
    ):
        net = dcs_(copy.deepcopy(layer), name, groups=groups)
        assert_close(net.weight, w)
        assert_close(net.bias, b)
        assert_close(dcs_norm(net)[name], expected)


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
