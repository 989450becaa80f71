from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry.learning.collapse import MirrorFamily, collapse_report
from dln_geometry.learning.functional import functionalize
from dln_geometry.learning.mirror import Mirror
from tests.learning.collapse.routes import wave
from tests.learning.networks import build

F64 = torch.float64


def _train(net, x, y, decay, steps=4000, lr=0.2):
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, weight_decay=decay)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimiser.step()


def _tanh_net(generator):
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64) * 0.5)
    x = torch.randn(30, 3, generator=generator, dtype=F64)
    y = torch.stack([x[:, 0].tanh(), x[:, 1].sin()], -1)
    return net, x, y


def _key(record):
    return record.family.kind, record.member


@pytest.mark.slow
def test_a_report_tells_what_training_then_does(generator):
    net, x, y = _tanh_net(generator)
    decay = 0.1

    def report(**options):
        return collapse_report(net, nn.functional.mse_loss, (x, y), count=20, **options)

    assert {record.status for record in report(weight_decay=decay)} <= {"free", "collapsing"}
    _train(net, x, y, decay, steps=500)
    early = {_key(r): r for r in report(weight_decay=decay)}
    _train(net, x, y, decay, steps=6000)
    late = {_key(r): r for r in report(weight_decay=decay)}
    coming = [key for key, record in early.items() if record.status == "collapsing"]
    assert coming
    assert all(late[key].status == "collapsed" for key in coming)
    # Six units for two functions: those that are not needed are switched off or joined.
    collapsed = [record for record in late.values() if record.status == "collapsed"]
    assert len(collapsed) >= 3
    assert all(record.stability.threshold < decay for record in collapsed)
    # Without decay the same set repels, or does nothing: nothing is called collapsed by it.
    assert all(r.stability.threshold < 0 for r in report() if r.status == "collapsed")
    table = str(report(weight_decay=decay)).splitlines()
    assert table[0] == "mirrors at a weight decay of 0.1"
    assert len(table) == 2 + len(late)
    assert any(
        line.startswith("collapsed") and "0.weight, 0.bias, 2.weight" in line for line in table
    )


def test_the_rate_is_that_of_gradient_flow(generator):
    net, x, y = _tanh_net(generator)
    decay, lr = 0.3, 1e-6
    loss, params = functionalize(net, nn.functional.mse_loss, (x, y))
    record = collapse_report(net, nn.functional.mse_loss, (x, y), weight_decay=decay)[1]
    mirror = record.family.mirror(params, record.member)
    g = torch.func.grad(loss)(params)
    moved = {n: q - lr * (g[n] + decay * q) for n, q in params.items()}
    before, after = (mirror.coordinates(q).norm() for q in (params, moved))
    assert abs(float((before / after).log()) / lr - record.rate) < 1e-3 * abs(record.rate) + 1e-4


def test_a_collapsed_state_without_decay_is_escaping(generator):
    net, x, y = _tanh_net(generator)
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = net[0].weight[4], net[0].bias[4]
        net[2].weight[:, 1] = net[2].weight[:, 4]
    record = collapse_report(net, nn.functional.mse_loss, (x, y), count=1)[0]
    assert record.member == (1, 4)
    assert record.defect == 0.0
    assert record.status == ("escaping" if record.stability.threshold > 0 else "collapsed")
    strong = 1.1 * max(record.stability.threshold, 0.1)
    sure = collapse_report(net, nn.functional.mse_loss, (x, y), weight_decay=strong, count=1)[0]
    assert sure.status == "collapsed"


def test_a_set_where_the_loss_has_no_value_is_singular(generator):
    net, x = build("weight norm", generator)
    report = collapse_report(net, wave, (x,), count=1)
    singular = [record for record in report if record.status == "singular"]
    assert singular
    assert all(record.stability is None for record in singular)
    assert "singular  rescaling" in str(report)


def test_bad_input(generator):
    net, x, y = _tanh_net(generator)
    mse = nn.functional.mse_loss
    with pytest.raises(ValueError, match="weight_decay must be non-negative"):
        collapse_report(net, mse, (x, y), weight_decay=-0.1)
    with pytest.raises(TypeError, match="weight_decay must be a real number"):
        collapse_report(net, mse, (x, y), weight_decay="a")
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        collapse_report(net, mse, (x, y), count=0)
    with pytest.raises(ValueError, match="loss must be a scalar"):
        collapse_report(net, lambda out, y: out - y, (x, y))
    wrong = MirrorFamily("permutation", {"2.weight": (1, torch.arange(6)[:, None])}, 6)
    with pytest.raises(ValueError, match="must have the mirror symmetry"):
        collapse_report(net, mse, (x, y), families=[wrong])
    assert isinstance(wrong.mirror(dict(net.named_parameters()), (0, 1)), Mirror)
