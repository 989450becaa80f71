"""The monitor of charges in a training loop: its share of the time of a step.

The time inside the monitor's hooks is set against the rest of the same steps, so that what else
the machine does touches both alike. Processor time; on a GPU, wall time with synchronisation.

Run: python benchmarks/bench_monitor.py
"""

from __future__ import annotations

import time

import torch
from timing import machine, table
from torch import nn
from torch.nn import functional

from dln_geometry.learning import ChargeMonitor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 100


def clock():
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Timed(ChargeMonitor):
    """A monitor that knows how much time it has taken."""

    spent = 0.0

    def _before_step(self, *args):
        start = clock()
        answer = super()._before_step(*args)
        self.spent += clock() - start
        return answer

    def _after_step(self, *args):
        start = clock()
        super()._after_step(*args)
        self.spent += clock() - start


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


def small_mlp():
    return mlp(32)


def small_relu_mlp():
    return relu_mlp(32)


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
    "small MLP, layer norm": (small_mlp, 32),
    "small MLP, ReLU alone": (small_relu_mlp, 32),
}
RULES = {
    "momentum, decay": {"momentum": 0.9, "weight_decay": 5e-4},
    "nesterov, decay": {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
}


OPTIONS = {
    "every=20": {"every": 20},
    "every=20, window=None": {"every": 20, "window": None},
    "every=1, window=None": {"every": 1, "window": None},
}


def shares(make, batch, rule, **options):
    """Return the seconds of a step without the monitor, and of the monitor in it."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 1, 28, 28, generator=g).to(DEVICE)
    y = torch.randint(10, (batch,), generator=g).to(DEVICE)
    net = make().to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, **rule)
    monitor = Timed(net, optimizer, loss="cross_entropy", **options)

    def run(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            functional.cross_entropy(net(x), y).backward()
            optimizer.step()

    # The first steps are slower, for both.
    run(20)
    monitor.spent, start = 0.0, clock()
    run(STEPS)
    whole = clock() - start
    return (whole - monitor.spent) / STEPS, monitor.spent / STEPS


def main():
    torch.set_num_threads(1)
    print(machine())
    rows = []
    for name, (make, batch) in NETWORKS.items():
        count = sum(p.numel() for p in make().parameters())
        for rule_name, rule in RULES.items():
            found = [shares(make, batch, rule, **options) for options in OPTIONS.values()]
            step = min(step for step, _ in found)
            rows.append(
                [
                    f"{name}, {count / 1e6:.2f}M, batch {batch}",
                    rule_name,
                    f"{step * 1e3:.2f}",
                    *(f"{100 * own / step:.1f} %" for step, own in found),
                ]
            )
    header = ["network", "rule", "step ms", *OPTIONS]
    table("ChargeMonitor: its time, relative to the rest of a training step", header, rows)


if __name__ == "__main__":
    main()
