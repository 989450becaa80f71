"""Geodesics at great depth, between points that coincide nearly, in other precisions and scales."""

from __future__ import annotations

import math

import pytest
import torch

from dln_geometry.geometry.geodesics import distance, exponential, geodesic, logarithm
from dln_geometry.geometry.geodesics import parallel_transport as transport
from dln_geometry.geometry.metric import cometric, inner
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.testing import assert_close

DEPTHS = [1.0001, 2.0, 30.0, 33.0, 100.0, 1e3, 1e6, 1e12, math.inf]
RTOL = 1e-11


def drawn(generator, shape=(3, 3), batch=(), dtype=torch.float64):
    return torch.randn(*batch, *shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("depth", DEPTHS)
def test_points_that_coincide(depth, dtype, generator):
    p = EndToEnd.of(drawn(generator, batch=(6,), dtype=dtype), depth)
    eps = torch.finfo(dtype).eps
    assert_close(logarithm(p, p), torch.zeros_like(p.matrix), scale=float(p.s.max()))
    assert_close(exponential(p, torch.zeros_like(p.matrix)).matrix, p.matrix)
    assert_close(transport(p, 0.0 * p.matrix, p.matrix)[1], p.matrix)
    far = float(distance(p, p).max())
    # A relative move of eps has the length of at most eps sqrt(N) s^{1/N}, sqrt(r) at depth inf.
    assert far <= 100.0 * eps * 3.0 * (1.0 if math.isinf(depth) else min(depth, 9.0) ** 0.5)


@pytest.mark.parametrize("depth", DEPTHS)
def test_points_a_rounding_to_a_thousandth_apart(depth, generator):
    x, dx = (drawn(generator, batch=(4,)) for _ in range(2))
    for share in (1e-15, 1e-12, 1e-8, 1e-4):
        p, q = EndToEnd.of(x, depth), EndToEnd.of(x + share * dx, depth)
        z = logarithm(p, q)
        size = torch.linalg.matrix_norm(z) + 1e-13 * p.s[:, 0]
        assert bool((torch.linalg.matrix_norm(z - share * dx) < 30.0 * size).all())
        ends = exponential(p, z).matrix
        missed = torch.linalg.matrix_norm(ends - q.matrix)
        assert bool((missed < 1e-9 * size + 1e-12 * p.s[:, 0]).all())


@pytest.mark.parametrize("depth", [33.0, 100.0, 1e4, 1e8, 1e12])
@pytest.mark.parametrize("shape", [(3, 3), (4, 2)])
def test_great_depths_keep_the_laws_of_geodesics(depth, shape, generator):
    if depth > 1e4 and shape[0] != shape[1]:
        pytest.skip("moves out of the range cost sqrt(N): roundings of frames are long")
    p = EndToEnd.of(drawn(generator, shape, (4,)), depth)
    z = cometric(p, drawn(generator, shape, (4,)))
    z = z * (0.2 * p.s[:, -1] / torch.linalg.matrix_norm(z))[:, None, None]
    q, length = exponential(p, z), inner(p, z, z).sqrt()
    back = logarithm(q, p)
    error = torch.linalg.matrix_norm(logarithm(p, q) - z) / torch.linalg.matrix_norm(z)
    assert float(error.max()) < 1e-9
    assert_close(distance(p, q) / length, torch.ones(4).double(), condition=depth**0.5 + 1e3)
    arrived = transport(p, z, z)[1]
    error = torch.linalg.matrix_norm(arrived + back) / torch.linalg.matrix_norm(back)
    assert float(error.max()) < 1e-9
    middle = geodesic(p, z, 0.5)
    assert_close(distance(p, middle), 0.5 * length, condition=depth**0.5 + 1e3)


def test_the_limit_of_infinite_depth(generator):
    x, z = drawn(generator, batch=(4,)), 0.1 * drawn(generator, batch=(4,))
    z = z * torch.linalg.svdvals(x)[:, -1:, None]
    limit = exponential(EndToEnd.of(x, math.inf), z).matrix
    gaps = [
        float((exponential(EndToEnd.of(x, depth), z).matrix - limit).abs().max())
        for depth in (1e2, 1e4, 1e6)
    ]
    assert gaps[2] < 1e-4 * gaps[0] * 2.0
    assert gaps[1] < 1e-2 * gaps[0] * 2.0


def test_both_coordinates_agree(generator):
    # Depths on both sides of the change of coordinates.
    x, dx = drawn(generator, batch=(4,)), 0.01 * drawn(generator, batch=(4,))
    depths = (31.99999, 32.0, 32.00001)
    below, at, above = (logarithm(EndToEnd.of(x, d), EndToEnd.of(x + dx, d)) for d in depths)
    assert_close(0.5 * (below + above), at, ops=1000, condition=1e3)


@pytest.mark.parametrize("depth", [1.5, 3.0, 50.0, math.inf])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float64, 1e150),
        (torch.float64, 1e-150),
        (torch.float32, 1e18),
        (torch.float32, 1e-18),
    ],
)
def test_scales(depth, dtype, scale, generator):
    x, dx = (drawn(generator, dtype=dtype) for _ in range(2))
    dx = 0.1 * dx * torch.linalg.svdvals(x)[-1]
    p, q, cp, cq = (EndToEnd.of(c * y, depth) for c in (1.0, scale) for y in (x, x + dx))
    condition = 1e4 if dtype == torch.float64 else 1e2
    assert_close(logarithm(cp, cq) / scale, logarithm(p, q), condition=condition)
    assert_close(
        exponential(cp, scale * dx).matrix / scale, exponential(p, dx).matrix, condition=condition
    )
    assert_close(
        distance(cp, cq),
        scale ** (1.0 / depth) * distance(p, q),
        condition=condition,
        scale=float(scale ** (1.0 / depth)),
    )
