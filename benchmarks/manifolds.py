"""Entropies, geodesics of networks, and the manifold for pymanopt against the host's own."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp

import dln_geometry as dln
from benchmarks.timing import peer, side_by_side, table
from dln_geometry.geometry.network_geodesics import balanced_geodesic, balanced_logarithm


def entropies(quick=False):
    g = torch.Generator().manual_seed(0)
    rows = []
    for d in (50, 200) if quick else (50, 200, 500):
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(d, d, generator=g, dtype=dtype)
            times = side_by_side(
                {
                    "ours": lambda x=x: dln.entropy(x, depth=4),
                    "svdvals": lambda x=x: torch.linalg.svdvals(x),
                    "point": lambda x=x: dln.entropy(dln.EndToEnd.of(x, 4)),
                    "svd": lambda x=x: torch.linalg.svd(x, full_matrices=False),
                }
            )
            rows.append(
                [
                    f"{d}, {str(dtype)[6:]}",
                    f"{times['ours'] * 1e3:.2f}",
                    f"{times['svdvals'] * 1e3:.2f}",
                    f"{times['ours'] / times['svdvals']:.2f}",
                    f"{times['point'] / times['svd']:.2f}",
                ]
            )
    table(
        "Entropy of a d x d matrix, depth 4",
        ["d", "entropy(x) ms", "svdvals ms", "ratio", "entropy(EndToEnd.of(x)) / svd"],
        rows,
    )


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


def network_geodesics(quick=False):
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
    for widths, rank in SIZES[:1] if quick else SIZES:
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


DEPTHS = (1, 2, 3, 8, 2.7, math.inf)
COMPARED = ("gradient", "retraction", "both", "transport")


def times_at(m, n, r, depth):
    """Return the seconds of every operation, ours and the host's, in one run."""
    from pymanopt.manifolds import FixedRankEmbedded

    from manifolds._pymanopt import EndToEndManifold, FixedRankPoint

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


def pymanopt_manifold(quick=False):
    if not peer("pymanopt"):
        return
    for m, n, r in ((500, 500, 10),) if quick else ((500, 500, 10), (2000, 1000, 20)):
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
