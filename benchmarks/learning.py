"""Cost in gradients: charges of a training loop, the equation of motion, and mirrors."""

from __future__ import annotations

import time
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from benchmarks.timing import side_by_side, table
from dln_geometry import learning
from dln_geometry.learning import ChargeMonitor, Rule, functionalize
from dln_geometry.learning.motion import (
    counter_terms,
    equation_of_motion,
    equation_of_motion_from_iterates,
    hessian_product,
)

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


def monitor(quick=False):
    rows = []
    for name, (make, batch) in list(NETWORKS.items())[: 1 if quick else None]:
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


def network_of(widths, count, dtype, generator):
    layers = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, dtype=dtype), nn.Tanh()]
    inputs = torch.randn(count, widths[0], generator=generator, dtype=dtype)
    target = torch.randint(widths[-1], (count,), generator=generator)
    return functionalize(nn.Sequential(*layers[:-1]), nn.functional.cross_entropy, (inputs, target))


def candidates(loss, params):
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    rule = Rule(0.01)
    motion = equation_of_motion(loss, 0.01, 2, check=False)
    from_iterates = equation_of_motion_from_iterates(lambda p: rule.step(loss, p)[0], 0.01, 5)
    terms = [counter_terms(loss, order) for order in range(3)]
    return {
        # What training costs: no torch.func.
        "gradient": lambda: torch.autograd.grad(loss(leaves), list(leaves.values())),
        "H v": lambda: hessian_product(loss, params)(params),
        "xi_0": lambda: terms[0](params),
        "xi_0, xi_1": lambda: terms[1](params),
        "xi_0 to xi_2": lambda: terms[2](params),
        "F, order 2": lambda: motion(params),
        "F, J = 5": lambda: from_iterates(params),
    }


def motion(quick=False):
    generator = torch.Generator().manual_seed(0)
    rows, header = [], ["network, inputs", "gradient ms"]
    for widths, count in (
        ((64, 256, 10), 1797), ((256, 256, 256, 10), 1024), ((256,) * 5 + (10,), 1024)
    )[: 1 if quick else None]:  # fmt: skip
        times = side_by_side(
            candidates(*network_of(widths, count, torch.float32, generator)), rounds=9
        )
        unit = times.pop("gradient")
        row = ["-".join(map(str, widths)) + f", {count}", f"{unit * 1e3:.1f}"]
        rows.append([*row, *(f"{t / unit:.1f}" for t in times.values())])
        header = [*header[:2], *times]
    table("Time over one gradient, float32", header, rows)


def network(generator):
    net = nn.Sequential(nn.Linear(784, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(),
                        nn.Linear(512, 640), nn.Tanh(), nn.Linear(640, 10))  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            z = torch.randn(p.shape, generator=generator)
            p.copy_(z / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1 * z)
    x = torch.randn(128, 784, generator=generator)
    return net, x, torch.randint(10, (128,), generator=generator)


def step(net, x, y):
    for p in net.parameters():
        p.grad = None
    functional.cross_entropy(net(x), y).backward()


def mirrors(quick=False):
    g = torch.Generator().manual_seed(0)
    net, x, y = network(g)
    print(f"{sum(p.numel() for p in net.parameters())} parameters, batch of 128")
    loss, params = learning.functionalize(net, functional.cross_entropy, (x, y))
    families = learning.mirrors_of(net, x)
    hidden = next(f for f in families if f.kind == "permutation" and "2.weight" in f.names)
    mirror = hidden.mirror(params, hidden.closest(params)[0][1])
    gradient = torch.func.grad(loss)
    wide = learning.Mirror.rotation(params, hidden.axes, torch.randn(hidden.units, generator=g))
    sparse, grouped, removed = (network(torch.Generator().manual_seed(0))[0] for _ in range(3))
    for name in ("0.weight", "2.weight", "4.weight"):
        learning.dcs_(sparse, name)
        learning.dcs_(grouped, name, groups="row")
    learning.syre_(removed, generator=g)
    times = side_by_side(
        {
            "gradient": lambda: gradient(params),
            "reflect, permutation": lambda: mirror.reflect(params),
            "reflect, rotation": lambda: wide.reflect(params),
            "stability": lambda: learning.stability(loss, mirror, params, generator=g),
            "nearest pair": lambda: hidden.closest(params),
            "mirrors_of": lambda: learning.mirrors_of(net, x),
            "forward and backward": lambda: step(net, x, y),
            "the same, u * v": lambda: step(sparse, x, y),
            "the same, s * u": lambda: step(grouped, x, y),
            "the same, syre": lambda: step(removed, x, y),
        },
        rounds=3 if quick else 9,
        budget=60,
    )
    rows = [[name, f"{1e3 * t:.2f}", f"{t / times['gradient']:.2f}"] for name, t in times.items()]
    table("Mirrors of a million parameters", ["work", "ms", "in gradients"], rows)
