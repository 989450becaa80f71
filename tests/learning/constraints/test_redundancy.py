from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dln_geometry.learning import dcs_, dcs_norm, dcs_penalty
from dln_geometry.testing import assert_close
from tests.learning.constraints.routes import F64, ista, linear, mean_square, regression, solve


@pytest.mark.parametrize("groups", ["row", "column", (2, 3), "labels"], ids=str)
def test_groups_are_the_group_lasso(groups, generator):
    x, y = regression((4, 7), generator)
    layer = linear(4, 7, generator)
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
    solve(layer, mean_square(layer, x, y), kappa)
    masks = [labels == g for g in labels.unique()]

    def prox(w, h):
        w = w.clone()
        for mask in masks:
            length = w[mask].norm()
            w[mask] *= (1 - h * kappa / length).clamp(min=0)
        return w

    expected = ista(x, y, prox, start)
    assert float((layer.weight.detach() - expected).abs().max()) < 1e-10
    assert any(float(expected[mask].norm()) < 1e-12 for mask in masks)
    norm = sum(layer.weight[mask].norm() for mask in masks)
    assert_close(dcs_norm(layer)["weight"], norm)


@pytest.mark.parametrize("rank", [None, 4], ids=str)
def test_two_matrices_are_the_nuclear_norm(rank, generator):
    x, y = regression((4, 6), generator)
    layer = linear(4, 6, generator)
    start = layer.weight.detach().clone()
    dcs_(layer, "weight", groups="nuclear", rank=rank)
    assert_close(layer.weight, start)
    kappa = 0.8
    solve(layer, mean_square(layer, x, y), kappa)

    def prox(w, h):
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        return (u * (s - h * kappa).clamp(min=0)) @ vh

    expected = ista(x, y, prox, start)
    assert float((layer.weight.detach() - expected).abs().max()) < 1e-10
    s = torch.linalg.svdvals(expected)
    assert 0 < int((s < 1e-10).sum()) < 4
    assert_close(dcs_norm(layer)["weight"], torch.linalg.svdvals(layer.weight).sum())


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("groups", [None, "row", "nuclear"], ids=str)
def test_n_factors_cost_the_power_two_over_n(groups, depth, generator):
    # With next to no spread the factors are balanced.
    options = {"groups": groups, "depth": depth, "spread": 1e-9}
    layer = dcs_(linear(4, 6, generator), "weight", **options)
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
    layer = linear(4, 6, generator)
    target = layer.weight.detach().clone() * 3
    dcs_(layer, "weight", groups=groups, depth=depth)
    kappa = 0.2
    solve(layer, lambda: (layer.weight - target).square().sum() / 2, kappa)
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


@pytest.mark.parametrize("groups", [None, "row", "nuclear"], ids=str)
@pytest.mark.parametrize("depth", [2, 3])
def test_a_parameter_of_zeros_can_learn(groups, depth, generator):
    layer = linear(3, 4, generator)
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
