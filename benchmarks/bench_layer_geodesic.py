"""Geodesics of balanced networks: ours against scipy, and how the time grows with the size.

scipy's DOP853 follows ``W'' = -J^+ d^2 G[W', W']``, the moments G held at zero by their Jacobian,
which is what is left without frames and closed forms.

Run: python benchmarks/bench_layer_geodesic.py
"""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp
from timing import machine, side_by_side, table

import dln_geometry as dln
from dln_geometry.geometry.network_geodesics import balanced_geodesic, balanced_logarithm

SIZES = [
    ((3, 3, 3, 3), 3),
    ((3,) * 9, 3),
    ((20, 20, 20, 20), 20),
    ((500, 500, 500, 500), 10),
    ((784, 100, 100, 10), 10),
]


def with_constraints(layers, velocity, rtol=1e-10):
    """Return the layers at time 1, by scipy."""
    shapes, sizes = [w.shape for w in layers], [w.numel() for w in layers]

    def cut(flat):
        return [p.reshape(s) for p, s in zip(torch.split(flat, sizes), shapes, strict=True)]

    def moments(flat):
        w = cut(flat)
        return torch.cat([(b.mT @ b - a @ a.mT).flatten() for a, b in pairwise(w)])

    def field(_, y):
        w, v = (torch.from_numpy(part.copy()) for part in np.split(y, 2))
        jacobian = torch.func.jacfwd(moments)(w)
        normal = torch.linalg.lstsq(jacobian, -2.0 * moments(v), driver="gelsd").solution
        return torch.cat([v, normal]).numpy()

    start = torch.cat([x.flatten() for part in (layers, velocity) for x in part]).numpy()
    end = solve_ivp(field, (0, 1), start, method="DOP853", rtol=rtol, atol=rtol).y[:, -1]
    return cut(torch.from_numpy(end).chunk(2)[0])


def start(widths, rank, length, generator):
    """Return a network with spread singular values, and a tangent vector of a length."""
    spectrum = torch.linspace(1.5, 0.7, rank, dtype=torch.float64)
    layers = dln.random_balanced(widths, rank=rank, spectrum=spectrum, generator=generator)
    noise = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in layers]
    v = dln.tangent(layers, noise)
    size = sum(float(a.square().sum()) for a in v) ** 0.5
    return layers, [a * (length / size) for a in v]


def apart(one, two):
    return max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))


def main():
    torch.set_num_threads(1)
    print(machine())
    g = torch.Generator().manual_seed(0)
    layers, v = start((3, 3, 3, 3), 3, 0.5, g)
    exact = balanced_geodesic(layers, v)
    times = side_by_side(
        {
            "ours": lambda: balanced_geodesic(layers, v),
            "scipy": lambda: with_constraints(layers, v),
        },
        rounds=5,
        clock=time.process_time,
    )
    table(
        "Geodesic of a network of widths (3, 3, 3, 3)",
        ["route", "seconds", "apart", "ratio"],
        [
            ["ours, default", f"{times['ours']:.4f}", "reference", "1"],
            [
                "DOP853, constraints by autodiff, rtol 1e-10",
                f"{times['scipy']:.3f}",
                f"{apart(with_constraints(layers, v), exact):.0e}",
                f"{times['scipy'] / times['ours']:.0f}",
            ],
        ],
    )
    rows = []
    for widths, rank in SIZES:
        for length in (0.3, 1.0):
            layers, v = start(widths, rank, length, g)
            end = balanced_geodesic(layers, v)
            times = side_by_side(
                {
                    "exp": lambda w=layers, v=v: balanced_geodesic(w, v),
                    "log": lambda w=layers, e=end: balanced_logarithm(w, e),
                },
                rounds=5,
                clock=time.process_time,
            )
            missed = apart(balanced_logarithm(layers, end), v) / max(
                float(a.abs().max()) for a in v
            )
            shown = f"{widths[0]} x {len(widths) - 1}" if len(set(widths)) == 1 else str(widths)
            rows.append(
                [shown, str(rank), f"{length:g}", f"{1e3 * times['exp']:.0f}",
                 f"{1e3 * times['log']:.0f}", f"{missed:.0e}"]
            )  # fmt: skip
    table(
        "Exponential map and logarithm of networks",
        ["width x depth", "rank", "length", "exp ms", "log ms", "|log exp v - v| / |v|"],
        rows,
    )


if __name__ == "__main__":
    main()
