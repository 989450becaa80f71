"""Leaves of given moments: metric, volumes, and the eigenvalues that gauge noise keeps."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close
from tests.geometry.realified import C128, as_vector, generators

F64 = torch.float64
SHAPES = [((4, 3), (3, 4)), ((5, 3), (2, 5)), ((3, 3), (4, 3), (3, 4))]


def layers_of(generator, shapes, dtype=F64):
    return [torch.randn(*s, generator=generator, dtype=dtype) for s in shapes]


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("shapes", SHAPES)
def test_metric_inverts_the_speed_of_flows(shapes, dtype, generator):
    layers = layers_of(generator, shapes, dtype)
    m, n = shapes[-1][0], shapes[0][1]
    g = torch.randn(2, m, n, generator=generator, dtype=dtype)
    z = torch.stack([dln.pushforward(layers, dln.lift(layers, part)) for part in g])
    assert_close(dln.leaf_metric(layers, z), g, ops=1e6)
    # The shortest of all moves of the layers that move X so.
    length = sum(float(v.abs().square().sum()) for v in dln.lift(layers, g[0]))
    assert_close((z[0].conj() * g[0]).real.sum(), length, ops=1e4)
    units = torch.eye(m * n, dtype=dtype).view(-1, m, n)
    images = [dln.pushforward(layers, dln.lift(layers, e)).flatten() for e in units]
    f = 1 + dtype.is_complex
    density = -0.5 * f * torch.linalg.slogdet(torch.stack(images))[1]
    assert_close(dln.leaf_log_volume_density(layers), density, ops=1e4, scale=10.0)


def test_balanced_layers_have_the_depth_metric(generator):
    for depth, dtype in ((2, F64), (3, F64), (3, C128)):
        x, z = (torch.randn(3, 3, generator=generator, dtype=dtype) for _ in "xz")
        p = dln.EndToEnd.of(x, depth)
        layers = dln.balanced_factors(p, gauge="haar", generator=generator)
        assert_close(dln.leaf_metric(layers, z), dln.metric(p, z), ops=1e7)
        density = dln.log_volume_density(p)
        assert_close(dln.leaf_log_volume_density(layers), density, ops=1e5, scale=10.0)
        field = "complex" if dtype.is_complex else "real"
        volume = dln.orbit_log_volume(layers)
        volume = volume + (depth - 1) * dln.log_stiefel_volume(3, 3, field)
        assert_close(volume, dln.entropy(p), ops=1e4, scale=10.0)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("shapes", SHAPES)
def test_orbit_volume_is_a_gram_determinant(shapes, dtype, generator):
    layers = layers_of(generator, shapes, dtype)
    rows = []
    for k in range(len(layers) - 1):
        for g in generators(shapes[k][0]):
            if dtype == F64 and float(g.imag.abs().max()) > 0:
                continue
            g = g if dtype.is_complex else g.real
            v = [torch.zeros_like(w) for w in layers]
            v[k], v[k + 1] = g @ layers[k], -layers[k + 1] @ g
            rows.append(as_vector(*(w.to(C128) for w in v)))
    rows = torch.stack(rows)
    expected = 0.5 * torch.logdet(rows @ rows.T)
    value = dln.orbit_log_volume(layers)
    assert abs(value - expected) < 1e-12 * (10.0 + abs(expected))


def test_multiples_of_the_identity(generator):
    """``D(G) = sqrt(X X^T + g^2/4) G + G sqrt(X^T X + g^2/4)`` plus g/2 on either side."""
    x, z = (torch.randn(3, 3, generator=generator, dtype=F64) for _ in "xz")
    for lam in (0.7, -1.3):
        layers = dln.lambda_balanced(x, lam, (3, 3, 3))
        u, s, vh = torch.linalg.svd(x)
        root = (s.square() + 0.25 * lam**2).sqrt()
        inside = u.mT @ z @ vh.mT / (root[:, None] + root)
        assert_close(dln.leaf_metric(layers, z), u @ inside @ vh, ops=1e5)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_gauge_eigenvalues_are_kept_by_straight_steps(dtype, generator):
    first, second = layers_of(generator, SHAPES[1], dtype)
    eigenvalues = dln.gauge_eigenvalues((first, second))
    p = second.mH @ second + first @ first.mH
    (g,) = dln.moments((first, second))
    expected = torch.linalg.eigvals(torch.linalg.solve(p, g)).real.sort().values
    assert_close(eigenvalues, expected, ops=1e4)
    for size in (0.1, 2.0):
        a = torch.randn(5, 5, generator=generator, dtype=dtype)
        a = size * (a - a.mH)
        moved = first + a @ first, second - second @ a
        assert_close(dln.gauge_eigenvalues(moved), eigenvalues, ops=1e5)
        (h,) = dln.moments(moved)
        assert torch.linalg.det(h).abs() > torch.linalg.det(g).abs()


def test_refusals():
    with pytest.raises(ValueError, match="factors must reach all moves"):
        dln.leaf_metric(([[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]), torch.eye(2))
    with pytest.raises(ValueError, match="factors must be two layers"):
        dln.gauge_eigenvalues([torch.eye(2)] * 3)
    with pytest.raises(ValueError, match="factors must use every hidden direction"):
        dln.gauge_eigenvalues([torch.zeros(2, 2)] * 2)
    assert float(dln.orbit_log_volume([torch.zeros(2, 2)] * 2)) == -math.inf


@pytest.mark.parametrize("shapes", SHAPES)
def test_a_small_sample_is_no_loss_of_rank_beside_a_large_one(shapes, generator):
    small = [1e-9 * w for w in layers_of(generator, shapes)]
    z = torch.randn(shapes[-1][0], shapes[0][1], generator=generator, dtype=F64)
    both = [torch.stack([w, 1e9 * w]) for w in small]
    found, wanted = dln.leaf_metric(both, z)[0], dln.leaf_metric(small, z)
    assert_close(found, wanted, ops=1e6)
