from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dln_geometry.learning.architecture import Part, SymmetricGroup
from dln_geometry.learning.monitor import ChargeMonitor
from dln_geometry.learning.symmetry import SymmetryError
from dln_geometry.testing import assert_close
from tests.learning.monitor.loops import RULES, batch, made, train, watched, worst

BREAKS = {
    "another loss": "translation(6.weight, 6.bias)",
    "penalty": "scale(0.weight, 0.bias)",
    "moved": "scale(0.weight, 0.bias)",
    "clipped by value": "scale(0.weight, 0.bias)",
}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("on_break", ["ignore", "warn", "raise"])
def test_a_broken_symmetry_is_seen(how, on_break, generator):
    net, x = made("layer norm", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    monitor = watched(net, optimizer, loss="cross_entropy", on_break=on_break, flush_every=1000)

    def step(n):
        optimizer.zero_grad()
        loss = batch(net, x, generator)
        if how == "another loss" and n == 12:
            loss = loss + 1e-3 * net(x).square().mean()
        if how == "penalty" and n == 12:
            loss = loss + 1e-3 * net[0].weight.square().sum()
        loss.backward()
        if how == "clipped by value" and n == 12:
            nn.utils.clip_grad_value_(net.parameters(), 1e-2)
        optimizer.step()
        if how == "moved" and n == 12:
            with torch.no_grad():
                net[0].weight[1, 1] += 1e-3

    for n in range(12):
        step(n)
    assert max(worst(monitor).values()) < 1e-12
    for n in range(12, 25):
        step(n)
    if on_break == "raise":
        with pytest.raises(SymmetryError, match="must be a symmetry within .* got a resid") as info:
            monitor.flush()
        assert info.value.residual > 1e-6
    elif on_break == "warn":
        with pytest.warns(UserWarning, match="must be a symmetry within .* after 1[34] steps"):
            monitor.flush()
        # Once is enough.
        train(net, x, optimizer, 2, generator)
        monitor.flush()
    else:
        lines = {line.label: line for line in monitor.report()}
        assert lines[BREAKS[how]].is_broken
        assert lines[BREAKS[how]].worst > 1e-6
        monitor.restart()
        train(net, x, optimizer, 10, generator)
        assert max(line.residual for line in monitor.report()) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_resume_goes_on_as_if_nothing_had_happened(rule, generator, tmp_path):
    def start():
        net, x = made("layer norm", torch.Generator().manual_seed(1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, **RULES[rule])
        return net, x, optimizer, watched(net, optimizer, every=3, units=True)

    net, x, optimizer, monitor = start()
    data = torch.Generator().manual_seed(2)
    train(net, x, optimizer, 10, data)
    parts = {"net": net, "optimizer": optimizer, "monitor": monitor}
    saved = {name: part.state_dict() for name, part in parts.items()}
    torch.save(saved, tmp_path / "run.pt")
    state = data.get_state()
    train(net, x, optimizer, 10, data)
    net, x, optimizer, resumed = start()
    loaded = torch.load(tmp_path / "run.pt", weights_only=True)
    net.load_state_dict(loaded["net"])
    optimizer.load_state_dict(loaded["optimizer"])
    resumed.load_state_dict(loaded["monitor"])
    data.set_state(state)
    train(net, x, optimizer, 10, data)
    one, two = monitor.record(), resumed.record()
    assert torch.equal(one.steps, two.steps)
    assert_close(two.unit_predicted, one.unit_predicted, ops=10)
    assert max(worst(resumed).values()) < 1e-12
    with pytest.raises(ValueError, match="state must be of the groups"):
        watched(net, optimizer, loss="cross_entropy").load_state_dict(loaded["monitor"])


def test_a_group_that_moves_in_part_only_is_refused(generator):
    net, x = made("mlp", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    watched(net, optimizer)
    batch(net, x, generator).backward()
    net[0].bias.grad = None
    with pytest.raises(RuntimeError, match="must have gradients or none of them, got none for"):
        optimizer.step()


def test_skipped_steps_are_no_steps(generator):
    net, x = made("mlp", generator, torch.float32)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    monitor = watched(net, optimizer, loss="cross_entropy")
    for n in range(12):
        optimizer.zero_grad()
        loss = batch(net, x, generator)
        scaler.scale(loss * (math.inf if n == 5 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert monitor.record().steps.tolist() == list(range(12))
    assert max(worst(monitor).values()) < 1e-5


def test_fused_steps_are_exact_but_not_under_a_scaler(generator):
    net, x = made("mlp", generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, fused=True)
    monitor = watched(net, optimizer, loss="cross_entropy")
    train(net, x, optimizer, 20, generator)
    assert max(worst(monitor).values()) < 1e-12
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(batch(net, x, generator)).backward()
    with pytest.raises(RuntimeError, match="use fused=False"):
        scaler.step(optimizer)


def test_frozen_parameters_are_left_out(generator):
    net, _ = made("mlp", generator)
    net[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    monitor = watched(net, optimizer, loss="cross_entropy")
    assert monitor.labels == ("translation(4.weight, 4.bias)",)
    # The parts of a translation move on their own.
    optimizer = torch.optim.SGD([net[4].bias], lr=0.1)
    assert watched(net, optimizer, loss="cross_entropy").labels == ("translation(4.bias)",)
    group = SymmetricGroup("scale", (Part("2.weight", 0, 1, 6),))
    with pytest.raises(ValueError, match=r"groups must hold .* got \['2.weight'\]"):
        watched(net, optimizer, [group])


def test_the_loop_is_left_as_it_is(generator):
    """The same parameters to the last bit, with a monitor and without."""
    finals = []
    for is_watched in (False, True):
        net, x = made("convolution", torch.Generator().manual_seed(5))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, nesterov=True)
        if is_watched:
            watched(net, optimizer, example_input=x, loss="cross_entropy")
        train(net, x, optimizer, 5, torch.Generator().manual_seed(6))
        finals.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*finals)


def mixed(net):
    first, second = list(net[:2].parameters()), list(net[2:].parameters())
    groups = [{"params": first}, {"params": second, "momentum": 0.5}]
    return ChargeMonitor(net, torch.optim.SGD(groups, lr=0.1, momentum=0.9))


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda net: ChargeMonitor(net, net), TypeError, "optimizer must be a torch.optim.Optim"),
        (lambda net: ChargeMonitor(net.forward, sgd(net)), TypeError, "module must be a torch.nn"),
        (mixed, ValueError, "momentum must be the same for all parameters of a symmetric group"),
        (lambda net: ChargeMonitor(net, sgd(net), every=0), ValueError, "every must be at least 1"),
        (lambda net: ChargeMonitor(net, sgd(net), every=1.5), TypeError, "every must be an integ"),
        (
            lambda net: ChargeMonitor(net, sgd(net), every=4, window=5),
            ValueError,
            "window must be None or at most every = 4, got 5",
        ),
        (lambda net: ChargeMonitor(net, sgd(net), window=0), ValueError, "window must be at least"),
        (
            lambda net: ChargeMonitor(net, sgd(net), tolerance="small"),
            TypeError,
            "tolerance must be a real number, got 'small'",
        ),
        (lambda net: ChargeMonitor(net, sgd(net), history=0), ValueError, "history must be at"),
        (
            lambda net: ChargeMonitor(net, sgd(net), on_break="cry"),
            ValueError,
            'on_break must be one of "ignore", "warn", "raise"',
        ),
        (lambda net: ChargeMonitor(net, sgd(net), tolerance=-1.0), ValueError, "tolerance must be"),
        (
            lambda net: ChargeMonitor(net, sgd(net), writer=3),
            TypeError,
            "must have a method add_sc",
        ),
        (lambda net: ChargeMonitor(net, sgd(net), []), ValueError, "must have symmetric groups"),
        (lambda net: ChargeMonitor(net, sgd(net)).report(), RuntimeError, "nothing is recorded"),
        (
            lambda net: ChargeMonitor(net, sgd(net), [SymmetricGroup("scale", (Part("w", 0, 1),))]),
            ValueError,
            "params must hold 'w'",
        ),
    ],
)
def test_bad_input(make, error, message, generator):
    net, _ = made("mlp", generator)
    with pytest.raises(error, match=message):
        make(net)


def test_sparse_gradients_are_refused(generator):
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.LayerNorm(3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ChargeMonitor(net, optimizer, [SymmetricGroup("translation", (Part("0.weight", 1, 1, 3),))])
    net(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="gradients must be dense"):
        optimizer.step()
