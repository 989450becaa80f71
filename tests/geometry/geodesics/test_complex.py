"""Geodesics and curvature of complex points, against closed forms and the complex connection."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close
from tests.geometry.realified import C128, complex_normal, of_rank

F64 = torch.float64


@pytest.mark.parametrize("depth", [2, 3.5])
def test_complex_numbers_are_a_flat_cone(depth):
    z, v = torch.tensor([[1.2 + 0.7j]], dtype=C128), torch.tensor([[-0.3 + 0.8j]], dtype=C128)
    p = dln.EndToEnd.of(z, depth)
    power = 1.0 / depth
    for t in (0.5, -0.4):
        exact = (z**power + t * v * power * z ** (power - 1.0)) ** depth
        assert_close(dln.geodesic(p, v, t).matrix, exact, ops=1e7)
    assert abs(dln.sectional_curvature(p, v, 1j * v)) < 1e-12
    q = dln.EndToEnd.of(z * torch.exp(torch.tensor(0.6j, dtype=C128)), depth)
    chord = 2.0 * math.sin(0.3 / depth) * math.sqrt(depth) * abs(complex(z)) ** power
    assert_close(dln.distance(p, q), chord, ops=1e7)


@pytest.mark.parametrize(("m", "n", "r", "depth"), [(3, 3, 3, 3), (4, 3, 2, 2.5), (3, 2, 2, 2)])
def test_geodesics_solve_their_equation(m, n, r, depth, generator):
    """``X'' = -Gamma(X', X')`` by second differences, with the connection of complex points."""
    p = dln.EndToEnd.of(of_rank(generator, m, n, r), depth, rank=r)
    v = 0.2 * dln.cometric(p, complex_normal(generator, m, n))
    v = v * float(p.s[..., -1]) / float(v.abs().max())
    h = 1e-3
    high, low = (dln.geodesic(p, v, t, rtol=1e-13).matrix for t in (h, -h))
    bend = (high - 2.0 * p.matrix + low) / h**2
    gamma = dln.connection(p, v, v)
    assert float((bend + gamma).abs().max()) < 1e-5 * (1.0 + float(gamma.abs().max()))
    end = dln.exponential(p, v)
    assert end.dtype == C128
    back = dln.logarithm(p, end)
    assert float((back - v).abs().max()) < 1e-7 * float(v.abs().max())
    length = dln.inner(p, v, v).sqrt()
    assert_close(dln.distance(p, end), length, ops=1e9)
    w = dln.cometric(p, complex_normal(generator, m, n))
    there, moved = dln.parallel_transport(p, v, w)
    assert_close(dln.inner(there, moved, moved), dln.inner(p, w, w), ops=1e9)


def test_aligned_points_move_on_straight_lines(generator):
    u, v = (torch.linalg.qr(complex_normal(generator, 3, 3))[0] for _ in "uv")
    one, two = torch.tensor([2.0, 1.0, 0.5], dtype=F64), torch.tensor([2.5, 0.8, 0.6], dtype=F64)
    for depth in (3, math.inf):
        p, q = (dln.EndToEnd.of(u * s @ v.mH, depth) for s in (one, two))
        root, size = (torch.log, 1.0) if math.isinf(depth) else (lambda s: s ** (1 / 3), 3**0.5)
        assert_close(dln.distance(p, q), size * (root(two) - root(one)).norm(), ops=1e7)


def test_curvature_of_real_planes(generator):
    """Real matrices are totally geodesic among the complex ones."""
    x, z, w, a = (torch.randn(3, 3, generator=generator, dtype=F64) for _ in range(4))
    p, q = dln.EndToEnd.of(x, 3), dln.EndToEnd.of(x.to(C128), 3)
    turned = [part.to(C128) for part in (z, w, a)]
    one, two = dln.sectional_curvature(p, z, w), dln.sectional_curvature(q, *turned[:2])
    assert abs(one - two) < 1e-8 * (1.0 + abs(one))
    one = dln.riemann_curvature(p, z, w, a, z)
    two = dln.riemann_curvature(q, *turned, turned[0])
    assert abs(one - two) < 1e-8 * (1.0 + abs(one))


def test_derivatives_follow_the_matrix(generator):
    x, v, w = (complex_normal(generator, 2, 2) for _ in range(3))
    v = 0.1 * v

    def end(x):
        return (w.conj() * dln.exponential(dln.EndToEnd.of(x, 3), v).matrix).real.sum()

    (slope,) = torch.autograd.grad(end(y := x.clone().requires_grad_()), y)
    h = 1e-4
    difference = (end(x + h * w) - end(x - h * w)) / (2.0 * h)
    along = (slope.conj() * w).real.sum()
    assert abs(along - difference) < 1e-5 * (1.0 + abs(difference))
