"""Tolerances follow the variances that normalisations meet."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from dln_geometry.learning import ChargeMonitor, Part, SymmetricGroup, symmetries_of
from dln_geometry.learning.monitor import Variances
from dln_geometry.testing import assert_close
from tests.learning.monitor.loops import F64

NORMS = {
    "layer": (nn.LayerNorm((3, 4), eps=0.3), (5, 2, 3, 4), (2, 3)),
    "rms": (nn.RMSNorm(4, eps=0.2), (5, 3, 4), (2,)),
    "group": (nn.GroupNorm(2, 4, eps=0.1), (5, 4, 3), None),
    "batch": (nn.BatchNorm1d(4, eps=0.4, track_running_stats=False), (6, 4, 3), (0, 2)),
    "instance": (nn.InstanceNorm1d(4, eps=0.2), (6, 4, 3), (2,)),
    "instance alone": (nn.InstanceNorm1d(4, eps=0.2), (4, 3), (1,)),
}


def _net(norm, dtype=F64):
    kind = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}[norm]
    return nn.Sequential(nn.Linear(8, 16), kind(16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)


def _train(net, optimizer, x, y, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def _rms(x, dims):
    return x.square().mean(dims).sqrt()


@pytest.mark.parametrize("name", NORMS)
def test_the_share_is_what_a_normalisation_keeps_of_a_change_of_scale(name, generator):
    norm, shape, dims = NORMS[name]
    norm = copy.deepcopy(norm).double()
    x = 0.5 + torch.randn(shape, generator=generator, dtype=F64)
    group = SymmetricGroup("scale", (Part("w", 0, 1),), (), ("norm",), norm.eps)
    module = nn.ModuleDict({"norm": norm})
    variances = Variances(module, [group], lambda: True)
    norm(x)
    share, gain = variances.take(torch.zeros(1, dtype=F64))
    assert not variances.take(torch.zeros(1, dtype=F64))[0].any()
    kept = torch.func.jvp(lambda s: norm(s.exp() * x), (x.new_zeros(()),), (x.new_ones(()),))[1]
    if name == "group":
        kept, dims = kept.reshape(5, 2, 2, 3), (2, 3)
    units = _rms(kept, dims)
    if units.ndim > 1 and name not in ("layer", "rms"):
        units = units.mean(0)  # over samples
    expected = units.amax() if name not in ("layer", "rms") else units.mean()
    assert_close(share[0], expected)
    # The gain is the largest stretch of a change of the input that keeps mean and scale.
    assert 0 < float(gain) <= norm.eps**-0.5


def test_passes_without_gradients_or_in_evaluation_mode_do_not_count(generator):
    norm = nn.LayerNorm(4)
    group = SymmetricGroup("scale", (Part("w", 0, 1),), (), ("0",), norm.eps)
    wanted = [True]
    variances = Variances(nn.Sequential(norm), [group], lambda: wanted[0])
    x = 1e-3 * torch.randn(5, 4, generator=generator)
    with torch.no_grad():
        norm(x)
    norm.eval()(x)
    torch.func.grad(lambda z: norm.train()(z).square().sum())(x)
    wanted[0] = False
    norm(x)
    assert_close(variances.take(torch.tensor([0.5]))[0], torch.tensor([0.5]))
    wanted[0] = True
    norm(x)
    assert float(variances.take(torch.zeros(1))[0]) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("scale", [1.0, 0.1, 1e-2, 1e-3, 1e-4])
def test_inputs_of_small_variance_are_no_break(norm, scale, dtype, generator):
    net = _net(norm, dtype)
    x = scale * torch.randn(64, 8, generator=generator, dtype=F64).to(dtype)
    y = torch.randint(4, (64,), generator=generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    monitor = ChargeMonitor(net, optimizer, loss="cross_entropy", every=5)
    _train(net, optimizer, x, y, 30)
    lines = monitor.report()
    assert {line.group.kind for line in lines} == {"scale", "translation", "rescale"}
    assert not any(line.is_broken for line in lines)
    if scale == 1.0 and dtype == F64:
        # Where the variance is large, a tolerance stays far below what a break leaves.
        assert max(line.tolerance for line in lines) < 1e-2
        record = monitor.record()
        assert record.tolerance.shape == record.residual.shape


def test_the_hooks_change_nothing_and_stay_behind(generator):
    net = _net("layer")
    before = symmetries_of(net, loss="cross_entropy")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    monitor = ChargeMonitor(net, optimizer, loss="cross_entropy", every=1)
    assert symmetries_of(net, loss="cross_entropy") == before
    x = torch.randn(5, 8, generator=generator, dtype=F64)
    for twin in copy.deepcopy(net), pickle.loads(pickle.dumps(net)):
        assert torch.equal(twin(x), net(x))
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()
    assert len(monitor.record()) == 2
    monitor.close()
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_states_of_the_first_version_are_read(generator):
    net = _net("layer")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = torch.randn(9, 8, generator=generator, dtype=F64), torch.tensor([0, 1, 2] * 3)
    monitor = ChargeMonitor(net, optimizer, loss="cross_entropy", every=2, units=True)
    _train(net, optimizer, x, y, 4)
    state = monitor.state_dict()
    g = len(monitor.labels)
    old = {
        **state,
        "records": [(n, torch.cat([r[: 3 * g], r[4 * g :]])) for n, r in state["records"]],
    }
    del old["format"]
    again = ChargeMonitor(net, optimizer, loss="cross_entropy", every=2, units=True)
    again.load_state_dict(old)
    one, two = monitor.record(), again.record()
    assert torch.equal(one.residual, two.residual)
    assert torch.equal(one.unit_charge, two.unit_charge)
    assert two.tolerance.min() > 0
