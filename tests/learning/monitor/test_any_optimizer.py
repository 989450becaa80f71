"""Charges under optimisers that are not SGD."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from dln_geometry.learning import SymmetryError
from tests.learning.monitor.loops import made, train, watched

F64 = torch.float64


class Signs(torch.optim.Optimizer):
    """An optimiser that nobody knows."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * p.grad.sign()


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.3, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.02, decoupled_weight_decay=True, weight_decay=0.2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "unknown": lambda p: Signs(p, 0.01),
}


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("network", ["deep linear", "batch norm"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_charges_follow_the_steps_taken(name, network, window, generator):
    net, x = made(network, generator)
    optimizer = OPTIMIZERS[name](net.parameters())
    monitor = watched(net, optimizer, every=3, window=window, units=True, tolerance=1e-9)
    with monitor:
        train(net, x, optimizer, 9, generator)
    record = monitor.record()
    size = record.unit_charge.abs().max()
    assert (record.unit_predicted - record.unit_charge).abs().max() <= 1e-12 * size
    for line in monitor.report():
        assert set(line.drift) >= {"decay", "square"}
        assert math.isfinite(sum(line.drift.values()))
    # Charges are not conserved: the preconditioner drives them.
    assert (record.charge[-1] - record.charge[0]).abs().max() > 1e-4


OF_TORCH = {
    "adam": {"lr": 0.02, "maximize": True, "weight_decay": 0.1, "fused": True},
    "adamw": {"lr": torch.tensor(0.02), "weight_decay": 0.3, "foreach": False},
    "radam": {"lr": 0.02, "weight_decay": 0.1},
    "adamax": {"lr": 0.02, "weight_decay": 0.1, "foreach": True},
    "adadelta": {"lr": 0.5, "weight_decay": 0.1},
    "adagrad": {"lr": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.1},
    "asgd": {"lr": 0.05, "lambd": 0.1, "t0": 2},
    "rprop": {"lr": 0.01},
    "adafactor": {"lr": 0.02, "weight_decay": 0.1},
    "sgd": {"lr": 0.02, "momentum": 0.9, "nesterov": True, "maximize": True, "fused": True},
    "lbfgs": {"lr": 0.3, "max_iter": 3, "line_search_fn": "strong_wolfe"},
}


@pytest.mark.parametrize("name", OF_TORCH)
def test_the_law_holds_for_each_optimizer_of_torch(name, generator):
    """Under a schedule, clipped and accumulated gradients; closures may be evaluated often."""
    net, x = made("deep linear", generator)
    kinds = {k.lower(): v for k, v in vars(torch.optim).items() if isinstance(v, type)}
    optimizer = kinds[name](net.parameters(), **OF_TORCH[name])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    monitor = watched(net, optimizer, every=2, units=True, tolerance=1e-9)
    with monitor:
        for _ in range(6):
            targets = torch.randint(4, (2, 9), generator=generator)

            def closure(targets=targets):
                optimizer.zero_grad()
                losses = [functional.cross_entropy(net(x), y) / 2 for y in targets]
                for loss in losses:
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
                return sum(losses)

            optimizer.step(closure)
            schedule.step()
    record = monitor.record()
    size = record.unit_charge.abs().max()
    assert (record.unit_predicted - record.unit_charge).abs().max() <= 1e-12 * size
    assert not any(line.is_broken for line in monitor.report())


def two_layers(generator, widths=(3, 4, 2)):
    a, b, c = widths
    net = nn.Sequential(nn.Linear(a, b, bias=False), nn.Linear(b, c, bias=False)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64))
    return net


def gauge_charge(net):
    w1, w2 = (layer.weight.detach() for layer in net)
    return w1 @ w1.mT - w2.mT @ w2


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_drifts_are_those_of_the_written_law(kind, generator):
    net = two_layers(generator)
    lr, k = 0.05, 0.4
    x = torch.randn(6, 3, generator=generator, dtype=F64)
    if kind == "adamw":
        optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=k, betas=(0.8, 0.9))
    else:
        optimizer = torch.optim.Muon(net.parameters(), lr=lr, weight_decay=k)
    monitor = watched(net, optimizer, window=1)
    first = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in net.parameters()}
    for n in range(1, 4):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        old = [p.detach().clone() for p in net.parameters()]
        g = [p.grad.clone() for p in net.parameters()]
        before = gauge_charge(net)
        optimizer.step()
        shrink = 1 - lr * k
        if kind == "adamw":
            u = []
            for p, d in zip(net.parameters(), g, strict=True):
                m, v = first[p]
                m, v = 0.8 * m + 0.2 * d, 0.9 * v + 0.1 * d * d
                first[p] = m, v
                u.append(m / (1 - 0.8**n) / ((v / (1 - 0.9**n)).sqrt() + 1e-8))
        else:
            u = [(shrink * q - p.detach()) / lr for q, p in zip(old, net.parameters(), strict=True)]
        mixed = old[0] @ u[0].mT - u[1].mT @ old[1]
        squares = u[0] @ u[0].mT - u[1].mT @ u[1]
        law = shrink**2 * before - lr * shrink * (mixed + mixed.mT) + lr**2 * squares
        after = gauge_charge(net)
        assert (law - after).abs().max() <= 1e-12 * before.abs().max()
        (line,) = monitor.report()
        cause = "preconditioner" if kind == "adamw" else "orthogonalisation"
        assert line.drift["decay"] == pytest.approx(-2 * lr * k * float(before.trace()), 1e-9)
        assert line.drift[cause] == pytest.approx(-2 * lr * float(mixed.trace()), 1e-6)
        assert line.worst < 1e-12
    monitor.close()


DECAYS = {
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.02, weight_decay=0.7),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.7),
    "coupled adamw": lambda p: torch.optim.AdamW([
        {"params": list(p), "decoupled_weight_decay": False}
    ], lr=0.02, weight_decay=0.7),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.02, lambd=0.7),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.02, decoupled_weight_decay=True, weight_decay=0.7),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.02, weight_decay=0.7),
}  # fmt: skip


@pytest.mark.parametrize("name", DECAYS)
def test_the_drift_of_decay_is_that_of_a_twin_without_it(name, generator):
    """The same first step with and without decay: what multiplies the parameters is the decay."""
    steps = []
    for decay in (True, False):
        net = two_layers(torch.Generator().manual_seed(5))
        optimizer = DECAYS[name](net.parameters())
        if not decay:
            for group in optimizer.param_groups:
                group.update({k: 0.0 for k in ("weight_decay", "lambd") if k in group})
        old = [p.detach().clone() for p in net.parameters()]
        with watched(net, optimizer, window=1) as monitor:
            x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
            net(x).square().mean().backward()
            optimizer.step()
        steps.append([p.detach() - q for p, q in zip(net.parameters(), old, strict=True)])
        if decay:
            found = monitor.report()[0].drift["decay"]
    d = [a - b for a, b in zip(*steps, strict=True)]
    expected = 2 * float((old[0] @ d[0].mT - d[1].mT @ old[1]).trace())
    decoupled = name not in ("coupled adamw", "adagrad")
    # ASGD keeps its rate in single precision.
    assert found == (pytest.approx(expected, rel=1e-7) if decoupled else 0.0)


class Own(torch.optim.AdamW):
    """A known class whose steps are its own: nobody knows what it does with its decay."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad


def test_decay_is_not_told_of_optimizers_that_are_not_known(generator):
    for decay in (0.0, 0.1):
        net = two_layers(generator)
        optimizer = Own(net.parameters(), lr=0.1, weight_decay=decay)
        for group in optimizer.param_groups:
            del group["decoupled_weight_decay"]
        with watched(net, optimizer, window=1) as monitor:
            net(torch.ones(1, 3, dtype=F64)).square().mean().backward()
            optimizer.step()
        assert ("decay" in monitor.report()[0].drift) == (not decay)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_broken_symmetries_are_found_and_rounding_is_not(dtype, generator):
    net = two_layers(generator).to(dtype)
    x = torch.randn(16, 3, generator=generator, dtype=F64).to(dtype)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    watched(net, optimizer, window=1, on_break="raise", flush_every=1)
    for broken in (False, True):
        optimizer.zero_grad()
        loss = net(x).square().mean()
        if broken:
            loss = loss + net[0].weight.square().sum()
        loss.backward()
        if broken:
            with pytest.raises(SymmetryError):
                optimizer.step()
        else:
            optimizer.step()


def test_moves_from_outside_are_found_by_one_long_prediction(generator):
    net = two_layers(generator)
    x = torch.randn(16, 3, generator=generator, dtype=F64)
    optimizer = torch.optim.RMSprop(net.parameters(), lr=0.01)
    monitor = watched(net, optimizer)
    for n in range(4):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        if n == 2:
            assert not monitor.report()[0].is_broken
            with torch.no_grad():
                net[0].weight.mul_(1.1)
    assert monitor.report()[0].is_broken


def test_autocast_counts_the_rounding_of_its_type(generator):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(32, 6, generator=generator, dtype=F64).float()
    for optimizer in (
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        torch.optim.Adam(net.parameters(), lr=0.01),
    ):
        with watched(net, optimizer, window=1) as monitor:
            for _ in range(5):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = functional.cross_entropy(net(x), torch.arange(32) % 3)
                loss.backward()
                optimizer.step()
        assert not any(line.is_broken for line in monitor.report())


@pytest.mark.parametrize("mode", ["bf16", "autocast", "float32"])
def test_rounding_of_vanishing_gradients_breaks_nothing(mode, generator):
    """The bias before a batch normalisation: its gradient is zero but for rounding."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    net = net.to(dtype)
    x = torch.randn(64, 8, generator=generator, dtype=F64).to(dtype)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    options = {"example_input": x, "loss": "cross_entropy", "every": 5, "window": 1}
    with watched(net, optimizer, **options) as monitor:
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
                loss = functional.cross_entropy(net(x).float(), y)
            loss.backward()
            optimizer.step()
    labels = [line.label for line in monitor.report()]
    assert any(label.startswith("translation(0.bias") for label in labels)
    assert not [line.label for line in monitor.report() if line.is_broken]


def test_broken_translations_are_found_under_adam(generator):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(16, 3, generator=generator, dtype=F64)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    options = {"example_input": x, "loss": "cross_entropy", "every": 1, "window": 1}
    with watched(net, optimizer, **options) as monitor:
        for decay in (0.0, 0.01):
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(x), torch.arange(16) % 3)
            (loss + decay * net[2].bias.square().sum()).backward()
            optimizer.step()
            broken = [line.label for line in monitor.report() if line.is_broken]
            assert bool(broken) == bool(decay)
    assert all(label.startswith("translation") for label in broken)


def test_state_goes_on_where_it_was(generator):
    net = two_layers(generator)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    monitor = watched(net, optimizer)
    x = torch.randn(8, 3, generator=generator, dtype=F64)

    def steps():
        for _ in range(3):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()

    steps()
    state = monitor.state_dict()
    monitor.close()
    again = watched(net, optimizer)
    again.load_state_dict(state)
    steps()
    assert again.report()[0].worst < 1e-12
    assert len(again.record()) == 7
