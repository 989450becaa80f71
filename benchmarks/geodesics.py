"""Geodesics of g^N: ours against the generic route, and how the time grows with the size.

The generic route is what a library of Riemannian geometry does with a metric matrix: Christoffel
symbols by autodiff of it, 100 steps of RK4. With geomstats installed, its own generic solver runs
beside it (``--geomstats``; it takes a minute).
"""

from __future__ import annotations

import os
import time

import torch

import dln_geometry as dln
from benchmarks.timing import peer, side_by_side, table
from dln_geometry.geometry.geodesics import exponential, logarithm


def cometric_matrix(x, d, depth):
    """Return A of a d x d matrix as a d^2 x d^2 matrix, by powers of X X^T and X^T X."""
    x = x.reshape(d, d)
    (p, u), (q, v) = torch.linalg.eigh(x @ x.mT), torch.linalg.eigh(x.mT @ x)

    def power(c, basis, exponent):
        return (basis * c**exponent) @ basis.mT

    return sum(
        torch.kron(power(p, u, (depth - k) / depth), power(q, v, (k - 1) / depth))
        for k in range(1, depth + 1)
    )


def generic_geodesic(x, z, depth, steps=100):
    """Integrate the geodesic equation by RK4 with Christoffel symbols by autodiff."""
    d = x.shape[-1]

    def metric(y):
        return torch.linalg.inv(cometric_matrix(y, d, depth))

    def acceleration(y, v):
        slope = torch.func.jacfwd(metric)(y)
        covector = torch.einsum("ijk,j,k->i", slope, v, v)
        covector = covector - 0.5 * torch.einsum("jki,j,k->i", slope, v, v)
        return -cometric_matrix(y, d, depth) @ covector

    y, v, h = x.flatten(), z.flatten(), 1.0 / steps
    for _ in range(steps):
        k1, l1 = v, acceleration(y, v)
        k2, l2 = v + h / 2 * l1, acceleration(y + h / 2 * k1, v + h / 2 * l1)
        k3, l3 = v + h / 2 * l2, acceleration(y + h / 2 * k2, v + h / 2 * l2)
        k4, l4 = v + h * l3, acceleration(y + h * k3, v + h * l3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        v = v + h / 6 * (l1 + 2 * l2 + 2 * l3 + l4)
    return y.reshape(d, d)


def geomstats_geodesic(x, z, depth, steps=100):
    """Let geomstats integrate, by its metric matrix alone; return the seconds it took."""
    from geomstats.geometry.base import VectorSpaceOpenSet
    from geomstats.geometry.euclidean import Euclidean
    from geomstats.geometry.riemannian_metric import RiemannianMetric
    from geomstats.numerics.geodesic import ExpODESolver
    from geomstats.numerics.ivp import GSIVPIntegrator

    d = x.shape[-1]

    class Space(VectorSpaceOpenSet):
        def __init__(self):
            super().__init__(dim=d * d, embedding_space=Euclidean(d * d), equip=False)

        def belongs(self, point, atol=1e-12):
            return torch.ones(point.shape[:-1], dtype=torch.bool)

        def projection(self, point):
            return point

        def random_point(self, n_samples=1, bound=1.0):
            return x.flatten()

    class Generic(RiemannianMetric):
        def metric_matrix(self, base_point=None):
            return torch.linalg.inv(cometric_matrix(base_point, d, depth))

    space = Space()
    space.equip_with_metric(Generic)
    solver = ExpODESolver(space, integrator=GSIVPIntegrator(n_steps=steps, step_type="rk4"))
    start = time.perf_counter()
    end = solver.exp(z.flatten(), x.flatten())
    return time.perf_counter() - start, end.reshape(d, d)


def start(d, depth, generator, length):
    x = torch.eye(d, dtype=torch.float64)
    x = x + 0.4 * torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    point = dln.EndToEnd.of(x, depth)
    z = dln.cometric(point, torch.randn(d, d, generator=generator, dtype=torch.float64))
    return point, z * (length / dln.inner(point, z, z).sqrt())


def geodesics(quick=False):
    g = torch.Generator().manual_seed(0)
    point, z = start(3, 3, g, 0.8)
    x, exact = point.matrix, exponential(point, z).matrix
    rk4 = generic_geodesic(x, z, 3)
    rk4_error = float((rk4 - exact).abs().max())
    rtol = 1e-8
    error = float((exponential(point, z, rtol=rtol).matrix - exact).abs().max())
    times = side_by_side(
        {
            "ours": lambda: exponential(point, z),
            "ours, rtol 1e-8": lambda: exponential(point, z, rtol=rtol),
            "generic": lambda: generic_geodesic(x, z, 3),
        },
        rounds=5,
    )
    rows = [
        ["ours, default", f"{times['ours']:.4f}", "reference", "1"],
        [
            "ours, rtol 1e-8",
            f"{times['ours, rtol 1e-8']:.4f}",
            f"{error:.1e}",
            f"{times['ours, rtol 1e-8'] / times['ours']:.2f}",
        ],
        [
            "dense metric, autodiff, 100 RK4",
            f"{times['generic']:.3f}",
            f"{rk4_error:.1e}",
            f"{times['generic'] / times['ours']:.0f}",
        ],
    ]
    os.environ["GEOMSTATS_BACKEND"] = "pytorch"  # Read at the first import.
    if not quick and peer("geomstats"):
        seconds, end = geomstats_geodesic(x, z, 3)
        rows.append(
            [
                "geomstats, generic, 100 RK4",
                f"{seconds:.1f}",
                f"{float((end - exact).abs().max()):.1e}",
                f"{seconds / times['ours']:.0f}",
            ]
        )
    ratios = {name: float(ratio) for name, _, _, ratio in rows[2:]}
    table("Geodesic, d = 3, N = 3", ["route", "seconds", "error", "ratio"], rows, ratios)

    rows = []
    for d in (3,) if quick else (3, 10, 50):
        for depth in (3, 2.7) if d < 50 else (3,):
            point, z = start(d, depth, g, 0.8)
            end = exponential(point, z)
            times = side_by_side(
                {
                    "exp": lambda p=point, z=z: exponential(p, z),
                    "log": lambda p=point, q=end: logarithm(p, q),
                },
                rounds=3,
            )
            missed = float((logarithm(point, end) - z).abs().max() / z.abs().max())
            rows.append(
                [f"{d}, {depth:g}", f"{times['exp']:.3f}", f"{times['log']:.2f}", f"{missed:.0e}"]
            )
    table(
        "Exponential map and logarithm, full rank, length 0.8",
        ["d, N", "exp s", "log s", "|log exp z - z| / |z|"],
        rows,
    )
    if not quick:
        beyond()


def beyond():
    """Time geodesics up to rank loss, logarithms of far points, and a batch with a hard sample."""
    rows = []
    for depth in (3, 8, 64):
        g = torch.Generator().manual_seed(0)
        point, _ = start(3, depth, g, 1.0)
        reach = depth**0.5 * float(point.s[-1]) ** (1 / depth)
        seconds: dict[str, list[float]] = {"exp": [], "log": [], "rank lost": []}
        found = 0
        for _ in range(8):
            z = dln.cometric(point, torch.randn(3, 3, generator=g, dtype=torch.float64))
            z = z * (1.5 * reach / dln.inner(point, z, z).sqrt())
            begun = time.perf_counter()
            try:
                end = exponential(point, z)
            except dln.GeodesicError:
                seconds["rank lost"].append(time.perf_counter() - begun)
                continue
            seconds["exp"].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            try:
                missed = exponential(point, logarithm(point, end)).matrix - end.matrix
                found += bool(missed.abs().max() < 1e-8 * end.matrix.abs().max())
            except dln.GeodesicError:
                pass
            seconds["log"].append(time.perf_counter() - begun)
        shown = [f"{sum(t) / len(t):.3f}, {max(t):.3f}" if t else "-" for t in seconds.values()]
        rows.append([f"{depth}", *shown, f"{found} of {len(seconds['log'])}"])
    table(
        "d = 3, length 1.5 times the distance to rank loss: mean and worst seconds",
        ["N", "exponential", "logarithm, and back", "rank lost", "logarithms found"],
        rows,
    )
    g = torch.Generator().manual_seed(0)
    point, z = start(3, 3, g, 0.3)
    many = z.repeat(64, 1, 1)
    mixed = many.clone()
    # Almost straight at the singular matrices, and past them.
    straight = -(point.u[:, -1:] @ point.vh[-1:]) + 0.05 * z
    reach = 3**0.5 * float(point.s[-1]) ** (1 / 3)
    mixed[0] = straight * (0.98 * reach / dln.inner(point, straight, straight).sqrt())
    times = side_by_side(
        {
            "one": lambda: exponential(point, z),
            "one hard": lambda: exponential(point, mixed[0]),
            "64": lambda: exponential(point, many),
            "63 and one hard": lambda: exponential(point, mixed),
        },
        rounds=5,
    )
    table(
        "Batches of geodesics, d = 3, N = 3: seconds",
        list(times),
        [[f"{t:.4f}" for t in times.values()]],
    )
