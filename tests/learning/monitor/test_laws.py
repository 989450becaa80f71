from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dln_geometry.learning.architecture import Part, SymmetricGroup, symmetries_of
from dln_geometry.testing import assert_close
from tests.learning.monitor.loops import F64, REAL, RULES, batch, made, train, watched, worst


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", REAL)
def test_the_laws_are_exact_over_500_minibatches(name, rule, generator):
    """Every charge of every group, with a schedule that changes the rate in each step."""
    net, x = made(name, generator)
    lr = 0.02 if name in ("convolution", "attention") else 0.05
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, **RULES[rule])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.6 + 0.4 * math.cos(n / 9))
    start = {n: p.detach().clone() for n, p in net.named_parameters()}
    with watched(net, optimizer, loss="cross_entropy", every=10) as monitor:
        train(net, x, optimizer, 500, generator, schedule)
    record = monitor.record()
    assert record.steps.tolist() == list(range(0, 501, 10))
    assert len(record.labels) == len(monitor.groups) >= 3
    assert max(worst(monitor).values()) < 1e-12
    # It was no standstill: parameters and charges have moved.
    assert all(not torch.equal(p, start[n]) for n, p in net.named_parameters())
    assert float((record.charge[-1] - record.charge[0]).abs().max()) > 1e-3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["layer norm", "batch norm", "weight norm", "mlp", "deep linear"])
def test_groups_of_parameters_with_rates_and_decays_of_their_own(name, rule, generator):
    net, x = made(name, generator)
    biases = [p for n, p in net.named_parameters() if n.endswith("bias")]
    late = [p for n, p in net.named_parameters() if not n.endswith("bias") and n[0] not in "012"]
    early = [p for n, p in net.named_parameters() if not n.endswith("bias") and n[0] in "012"]
    groups = [
        {"params": early},
        {"params": late, "lr": 0.03, "weight_decay": 0.05},
        {"params": biases, "lr": 0.07, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD([g for g in groups if g["params"]], lr=0.05, **RULES[rule])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20, gamma=0.8)
    with watched(net, optimizer, loss="cross_entropy", units=True) as monitor:
        train(net, x, optimizer, 100, generator, schedule)
    assert max(worst(monitor).values()) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_schedules_that_change_the_ratio_of_rates_and_the_momentum(rule, generator):
    net, x = made("mlp", generator)
    weights = [p for n, p in net.named_parameters() if n != "2.weight"]
    options = [{"params": weights}, {"params": [net[2].weight], "lr": 0.02}]
    optimizer = torch.optim.SGD(options, lr=0.05, **RULES[rule])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, [lambda n: 1 / (1 + 0.1 * n), lambda n: 1 + 0.05 * n]
    )

    def change(n):
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.01 * (n % 3)
            if RULES[rule].get("momentum"):
                # Not zero with Nesterov's, which needs some.
                low = 0.1 if rule == "nesterov" else 0.0
                group["momentum"] = [0.9, low, 0.5][n // 4 % 3]

    with watched(net, optimizer, loss="cross_entropy") as monitor:
        train(net, x, optimizer, 40, generator, schedule, change)
    assert max(worst(monitor).values()) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_thinning_changes_no_prediction(rule, generator):
    net, x = made("layer norm", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, **RULES[rule])
    monitors = [watched(net, optimizer, every=every, units=True, flush_every=5) for every in (1, 7)]
    train(net, x, optimizer, 30, generator)
    dense, thin = (m.record() for m in monitors)
    assert thin.steps.tolist() == [0, 7, 14, 21, 28]
    assert_close(thin.unit_predicted, dense.unit_predicted[thin.steps], ops=10)


@pytest.mark.parametrize("rule", RULES)
def test_float32(rule, generator):
    net, x = made("convolution", generator, torch.float32)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, **RULES[rule])
    # An epsilon that single precision knows.
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12
    with watched(net, optimizer, loss="cross_entropy", every=5) as monitor:
        train(net, x, optimizer, 100, generator)
    # Roundings of a hundred steps.
    assert max(worst(monitor).values()) < 100 * torch.finfo(torch.float32).eps
    assert not any(line.is_broken for line in monitor.report())


def test_an_epsilon_breaks_the_scale_by_as_much(generator):
    residuals = []
    for eps in (1e-3, 1e-4, 1e-5):
        net, x = made("layer norm", torch.Generator().manual_seed(3))
        net[1].eps = eps
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        with watched(net, optimizer) as monitor:
            train(net, x, optimizer, 30, torch.Generator().manual_seed(4))
        residuals.append(worst(monitor)["scale(0.weight, 0.bias)"])
        assert not any(line.is_broken for line in monitor.report())
        assert worst(monitor)["translation(0.weight, 0.bias)"] < 1e-13
    assert 8 < residuals[0] / residuals[1] < 12
    assert 8 < residuals[1] / residuals[2] < 12


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("foreach", [False, True])
def test_closures_and_gradients_that_are_missing(rule, foreach, generator):
    with torch.random.fork_rng():
        one = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).double()
        two = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6, eps=0.0), nn.Linear(6, 4)).double()
    net = nn.ModuleDict({"one": one, "two": two})
    x = torch.randn(9, 5, generator=generator, dtype=F64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, foreach=foreach, **RULES[rule])

    def named(prefix, group):
        first, second = (
            tuple(Part(f"{prefix}.{p.name}", p.axis, p.units, p.block, p.start) for p in side)
            for side in (group.first, group.second)
        )
        return SymmetricGroup(group.kind, first, second)

    groups = [
        named(prefix, g)
        for prefix, part in net.items()
        for g in symmetries_of(part, loss="cross_entropy")
    ]
    monitor = watched(net, optimizer, groups)
    for n in range(30):
        # Each is left out now and then; their buffers begin at different times.
        part = net["one"] if n % 3 == 1 else net["two"]

        def closure(part=part):
            optimizer.zero_grad(set_to_none=True)
            loss = batch(part, x, generator)
            loss.backward()
            return loss

        if n % 2:
            assert float(optimizer.step(closure).detach()) > 0
        else:
            closure()
            optimizer.step()
    assert max(worst(monitor).values()) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_begins_in_mid_run_and_maximises(rule, generator):
    net, x = made("layer norm", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, maximize=True, **RULES[rule])

    def run(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (-batch(net, x, generator)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()

    run(7)
    with watched(net, optimizer, loss="cross_entropy") as monitor:
        run(30)
    assert max(worst(monitor).values()) < 1e-12
