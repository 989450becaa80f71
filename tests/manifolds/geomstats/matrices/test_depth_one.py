"""Depth 1 below full rank: the matrices of rank r as a submanifold with the Frobenius metric.

Against the textbook: with the second fundamental form ``II(Z, W) = P (Z X^+ W + W X^+ Z) Q``, P and
Q the projections beyond column and row space, the acceleration of a geodesic is ``II(V, V)`` and
the curvature is Gauss' equation.
"""

from __future__ import annotations

import geomstats.backend as gs
import pytest
import torch
from geomstats.learning.frechet_mean import FrechetMean
from scipy.integrate import solve_ivp

import dln_geometry as dln
from dln_geometry.testing import assert_close, assert_order
from manifolds._geomstats.arrays import as_tensor, to_backend
from manifolds.geomstats_dln import DepthMetric, FixedRankEndToEnd
from tests.manifolds.geomstats.routes import normal

SHAPES = [(4, 3, 2), (4, 4, 3), (3, 5, 2), (3, 2, 1)]

SPECTRA = {
    "apart": (2.0, 1.3, 0.8),
    "equal": (1.1, 1.1, 1.1),
    "near": (1.1 + 1e-9, 1.1, 1.1 - 1e-9),
    "wide": (1.0, 0.1, 0.01),
}


def space_of(shape, depth=1):
    return FixedRankEndToEnd(*shape).equip_with_metric(DepthMetric, depth=depth)


def point_of(shape, spectrum, generator):
    m, n, r = shape
    x = dln.Collapsed.random(
        (m, n), r, 2, spectrum=torch.tensor(spectrum[:r], dtype=torch.float64), generator=generator
    )
    return x.matrix


def beyond(x, r):
    """Return the projections beyond column and row space, and the pseudo-inverse."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    u, s, vh = u[:, :r], s[:r], vh[:r]
    eye = torch.eye(max(x.shape), dtype=x.dtype)
    left, right = eye[: len(x), : len(x)] - u @ u.mT, eye[: x.shape[1], : x.shape[1]] - vh.mT @ vh
    return left, right, (vh.mT / s) @ u.mT


def second_form(x, r, z, w):
    left, right, inverse = beyond(x, r)
    return left @ (z @ inverse @ w + w @ inverse @ z) @ right


def tangent(x, r, z):
    left, right, _ = beyond(x, r)
    return z - left @ z @ right


def dot(a, b):
    return (a * b).sum((-2, -1))


def tangent_basis(x, r):
    m, n = x.shape
    entries = torch.eye(m * n, dtype=x.dtype).unflatten(-1, (m, n))
    values, vectors = torch.linalg.eigh(tangent(x, r, entries).flatten(-2))
    return vectors[:, values > 0.5].mT.unflatten(-1, (m, n))


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
def test_metric_and_connection_are_those_of_the_submanifold(shape, name, generator):
    r, space = shape[-1], space_of(shape)
    x = point_of(shape, SPECTRA[name], generator)
    z, w, g = (normal(generator, *x.shape) for _ in range(3))
    z, w = tangent(x, r, z), tangent(x, r, w)
    a, b, base = (to_backend(v) for v in (z, w, x))
    metric, condition = space.metric, SPECTRA[name][0] / SPECTRA[name][r - 1]
    assert metric.depth == 1.0
    assert_close(as_tensor(metric.inner_product(a, b, base)), dot(z, w), scale=1.0)
    assert_close(as_tensor(metric.sharp(to_backend(g), base)), tangent(x, r, g))
    assert_close(as_tensor(metric.flat(a, base)), z)
    state = gs.stack([base, a])
    velocity, acceleration = as_tensor(metric.geodesic_equation(state))
    assert_close(velocity, z)
    bend = second_form(x, r, z, z)
    assert_close(acceleration, bend, condition=condition)
    # Christoffel symbols in all entries.
    gamma = as_tensor(metric.christoffels(base))
    both = torch.einsum("kij,i,j->k", gamma, z.flatten(), w.flatten()).unflatten(-1, x.shape)
    assert_close(both, -second_form(x, r, z, w), scale=bend.norm(), condition=condition)


@pytest.mark.parametrize(
    ("shape", "name"),
    [((4, 3, 2), "equal"), ((4, 3, 2), "near"), ((3, 5, 2), "wide"), ((4, 4, 3), "apart")],
)
def test_curvature_is_gauss_equation(shape, name, generator):
    r, metric = shape[-1], space_of(shape).metric
    x = point_of(shape, SPECTRA[name], generator)
    a, b, c, d = (tangent(x, r, normal(generator, *x.shape)) for _ in range(4))

    def form(z, w):
        return second_form(x, r, z, w)

    base, one, two, three = (to_backend(v) for v in (x, a, b, c))
    gauss = dot(form(b, c), form(a, d)) - dot(form(a, c), form(b, d))
    # The size of the terms, every one of which may cancel.
    largest = float(sum(form(v, v).norm() for v in (a, b, c, d)) ** 2)
    largest += float(dot(form(a, b), form(a, b)))
    found = dot(as_tensor(metric.curvature(one, two, three, base)), d)
    assert_close(found, gauss, scale=largest)
    plane = dot(form(a, a), form(b, b)) - dot(form(a, b), form(a, b))
    area = dot(a, a) * dot(b, b) - dot(a, b) ** 2
    found = as_tensor(metric.sectional_curvature(one, two, base))
    assert_close(found, plane / area, scale=largest / area)

    basis = tangent_basis(x, r)
    assert len(basis) == r * (sum(x.shape) - r)
    every = form(basis.unsqueeze(1), basis)
    mean = every.diagonal().sum(-1)
    # Ric_ij = <II_ij, sum_k II_kk> - sum_k <II_ik, II_jk>.
    ricci = dot(every, mean) - torch.einsum("ikmn,jkmn->ij", every, every)
    flat = basis.flatten(1)
    size = every.square().sum()
    assert_close(as_tensor(metric.ricci_tensor(base)), flat.mT @ ricci @ flat, scale=size)
    assert_close(as_tensor(metric.scalar_curvature(base)), ricci.trace(), scale=size)


@pytest.mark.parametrize(
    ("shape", "name"),
    [((4, 3, 2), "equal"), ((4, 4, 3), "apart"), ((3, 5, 2), "apart"), ((3, 2, 1), "apart")],
)
def test_geodesic_and_transport_are_those_of_the_submanifold(shape, name, generator):
    """By scipy's DOP853 on ``X'' = II(X', X')``, ``W' = II(X', W)``."""
    r, metric = shape[-1], space_of(shape).metric
    x = point_of(shape, SPECTRA[name], generator)
    z, w = (0.2 * tangent(x, r, normal(generator, *x.shape)) for _ in range(2))

    def field(_, y):
        position, velocity, carried = torch.from_numpy(y).unflatten(-1, (3, *x.shape))
        velocity, carried = (tangent(position, r, v) for v in (velocity, carried))
        bends = (second_form(position, r, velocity, v) for v in (velocity, carried))
        return torch.stack((velocity, *bends)).flatten().numpy()

    start = torch.stack((x, z, w)).flatten().numpy()
    path = solve_ivp(field, (0.0, 1.0), start, method="DOP853", rtol=1e-12, atol=1e-13)
    end, _, carried = torch.from_numpy(path.y[:, -1]).unflatten(-1, (3, *x.shape))
    a, b, base = (to_backend(v) for v in (z, w, x))
    # The reference is good to its own tolerance.
    assert float((as_tensor(metric.exp(a, base)) - end).abs().max()) < 1e-11
    moved = as_tensor(metric.parallel_transport(b, base, direction=a))
    assert float((moved - carried).abs().max()) < 1e-11
    back = as_tensor(metric.log(to_backend(end), base))
    assert float((back - z).abs().max()) < 1e-10
    assert float(metric.dist(base, to_backend(end))) == pytest.approx(float(z.norm()), rel=1e-10)


@pytest.mark.parametrize("depth", [1, 2.7])
def test_mean_of_two_points_and_their_middle_is_the_middle(depth, generator):
    """By geomstats' own descent: near its end, vectors are as small as roundings of others."""
    space = space_of((4, 3, 2), depth)
    x = point_of((4, 3, 2), SPECTRA["apart"], generator)
    a, z = to_backend(x), to_backend(0.2 * tangent(x, 2, normal(generator, 4, 3)))
    b, middle = space.metric.exp(z, a), space.metric.exp(0.5 * z, a)
    mean = FrechetMean(space).set(epsilon=1e-18).fit(gs.stack([a, b, middle])).estimate_
    # The descent stops at a squared step of dim * epsilon.
    assert float((as_tensor(mean) - as_tensor(middle)).abs().max()) < 1e-8


def test_depth_one_is_the_limit_of_depths_above(generator):
    shape = (4, 3, 2)
    x, goal = (point_of(shape, SPECTRA["apart"], generator) for _ in range(2))
    goal = x + 0.1 * tangent(x, 2, goal)
    gaps = [0.05 * 0.5**k for k in range(4)]
    space = FixedRankEndToEnd(*shape)

    def values(depth):
        space.equip_with_metric(DepthMetric, depth=depth, normalized=True)
        points = to_backend(x), space.projection(to_backend(goal))
        parts = space.metric.dist(*points), space.metric.scalar_curvature(points[0])
        return torch.stack([as_tensor(part) for part in parts])

    limit = values(1)
    errors = torch.stack([(values(1.0 + h) - limit).abs() for h in gaps])
    for quantity in errors.unbind(-1):
        assert_order(gaps, quantity, 1.0)


def test_single_precision_is_single_precision(generator):
    shape = (5, 4, 2)
    metric = space_of(shape).metric
    x = point_of(shape, SPECTRA["apart"], generator)
    z, w = (0.2 * tangent(x, 2, normal(generator, *x.shape)) for _ in range(2))
    rough = [to_backend(v.float()) for v in (x, z, w)]
    x, z, w = (as_tensor(v).double() for v in rough)
    for value, exact in (
        (metric.exp(rough[1], rough[0]), metric.exp(to_backend(z), to_backend(x))),
        (metric.sharp(rough[1], rough[0]), z),
        (metric.scalar_curvature(rough[0]), metric.scalar_curvature(to_backend(x))),
        (metric.geodesic_equation(gs.stack(rough[:2]))[1], second_form(x, 2, z, z)),
    ):
        found = as_tensor(value)
        assert found.dtype == torch.float32
        assert_close(found.double(), as_tensor(exact), ops=1000 * 2.0**29)
