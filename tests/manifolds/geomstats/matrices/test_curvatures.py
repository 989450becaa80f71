"""The covariant derivative of the curvature, and random unit vectors."""

from __future__ import annotations

import math

import geomstats.backend as gs
import pytest
import torch

from dln_geometry.testing import assert_close, assert_mean, assert_order
from manifolds._geomstats.arrays import as_tensor, to_backend
from manifolds.geomstats_dln import (
    DepthMetric,
    FixedRankEndToEnd,
    FixedSpacesEndToEnd,
    FullRankEndToEnd,
)
from tests.manifolds.geomstats.routes import normal

CASES = [
    ("full", 2, 2, 2, 2.7),
    ("full", 2, 3, 2, 3),
    ("full", 3, 3, 3, math.inf),
    ("rank", 3, 3, 2, 1),
    ("rank", 3, 3, 2, 2.7),
    ("spaces", 4, 3, 2, math.inf),
]

SPECTRA = [(1.3, 0.9, 0.6), (1.1, 1.1, 1.1)]


def place(case, spectrum, generator):
    """Return the metric of a case, a point of given singular values and tangent vectors."""
    kind, m, n, r, depth = case
    u, v = (torch.linalg.qr(normal(generator, size, r)).Q for size in (m, n))
    x = to_backend((u * torch.tensor(spectrum[:r], dtype=torch.float64)) @ v.mT)
    if kind == "full":
        space = FullRankEndToEnd(m, n)
    elif kind == "rank":
        space = FixedRankEndToEnd(m, n, r)
    else:
        space = FixedSpacesEndToEnd(to_backend(u), to_backend(v))
    space.equip_with_metric(DepthMetric, depth=depth)
    vectors = [space.to_tangent(to_backend(normal(generator, m, n)), x) for _ in range(5)]
    return space, x, vectors


@pytest.mark.parametrize(
    ("case", "spectrum"),
    [*((case, SPECTRA[0]) for case in CASES), *((case, SPECTRA[1]) for case in CASES[2::2])],
    ids=str,
)
def test_second_bianchi_identity(case, spectrum, generator):
    """``(nabla_A R)(B, C) + (nabla_B R)(C, A) + (nabla_C R)(A, B) = 0``."""
    space, x, (a, b, c, d, e) = place(case, spectrum, generator)
    metric = space.metric
    cycle = (a, b, c), (b, c, a), (c, a, b)
    parts = [as_tensor(metric.curvature_derivative(*v, d, x)) for v in cycle]
    curved = sum(as_tensor(metric.curvature(*v[1:], d, x)).norm() for v in cycle)
    # It vanishes at infinite depth and equal singular values, where inversion is a symmetry.
    size = sum(part.norm() for part in parts) + curved / spectrum[-1]
    # Roundings of the curvature are divided by a tenth of the smallest singular value.
    assert_close(sum(parts), torch.zeros_like(parts[0]), ops=1000, scale=size, condition=100)
    assert bool(space.is_tangent(to_backend(parts[0]), x, atol=1e-9))
    pairs = [
        metric.inner_product(metric.curvature_derivative(a, *v, x), w, x)
        for v, w in (((b, c, d), e), ((d, e, b), c))
    ]
    one, two = (as_tensor(pair) for pair in pairs)
    assert_close(one, two, ops=1000, scale=size, condition=100)


@pytest.mark.parametrize("case", CASES[3::2], ids=str)
def test_it_is_the_slope_of_the_transported_curvature(case, generator):
    """Along geodesics, which know their own way: by central differences."""
    space, x, (a, b, c, d, _) = place(case, SPECTRA[0], generator)
    metric, steps = space.metric, [0.08 * 0.5**k for k in range(4)]
    exact = as_tensor(metric.curvature_derivative(a, b, c, d, x))

    def carried(t):
        end = metric.exp(t * a, x)
        moved = [metric.parallel_transport(v, x, direction=t * a) for v in (b, c, d)]
        back = metric.parallel_transport(a, x, direction=t * a)
        curved = metric.curvature(*moved, end)
        return as_tensor(metric.parallel_transport(curved, end, direction=-t * back))

    errors = [float(((carried(h) - carried(-h)) / (2 * h) - exact).norm()) for h in steps]
    assert_order(steps, errors, 2.0)


def test_it_does_not_depend_on_the_length_of_the_step(generator):
    """It is linear in the direction, zero for none, in batches as one by one."""
    space, x, (a, b, c, d, e) = place(CASES[1], SPECTRA[0], generator)
    metric = space.metric
    one, two, both = (
        as_tensor(metric.curvature_derivative(v, b, c, d, x)) for v in (a, e, 1e3 * a - e)
    )
    assert_close(both, 1e3 * one - two, ops=1000, scale=1e3 * one.norm(), condition=100)
    zero = 0.0 * a
    batch = as_tensor(metric.curvature_derivative(gs.stack([a, zero]), b, c, gs.stack([d, d]), x))
    assert_close(batch, torch.stack([one, torch.zeros_like(one)]), ops=1000, condition=100)
    directional = as_tensor(metric.directional_curvature_derivative(a, b, x))
    assert_close(directional, as_tensor(metric.curvature_derivative(a, b, a, b, x)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_random_unit_vectors_are_uniform_on_the_sphere_of_the_metric(case, generator):
    space, x, _ = place(case, SPECTRA[0], generator)
    gs.random.seed(1)
    z = space.metric.random_unit_tangent_vec(x, 4000)
    assert bool(gs.all(space.is_tangent(z, x, atol=1e-9)))
    assert_close(as_tensor(space.metric.norm(z, x)), torch.ones(4000, dtype=torch.float64))
    flat = as_tensor(z).flatten(1)
    # Of orthonormal coordinates the mean square is 1/dim: the cometric in all.
    covector = normal(generator, flat.shape[1])
    raised = as_tensor(space.metric.cometric_matrix(x))
    assert_mean((flat @ covector) ** 2, covector @ raised @ covector / space.dim)
    assert_mean(flat @ covector, 0.0)
