"""Mirrors of a network of a million parameters, in units of one gradient of its loss.

Run: python benchmarks/bench_mirror.py
"""

from __future__ import annotations

import torch
from timing import machine, side_by_side, table
from torch import nn
from torch.nn import functional

from dln_geometry import learning


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


def main():
    torch.set_num_threads(1)
    print(machine())
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
        rounds=9,
        budget=60,
    )
    rows = [[name, f"{1e3 * t:.2f}", f"{t / times['gradient']:.2f}"] for name, t in times.items()]
    table("Mirrors of a million parameters", ["work", "ms", "in gradients"], rows)


if __name__ == "__main__":
    main()
