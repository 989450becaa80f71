"""Training loops that tests watch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from dln_geometry.learning import ChargeMonitor, DeepLinear
from tests.learning.networks import build

F64 = torch.float64


def deep_linear(generator, dtype=F64):
    net = nn.Sequential(
        nn.Linear(5, 4),
        nn.ReLU(),
        DeepLinear((4, 6, 3, 4), generator=generator),
    ).to(dtype)
    # Not balanced: from zero moments nothing could be lost.
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64).to(dtype) / 2)
    return net, torch.randn(9, 5, generator=generator, dtype=F64).to(dtype)


def made(name, generator, dtype=F64):
    return deep_linear(generator, dtype) if name == "deep linear" else build(name, generator, dtype)


def batch(net, x, generator):
    """Return fresh data like x, and the loss of the network on it."""
    if x.is_floating_point():
        data = torch.randn(x.shape, generator=generator, dtype=F64).to(x.dtype)
    else:
        data = torch.randint(int(x.max()) + 1, x.shape, generator=generator)
    y = net(data)
    y = y.reshape(-1, y.shape[-1])
    target = torch.randint(y.shape[-1], (y.shape[0],), generator=generator)
    return functional.cross_entropy(y, target)


def watched(net, optimizer, groups=None, *, every=1, window=None, **options):
    """Make a monitor that follows every step."""
    return ChargeMonitor(net, optimizer, groups, every=every, window=window, **options)


def train(net, x, optimizer, steps, generator, schedule=None, every_step=None):
    for n in range(steps):
        optimizer.zero_grad()
        batch(net, x, generator).backward()
        if every_step is not None:
            every_step(n)
        optimizer.step()
        if schedule is not None:
            schedule.step()


RULES = {
    "plain": {"weight_decay": 0.02},
    "heavy ball": {"momentum": 0.9, "weight_decay": 0.01},
    "dampened": {"momentum": 0.7, "dampening": 0.4, "weight_decay": 0.02},
    "nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.02},
}
REAL = ["layer norm", "convolution", "attention", "mlp", "deep linear"]


def worst(monitor):
    return {line.label: line.worst for line in monitor.report()}
