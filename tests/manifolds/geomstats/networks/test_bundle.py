from __future__ import annotations

import pytest

import dln_geometry as dln
from dln_geometry.testing import assert_close
from manifolds._geomstats.arrays import as_tensor, to_backend, to_padded
from tests.manifolds.geomstats.routes import NETWORKS, balanced_layers, equipped, normal


@pytest.mark.parametrize(("widths", "rank"), NETWORKS)
def test_bundle_is_that_of_the_library(widths, rank, generator):
    space = equipped(widths, rank)
    bundle = space.fiber_bundle
    layers = balanced_layers(widths, rank, generator)
    v = [normal(generator, *w.shape) for w in layers]
    point, vector = (space.stack([to_backend(a) for a in part]) for part in (layers, v))
    for ours, theirs in (
        (bundle.horizontal_projection, dln.horizontal),
        (bundle.vertical_projection, dln.vertical),
        (space.to_tangent, dln.tangent),
    ):
        expected = to_padded(theirs(layers, v), space.shape[-1])
        assert_close(as_tensor(ours(vector, point)), expected, scale=10)
    assert_close(as_tensor(bundle.riemannian_submersion(point)), dln.end_to_end(layers))
    across = dln.horizontal(layers, v)
    below = to_backend(dln.pushforward(layers, across))
    lifted = as_tensor(bundle.horizontal_lift(below, fiber_point=point))
    assert_close(lifted, to_padded(across, space.shape[-1]), ops=1000)
    for part, back in zip(space.layers(point), layers, strict=True):
        assert_close(as_tensor(part), back)


@pytest.mark.parametrize(("widths", "rank"), NETWORKS)
def test_action_is_the_gauge_action_and_an_isometry_along_the_fibres(widths, rank, generator):
    space = equipped(widths, rank)
    layers = balanced_layers(widths, rank, generator)
    point = space.stack([to_backend(w) for w in layers])
    g = as_tensor(space.group_action.group.random_point())
    gauges = [g[p, :d, :d] for p, d in enumerate(widths[1:-1])]
    moved = space.group_action(to_backend(g), point)
    expected = to_padded(dln.gauge_action(layers, gauges), space.shape[-1])
    assert_close(as_tensor(moved), expected, ops=1000)
    assert bool(space.belongs(moved, atol=1e-9))
    below = space.fiber_bundle.riemannian_submersion
    assert_close(as_tensor(below(moved)), as_tensor(below(point)), ops=1000)
    vector = space.to_tangent(space.embedding_space.basis[-1], point)
    turned = space.group_action(to_backend(g), vector)
    assert bool(space.is_tangent(turned, moved, atol=1e-9))
    lengths = space.metric.squared_norm(vector), space.metric.squared_norm(turned)
    assert_close(as_tensor(lengths[0]), as_tensor(lengths[1]), ops=1000, scale=1)


@pytest.mark.parametrize(("widths", "rank"), [((2, 2, 2, 2), 2), ((3, 4, 2), 1)])
def test_align_reaches_the_orbit_at_the_distance_of_the_base(widths, rank, generator):
    space = equipped(widths, rank, positive_det=rank == widths[0])
    start = balanced_layers(widths, rank, generator)
    near = [w + 0.1 * normal(generator, *w.shape) for w in start]
    base_point, point = space.stack([to_backend(w) for w in start]), None
    point = space.projection(space.stack([to_backend(w) for w in near]))
    g = space.group_action.group.random_point()
    far = space.group_action(g, point)
    aligned = space.fiber_bundle.align(far, base_point)
    below = space.fiber_bundle.riemannian_submersion
    assert_close(as_tensor(below(aligned)), as_tensor(below(point)), ops=1000)
    # Whatever the gauge it came in, it is the same point.
    assert (
        float((as_tensor(space.fiber_bundle.align(point, base_point) - aligned)).abs().max()) < 1e-8
    )
    above = float(space.metric.dist(base_point, aligned))
    assert above == pytest.approx(
        float(space.base().metric.dist(below(base_point), below(point))), rel=1e-7
    )
