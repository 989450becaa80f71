"""Windows, and what happens to monitors in training loops as they are."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from dln_geometry.learning.monitor import ChargeMonitor
from dln_geometry.testing import assert_close
from tests.learning.monitor.loops import F64, REAL, RULES, batch, made, train, watched, worst


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", REAL)
def test_windows_are_exact_and_see_what_is_in_them(name, rule, window, generator):
    net, x = made(name, generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, **RULES[rule])
    monitor = ChargeMonitor(net, optimizer, loss="cross_entropy", every=5, window=window)
    train(net, x, optimizer, 15, generator)
    assert monitor.record().steps.tolist() == [0, 5, 10, 15]
    assert max(worst(monitor).values()) < 1e-12

    # Moved between the 18th step and the 19th: windows that hold both see it.
    def moves(n):
        if n == 3:
            with torch.no_grad():
                for p in net.parameters():
                    p.mul_(1.01)
                    p.add_(0.01)

    train(net, x, optimizer, 5, generator, every_step=moves)
    largest = max(line.residual for line in monitor.report())
    assert (largest < 1e-12) if window < 3 else (largest > 1e-3)


# How much of the gradient a step takes at once. Where squares of gradients are summed, the law
# uses the symmetry in ``B(d, d)``, too: a factor ``1 - eta k``.
SHARES = {
    "plain": 1 - 0.03 * 0.02,
    "heavy ball": 1.0,
    "dampened": 0.6,
    "nesterov": 1.8 * (1 - 0.03 * 0.02),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_residual_of_one_step_is_what_the_gradient_does_along_the_symmetry(rule, generator):
    """A loss without the symmetry: the deviation is ``2 eta B(q, g)``, here from autograd."""
    net, x = made("mlp", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, **RULES[rule])
    monitor = ChargeMonitor(net, optimizer, every=4)
    label = "rescale(0.weight, 0.bias, 2.weight)"
    expected = []
    for n in range(8):
        optimizer.zero_grad()
        loss = batch(net, x, generator) + net[0].weight.pow(4).sum() / 50
        loss.backward()
        if n % 4 == 3:
            w, b, v = net[0].weight, net[0].bias, net[2].weight
            off = (w * w.grad).sum(1) + b * b.grad - (v * v.grad).sum(0)
            deviation = 2 * 0.03 * SHARES[rule] * off.detach()
        optimizer.step()
        if n % 4 == 3:
            w, b, v = (p.detach() for p in (w, b, v))
            size = w.square().sum(1) + b.square() + v.square().sum(0)
            expected.append(float(deviation.abs().max() / size.max()))
    record = monitor.record()
    assert record.steps.tolist() == [0, 4, 8]
    residual = record.residual[1:, monitor.labels.index(label)]
    assert_close(residual, torch.tensor(expected, dtype=F64), scale=1.0)
    assert min(expected) > 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_a_step_that_fails_is_no_step(rule, generator):
    net, x = made("mlp", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, **RULES[rule])
    monitor = watched(net, optimizer, loss="cross_entropy")
    train(net, x, optimizer, 5, generator)

    def refuse(*_):
        raise KeyError("refused")

    handle = optimizer.register_step_pre_hook(refuse)
    with pytest.raises(KeyError, match="refused"):
        train(net, x, optimizer, 1, generator)
    handle.remove()
    train(net, x, optimizer, 5, generator)
    assert monitor.record().steps.tolist() == list(range(11))
    assert max(worst(monitor).values()) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_rates_of_zero_and_accumulated_gradients(rule, generator):
    net, x = made("layer norm", generator)
    halves = [{"params": net[:2].parameters()}, {"params": net[2:].parameters(), "lr": 0.03}]
    optimizer = torch.optim.SGD(halves, lr=0.05, **RULES[rule])
    monitors = [ChargeMonitor(net, optimizer, every=3), watched(net, optimizer)]
    for n in range(20):
        for group in optimizer.param_groups:
            group["lr"] = 0.0 if n % 5 < 2 else 0.05
        optimizer.zero_grad()
        for _ in range(3):
            (batch(net, x, generator) / 3).backward()
        optimizer.step()
    for monitor in monitors:
        assert max(worst(monitor).values()) < 1e-12


@pytest.mark.parametrize("window", [None, 1])
def test_gradients_that_are_not_numbers_break_symmetries(window, generator):
    net, x = made("mlp", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    monitor = ChargeMonitor(net, optimizer, every=2, window=window)

    def spoil(n):
        if n == 5:
            net[0].weight.grad[1, 2] = math.nan

    train(net, x, optimizer, 8, generator, every_step=spoil)
    for line in monitor.report():
        assert line.is_broken
        assert math.isnan(line.residual)
        assert line.worst == math.inf


def test_autocast_needs_a_tolerance(generator):
    """Gradients are rounded to eight bits: a step deviates by a thousandth at most, not more."""
    net, x = made("mlp", generator, torch.float32)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    monitor = ChargeMonitor(net, optimizer, loss="cross_entropy", every=2, tolerance=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = batch(net, x, generator)
        loss.backward()
        optimizer.step()
    lines = monitor.report()
    assert not any(line.is_broken for line in lines)
    assert max(line.worst for line in lines) > 100 * torch.finfo(torch.float32).eps


def test_parameter_groups_may_be_added_and_optimisers_share_a_module(generator):
    net, x = made("layer norm", generator)
    more = nn.Linear(2, 2, dtype=F64)
    optimizers = [
        torch.optim.SGD(net[:2].parameters(), lr=0.05, momentum=0.9),
        torch.optim.SGD(net[2:].parameters(), lr=0.03),
    ]
    monitors = [watched(net, o, loss="cross_entropy") for o in optimizers]
    for n in range(12):
        net.zero_grad()
        batch(net, x, generator).backward()
        for optimizer in optimizers:
            optimizer.step()
        if n == 5:
            optimizers[0].add_param_group({"params": more.parameters(), "momentum": 0.0})
    for monitor in monitors:
        assert max(worst(monitor).values()) < 1e-12


def test_copies_go_their_own_way(generator):
    net, x = made("mlp", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    monitor = watched(net, optimizer)
    train(net, x, optimizer, 3, generator)
    copied = copy.deepcopy(monitor)
    train(net, x, optimizer, 3, generator)
    assert (monitor.steps, copied.steps) == (6, 3)
    assert copied.record().steps.tolist() == [0, 1, 2, 3]
    assert max(worst(monitor).values()) < 1e-12
    # Hooks do not come along.
    assert not copy.deepcopy(optimizer)._optimizer_step_pre_hooks


@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_run_may_look_at_other_steps(rule, generator):
    net, x = made("mlp", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, **RULES[rule])
    state = None
    for every, window in ((10, 1), (1, None), (7, 3), (5, None), (4, 4)):
        monitor = ChargeMonitor(net, optimizer, every=every, window=window)
        if state is not None:
            monitor.load_state_dict(state)
        train(net, x, optimizer, 13, generator)
        assert max(worst(monitor).values()) < 1e-12
        state = monitor.state_dict()
        monitor.close()
    with pytest.raises(ValueError, match=r"state must be what state_dict returns, got .*'begun'"):
        monitor.load_state_dict({"labels": []})
    with pytest.raises(ValueError, match="state must be of units=True, got units=False"):
        watched(net, optimizer, units=True).load_state_dict(state)
