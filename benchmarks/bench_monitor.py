"""The monitor of charges in a training loop: what it adds to a step, in processor time.

Run: python benchmarks/bench_monitor.py
"""

from __future__ import annotations

import time

import torch
from timing import machine, side_by_side, table
from torch import nn
from torch.nn import functional

from dln_geometry.learning import ChargeMonitor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOCK = time.perf_counter if DEVICE == "cuda" else time.process_time
# A step of the small networks is too short for the clock.
STEPS = 5


def mlp(width=560):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, width),
        nn.LayerNorm(width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.LayerNorm(width),
        nn.ReLU(),
        nn.Linear(width, width // 2),
        nn.LayerNorm(width // 2),
        nn.ReLU(),
        nn.Linear(width // 2, 10),
    )


def relu_mlp(width=560):
    return nn.Sequential(*(m for m in mlp(width) if not isinstance(m, nn.LayerNorm)))


def conv_net():
    def block(m, n, stride=1):
        conv = nn.Conv2d(m, n, 3, stride=stride, padding=1, bias=False)
        return conv, nn.BatchNorm2d(n), nn.ReLU()

    return nn.Sequential(
        *block(1, 32),
        *block(32, 64, 2),
        *block(64, 128, 2),
        *block(128, 256, 2),
        *block(256, 256),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


NETWORKS = {
    "MLP, layer norm": (mlp, 128),
    "MLP, ReLU alone": (relu_mlp, 128),
    "convolutions, batch norm": (conv_net, 32),
}
RULES = {
    "momentum, decay": {"momentum": 0.9, "weight_decay": 5e-4},
    "nesterov, decay": {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
}


def loop(make, batch, rule, **options):
    """Return a function that makes some steps, with a monitor if there are options for it."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 1, 28, 28, generator=g).to(DEVICE)
    y = torch.randint(10, (batch,), generator=g).to(DEVICE)
    net = make().to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, **rule)
    if options:
        ChargeMonitor(net, optimizer, loss="cross_entropy", **options)

    def run():
        for _ in range(STEPS):
            optimizer.zero_grad()
            functional.cross_entropy(net(x), y).backward()
            optimizer.step()

    return run, sum(p.numel() for p in net.parameters())


def main():
    torch.set_num_threads(1)
    print(machine())
    rows = []
    for name, (make, batch) in NETWORKS.items():
        for rule_name, rule in RULES.items():
            plain, count = loop(make, batch, rule)
            # Twice the same, to know what the clock is good for.
            again, _ = loop(make, batch, rule)
            each, _ = loop(make, batch, rule, every=1)
            tenth, _ = loop(make, batch, rule, every=10)
            seldom, _ = loop(make, batch, rule, every=100)
            times = side_by_side(
                {
                    "plain": plain,
                    "seldom": seldom,
                    "tenth": tenth,
                    "again": again,
                    "each": each,
                },
                rounds=25,
                budget=40,
                clock=CLOCK,
            )
            base = (times["plain"] + times["again"]) / 2
            rows.append(
                [
                    f"{name}, {count / 1e6:.2f}M, batch {batch}",
                    rule_name,
                    f"{base / STEPS * 1e3:.2f}",
                    f"{100 * (times['seldom'] / base - 1):+.1f} %",
                    f"{100 * (times['tenth'] / base - 1):+.1f} %",
                    f"{100 * (times['each'] / base - 1):+.1f} %",
                    f"{100 * abs(times['again'] / times['plain'] - 1):.1f} %",
                ]
            )
    header = ["network", "rule", "step ms", "every=100", "every=10", "every=1", "twice the same"]
    table("ChargeMonitor: time added to a training step", header, rows)


if __name__ == "__main__":
    main()
