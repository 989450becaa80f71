"""The equation of motion against the gradients it is made of: counter terms, iterates, sharpness.

Run: python benchmarks/bench_motion.py
"""

from __future__ import annotations

from itertools import pairwise

import torch
from timing import machine, side_by_side, table
from torch import nn

from dln_geometry.learning import Rule, functionalize
from dln_geometry.learning.motion import (
    counter_terms,
    equation_of_motion,
    equation_of_motion_from_iterates,
    hessian_product,
)


def network(widths, count, dtype, generator):
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


def main():
    torch.set_num_threads(1)
    print(machine())
    generator = torch.Generator().manual_seed(0)
    rows, header = [], ["network, inputs", "gradient ms"]
    for widths, count in (
        ((64, 256, 10), 1797), ((256, 256, 256, 10), 1024), ((256,) * 5 + (10,), 1024)
    ):  # fmt: skip
        times = side_by_side(
            candidates(*network(widths, count, torch.float32, generator)), rounds=9
        )
        unit = times.pop("gradient")
        row = ["-".join(map(str, widths)) + f", {count}", f"{unit * 1e3:.1f}"]
        rows.append([*row, *(f"{t / unit:.1f}" for t in times.values())])
        header = [*header[:2], *times]
    table("Time over one gradient, float32", header, rows)


if __name__ == "__main__":
    main()
