"""The default device moves nothing: searches, mirrors and reports work where the data lie."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dln_geometry import learning

F64 = torch.float64


@pytest.fixture
def elsewhere():
    """Make a device without values the default, on which every draw and number would be lost."""
    before = torch.get_default_device()
    torch.set_default_device("meta")
    yield
    torch.set_default_device(before)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5), nn.Linear(5, 3)
        ).double()
    return net, torch.linspace(-1, 1, 28, dtype=F64).sin().reshape(7, 4)


def test_searches_and_reports(model, elsewhere):
    net, x = model
    groups = learning.symmetries_of(net, x, loss="cross_entropy")
    assert {g.kind for g in groups} == {"scale", "translation", "permutation", "gauge", "shift"}
    params = {n: p.detach() for n, p in net.named_parameters()}
    for group in groups:
        moved = group.act(params, group.random_element(params))
        assert {q.device.type for q in moved.values()} == {"cpu"}
    assert {f.kind for f in learning.mirrors_of(net, x)} >= {"permutation", "rotation"}
    target = torch.zeros(7, 3, dtype=F64, device="cpu")
    report = learning.collapse_report(net, functional.mse_loss, (x, target), count=1)
    assert str(report)
    assert len(report) >= 3


def test_smaller_and_deeper_models(model, elsewhere):
    net, x = model
    grouped = nn.Conv1d(4, 6, 1, groups=2, device="cpu", dtype=F64)
    net = nn.Sequential(nn.Unflatten(1, (4, 1)), grouped, nn.Flatten(), nn.Linear(6, 4), *net)
    net[3].to_empty(device="cpu").double()
    with torch.no_grad():
        net[3].weight.copy_(torch.eye(6, dtype=F64, device="cpu")[:4])
        net[3].bias.zero_()
        net[7].weight[:, 2] = 0.0
    net.eval()
    # Each group of the grouped layer has outputs that are not read.
    report = learning.sparsify(net, x)
    assert sum(len(units) for _, units in report.removed) > 0
    deep = learning.deepen(net, 2, ["1", "7"])
    for one in (report.model, deep, learning.flatten_depth(deep)):
        assert {p.device.type for p in one.parameters()} == {"cpu"}
        assert float((one(x) - net(x)).detach().abs().max()) < 1e-12


def test_symmetries_and_mirrors(model, elsewhere):
    net, x = model
    target = torch.ones(7, 3, dtype=F64, device="cpu")
    loss, params = learning.functionalize(net, functional.mse_loss, (x, target))
    gauge = learning.Gauge(("3.weight", "3.bias"), "4.weight")
    assert learning.symmetry_residual(loss, gauge, params) < 1e-10
    direction = torch.ones(6, dtype=F64, device="cpu")
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], device="cpu")
    for symmetry in (
        learning.Scale("0.weight", axis=0),
        learning.Translation("0.bias", axis=0),
        learning.Translation("0.bias", direction),
        learning.Rotation("0.weight", axis=1),
    ):
        assert 0 < learning.symmetry_residual(loss, symmetry, params) < 1
        assert symmetry.conserved(params).device.type == "cpu"
    with pytest.raises(ValueError, match="generator must have shape"):
        learning.Rotation("0.weight", turn).field(params)
    axes = {"0.weight": 0, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.weight": 1}
    mirrors = [
        learning.Mirror.permutation(params, axes, 0, 3),
        learning.Mirror.permutation(params, axes, [0, 1], [3, 2]),
        learning.Mirror.rescaling(params, axes, [1]),
        learning.Mirror.rotation(
            params, {"3.weight": 0, "3.bias": 0, "4.weight": 1}, direction[:5]
        ),
        learning.Mirror.gauge(params, "3.weight", "4.weight", torch.ones(5, device="cpu")),
    ]
    for mirror in mirrors:
        assert mirror.reflect(params)["0.weight"].device.type == "cpu"
        assert mirror.defect(params) >= 0
    assert mirrors[0].residual(loss, params) < 1e-9
    found = learning.stability(loss, mirrors[0], params)
    h = learning.batch_curvatures([loss], mirrors[0], params, direction=found.direction)
    assert h.device.type == "cpu"
    assert learning.curvature(loss, mirrors[0], params).device.type == "cpu"


def test_exponents(elsewhere):
    h = torch.tensor([[[-0.5, 0.1], [0.1, 1.0]], [[1.0, 0.2], [0.2, 0.3]]], dtype=F64, device="cpu")
    assert learning.lyapunov(h, 0.3, momentum=0.5, steps=50).standard_error > 0
    assert learning.noise_threshold(h, steps=50) >= 0
