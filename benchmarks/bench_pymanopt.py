"""The manifold for pymanopt against pymanopt's own fixed-rank matrices, operation by operation.

Every point is new, as in an optimizer: what ours keeps with a point is part of the time. "Again" is
the next retraction from the same point, as in a line search. The host has no Hessian.

Run: python benchmarks/bench_pymanopt.py
"""

from __future__ import annotations

import math

import numpy as np
import torch
from pymanopt.manifolds import FixedRankEmbedded
from timing import machine, side_by_side, table

from manifolds._pymanopt import EndToEndManifold, FixedRankPoint

DEPTHS = (1, 2, 3, 8, 2.7, math.inf)
COMPARED = ("gradient", "retraction", "both", "transport")


def times_at(m, n, r, depth):
    """Return the seconds of every operation, ours and the host's, in one run."""
    rng = np.random.default_rng(0)
    ours, host = EndToEndManifold(m, n, r, depth, rng=rng), FixedRankEmbedded(m, n, r)
    x, g = ours.random_point(), rng.standard_normal((m, n))
    derivative = g @ x.vt.T * x.s, np.diag(x.u.T @ g @ x.vt.T).copy(), x.s[:, None] * (x.u.T @ g)
    along = tuple(rng.standard_normal(part.shape) for part in x)
    z = ours.random_tangent_vector(x) * 0.1
    theirs = type(host.zero_vector(x))(*z)
    y, their_y = ours.retraction(x, z), host.retraction(x, theirs)
    warm = FixedRankPoint(*x)

    def gradient_and_retraction():
        point = FixedRankPoint(*x)
        ours.euclidean_to_riemannian_gradient(point, derivative)
        ours.retraction(point, z)

    def those_of_the_host():
        host.euclidean_to_riemannian_gradient(x, derivative)
        host.retraction(x, theirs)

    return side_by_side(
        {
            "gradient": lambda: ours.euclidean_to_riemannian_gradient(
                FixedRankPoint(*x), derivative
            ),
            "gradient, host": lambda: host.euclidean_to_riemannian_gradient(x, derivative),
            "retraction": lambda: ours.retraction(FixedRankPoint(*x), z),
            "retraction, host": lambda: host.retraction(x, theirs),
            "both": gradient_and_retraction,
            "both, host": those_of_the_host,
            "transport": lambda: ours.transport(
                FixedRankPoint(*x), FixedRankPoint(*y), z
            ),
            "transport, host": lambda: host.transport(x, their_y, theirs),
            "again": lambda: ours.retraction(warm, z),
            "hessian": lambda: ours.euclidean_to_riemannian_hessian(warm, derivative, along, z),
        },
        rounds=1000,
        budget=4.0,
    )  # fmt: skip


def main():
    torch.set_num_threads(1)
    print(machine())
    for m, n, r in ((500, 500, 10), (2000, 1000, 20)):
        rows = []
        for depth in DEPTHS:
            t = times_at(m, n, r, depth)
            compared = [f"{1e6 * t[k]:.0f} ({t[k] / t[f'{k}, host']:.2f})" for k in COMPARED]
            rows.append(
                [f"{depth:g}", *compared, f"{1e6 * t['again']:.0f}", f"{1e6 * t['hessian']:.0f}"]
            )
        host = [f"{1e6 * t[f'{k}, host']:.0f}" for k in COMPARED]
        rows.append(["FixedRankEmbedded", *host, "", ""])
        table(
            f"{m} x {n}, rank {r}: microseconds (times the host's)",
            ["depth", *COMPARED, "retraction again", "Hessian"],
            rows,
        )


if __name__ == "__main__":
    main()
