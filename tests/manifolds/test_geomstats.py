"""What geomstats' own test cases do not ask: values, dimensions, doors. Runs on both backends."""

from __future__ import annotations

import math
from itertools import pairwise

import geomstats.backend as gs
import numpy as np
import pytest
import torch
from geomstats.learning.frechet_mean import FrechetMean

import dln_geometry as dln
from dln_geometry.geometry.geodesics import GeodesicError
from dln_geometry.testing import assert_close
from manifolds._geomstats import (
    BalancedMetric,
    BalancedNetworks,
    BalancedQuotientMetric,
    DepthMetric,
    FixedRankEndToEnd,
    FullRankEndToEnd,
    HiddenRotationAction,
    HiddenRotations,
    LayeredNetworks,
    as_tensor,
    to_backend,
    to_padded,
)

NETWORKS = [
    ((2, 2, 2), 2),
    ((3, 3, 3, 3), 3),
    ((2, 4, 3), 2),
    ((3, 4, 2, 5), 2),
    ((3, 3, 3), 2),
    ((3, 4, 3, 5), 2),
    ((2, 1, 3), 1),
    ((2, 3), 2),
    ((3, 4), 2),
]


def array(x):
    """Return a tensor as the backend's array."""
    return to_backend(x)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def network(widths, rank, generator):
    """Return the factors of a balanced network with two equal singular values."""
    spectrum = torch.tensor([1.5, 1.5, 0.8], dtype=torch.float64)[:rank]
    return dln.random_balanced(widths, rank=rank, spectrum=spectrum, generator=generator)


def equipped(widths, rank=None, positive_det=False):
    space = BalancedNetworks(widths, rank, positive_det)
    space.equip_with_group_action(HiddenRotationAction(widths))
    space.equip_with_quotient()
    return space


def rank_of(jacobian):
    s = torch.linalg.svdvals(jacobian)
    return int((s > 1e-9 * s[0]).sum())


@pytest.mark.parametrize(("widths", "rank"), NETWORKS)
def test_dimension_of_networks_is_the_rank_of_a_jacobian(widths, rank, generator):
    """Of the frames and singular values that parametrise them, by autodiff."""
    space = BalancedNetworks(widths, rank)
    frames = [normal(generator, d, rank) for d in widths]
    lam = torch.tensor([1.3, 0.9, 0.6], dtype=torch.float64)[:rank]

    def embed(*parameters):
        *free, lam = parameters
        # The Gram-Schmidt frames of free matrices: every frame, and every move of one.
        q = [torch.linalg.qr(a).Q for a in free]
        layers = [(after * lam) @ before.mT for before, after in pairwise(q)]
        return to_padded(layers, max(widths)).flatten()

    parts = torch.autograd.functional.jacobian(embed, (*frames, lam))
    assert space.dim == rank_of(torch.cat([p.flatten(1) for p in parts], 1))


@pytest.mark.parametrize(("widths", "rank"), NETWORKS)
def test_kernel_of_the_tangent_submersion_is_the_tangent_space(widths, rank, generator):
    space = BalancedNetworks(widths, rank)
    point = space.stack([array(w) for w in network(widths, rank, generator)])
    basis = space.embedding_space.basis
    differential = as_tensor(space.tangent_submersion(basis, point)).flatten(1)
    constraints = rank_of(differential) if float(differential.abs().max()) > 0 else 0
    assert len(basis) - constraints == space.dim
    assert rank_of(as_tensor(space.to_tangent(basis, point)).flatten(1)) == space.dim


@pytest.mark.parametrize(("widths", "rank"), [((3, 4, 3, 5), 2), ((3, 3, 3), 2), ((2, 3), 1)])
def test_tangent_submersion_is_the_differential_away_from_the_variety_too(widths, rank, generator):
    space = BalancedNetworks(widths, rank)
    basis = as_tensor(space.embedding_space.basis)
    x, v = (torch.einsum("k,k...->...", normal(generator, len(basis)), basis) for _ in range(2))
    h = 1e-5
    ahead, behind = (as_tensor(space.submersion(array(x + s * v))) for s in (h, -h))
    exact = as_tensor(space.tangent_submersion(array(v), array(x)))
    # Error of the quotient h^2 / 6 times third derivatives.
    assert float((exact - (ahead - behind) / (2 * h)).abs().max()) < 1e-7 * float(exact.abs().max())


@pytest.mark.parametrize(("m", "n", "rank"), [(3, 3, 2), (2, 4, 1), (4, 3, 2)])
def test_dimension_at_fixed_rank_is_the_rank_of_a_jacobian(m, n, rank, generator):
    left, right = normal(generator, m, rank), normal(generator, rank, n)
    parts = torch.autograd.functional.jacobian(lambda a, b: (a @ b).flatten(), (left, right))
    space = FixedRankEndToEnd(m, n, rank)
    assert space.dim == rank_of(torch.cat([p.flatten(1) for p in parts], 1))


@pytest.mark.parametrize("depth", [1, 2, 2.7, 3, math.inf])
def test_metric_is_that_of_the_library(depth, generator):
    space = FullRankEndToEnd(3, 3, positive_det=True).equip_with_metric(DepthMetric, depth=depth)
    x = torch.eye(3, dtype=torch.float64) + 0.2 * normal(generator, 4, 3, 3)
    p = dln.EndToEnd.of(x, depth)
    z, w = 0.1 * normal(generator, 4, 3, 3), normal(generator, 4, 3, 3)
    metric = space.metric
    assert_close(as_tensor(metric.inner_product(array(z), array(w), array(x))), dln.inner(p, z, w))
    assert_close(as_tensor(metric.sharp(array(z), array(x))), dln.cometric(p, z))
    assert_close(as_tensor(metric.flat(array(z), array(x))), dln.metric(p, z))
    energy = metric.hamiltonian((array(x), array(z)))
    assert_close(as_tensor(energy), 0.5 * (z * dln.cometric(p, z)).sum((-2, -1)))


@pytest.mark.parametrize(("widths", "rank"), NETWORKS)
def test_bundle_is_that_of_the_library(widths, rank, generator):
    space = equipped(widths, rank)
    bundle = space.fiber_bundle
    layers = network(widths, rank, generator)
    v = [normal(generator, *w.shape) for w in layers]
    point, vector = (space.stack([array(a) for a in part]) for part in (layers, v))
    for ours, theirs in (
        (bundle.horizontal_projection, dln.horizontal),
        (bundle.vertical_projection, dln.vertical),
        (space.to_tangent, dln.tangent),
    ):
        expected = to_padded(theirs(layers, v), space.shape[-1])
        assert_close(as_tensor(ours(vector, point)), expected, scale=10)
    assert_close(as_tensor(bundle.riemannian_submersion(point)), dln.end_to_end(layers))
    across = dln.horizontal(layers, v)
    below = array(dln.pushforward(layers, across))
    lifted = as_tensor(bundle.horizontal_lift(below, fiber_point=point))
    assert_close(lifted, to_padded(across, space.shape[-1]), ops=1000)
    for part, back in zip(space.layers(point), layers, strict=True):
        assert_close(as_tensor(part), back)


@pytest.mark.parametrize(("widths", "rank"), NETWORKS)
def test_action_is_the_gauge_action_and_an_isometry_along_the_fibres(widths, rank, generator):
    space = equipped(widths, rank)
    layers = network(widths, rank, generator)
    point = space.stack([array(w) for w in layers])
    g = as_tensor(space.group_action.group.random_point())
    gauges = [g[p, :d, :d] for p, d in enumerate(widths[1:-1])]
    moved = space.group_action(array(g), point)
    expected = to_padded(dln.gauge_action(layers, gauges), space.shape[-1])
    assert_close(as_tensor(moved), expected, ops=1000)
    assert bool(space.belongs(moved, atol=1e-9))
    below = space.fiber_bundle.riemannian_submersion
    assert_close(as_tensor(below(moved)), as_tensor(below(point)), ops=1000)
    vector = space.to_tangent(space.embedding_space.basis[-1], point)
    turned = space.group_action(array(g), vector)
    assert bool(space.is_tangent(turned, moved, atol=1e-9))
    lengths = space.metric.squared_norm(vector), space.metric.squared_norm(turned)
    assert_close(as_tensor(lengths[0]), as_tensor(lengths[1]), ops=1000, scale=1)


@pytest.mark.parametrize(("widths", "rank"), [((2, 2, 2, 2), 2), ((3, 4, 2), 1)])
def test_align_reaches_the_orbit_at_the_distance_of_the_base(widths, rank, generator):
    space = equipped(widths, rank, positive_det=rank == widths[0])
    start = network(widths, rank, generator)
    near = [w + 0.1 * normal(generator, *w.shape) for w in start]
    base_point, point = space.stack([array(w) for w in start]), None
    point = space.projection(space.stack([array(w) for w in near]))
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


def test_distance_along_shared_singular_vectors_is_flat():
    space = FullRankEndToEnd(2, 2, positive_det=True).equip_with_metric(DepthMetric, depth=3)
    a, b = gs.array([[8.0, 0.0], [0.0, 1.0]]), gs.array([[27.0, 0.0], [0.0, 8.0]])
    assert float(space.metric.dist(a, b)) == pytest.approx(math.sqrt(3 * 2))
    middle = space.metric.geodesic(a, end_point=b)(0.5)[0]
    assert_close(as_tensor(middle), [[2.5**3, 0.0], [0.0, 1.5**3]], ops=1000)


@pytest.mark.parametrize("depth", [2.7, math.inf])
def test_mean_of_two_points_and_their_middle_is_the_middle(depth):
    """By geomstats' own descent, which starts at one of the points."""
    space = FullRankEndToEnd(2, 2, positive_det=True).equip_with_metric(DepthMetric, depth=depth)
    a, b = gs.array([[1.4, 0.2], [-0.1, 0.7]]), gs.array([[0.9, -0.3], [0.3, 1.1]])
    middle = space.metric.geodesic(a, end_point=b)(0.5)[0]
    mean = FrechetMean(space).set(epsilon=1e-18)
    found = as_tensor(mean.fit(gs.stack([a, b, middle])).estimate_)
    # The descent stops at a squared step of dim * epsilon.
    assert float((found - as_tensor(middle)).abs().max()) < 1e-8


@pytest.mark.parametrize(("widths", "rank"), [((3, 4, 2), 1), ((3, 3), 2)])
def test_mean_in_the_quotient_below_full_rank(widths, rank, generator):
    """Near its end the descent lifts vectors as small as roundings of others."""
    space = equipped(widths, rank)
    a = array(dln.end_to_end(network(widths, rank, generator)))
    z = space.quotient.to_tangent(array(0.1 * normal(generator, *space.quotient.shape)), a)
    metric = space.quotient.metric
    b, middle = metric.exp(z, a), metric.exp(0.5 * z, a)
    mean = FrechetMean(space.quotient).set(epsilon=1e-18).fit(gs.stack([a, b, middle]))
    assert float((as_tensor(mean.estimate_) - as_tensor(middle)).abs().max()) < 1e-8


def test_quotient_is_the_space_of_end_to_end_matrices():
    space = equipped((3, 4, 2))
    assert isinstance(space.quotient, FullRankEndToEnd)
    assert space.quotient.shape == (2, 3)
    assert isinstance(space.quotient.metric, BalancedQuotientMetric)
    assert isinstance(space.metric, BalancedMetric)
    assert space.base().metric.depth == 2
    again = space.new(equip=False)
    assert (again.widths, again.rank, hasattr(again, "metric")) == ((3, 4, 2), 2, False)


def test_arrays_keep_their_backend_and_dtype():
    space = FullRankEndToEnd(3, 2).equip_with_metric(DepthMetric, depth=3)
    x = as_tensor(space.random_point()).float()
    result = space.metric.sharp(array(x), array(x))
    assert type(result) is type(gs.zeros(1))
    assert as_tensor(result).dtype == torch.float32
    whole = space.metric.sharp(gs.array([[1, 0], [0, 2], [1, 1]]), [[2, 0], [0, 1], [0, 0]])
    assert as_tensor(whole).dtype == as_tensor(gs.zeros(1)).dtype


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FullRankEndToEnd(3, 2, positive_det=True), "positive_det must be False"),
        (lambda: FixedRankEndToEnd(3, 2, 3), "rank must lie between 1 and 2"),
        (lambda: BalancedNetworks((3, 3, 3), 2, True), "positive_det must be False below"),
        (lambda: BalancedNetworks((3, 2, 3), 3), "rank must lie between 1 and 2"),
        (lambda: LayeredNetworks((3,)), "widths must hold at least two"),
        (lambda: HiddenRotations((3, 0, 2)), "widths must be positive"),
        (lambda: DepthMetric(FullRankEndToEnd(2, 2), depth=0.5), "depth must be a real number"),
        (
            lambda: DepthMetric(FullRankEndToEnd(3, 2), depth=math.inf),
            r"depth must be finite .* FixedSpacesEndToEnd\(left, right\)",
        ),
        (
            lambda: DepthMetric(FixedRankEndToEnd(3, 3, 2), depth=math.inf),
            r"depth must be finite .* FixedSpacesEndToEnd\(left, right\)",
        ),
        (lambda: LayeredNetworks((2, 3)).stack([gs.ones((2, 3))]), "layers must have the shapes"),
        (lambda: LayeredNetworks((2, 3)).layers(gs.ones((2, 3))), "point must have shape"),
        (
            lambda: BalancedNetworks((2, 2, 2)).projection(gs.zeros((2, 2, 2))),
            "point must have end-to-end matrices of rank 2",
        ),
        (
            lambda: equipped((2, 2, 2)).fiber_bundle.horizontal_lift(gs.ones((2, 2))),
            "base_point or fiber_point must be given",
        ),
        (
            lambda: FullRankEndToEnd(2, 2).metric.parallel_transport(gs.eye(2), gs.eye(2)),
            "direction or end_point must be given",
        ),
        (
            lambda: FixedRankEndToEnd(3, 3, 2).metric.inner_product_derivative_matrix(gs.eye(3)),
            "space must be of full rank",
        ),
    ],
)
def test_doors_say_what_they_want(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_geodesics_end_where_the_rank_falls():
    space = BalancedNetworks((1, 1, 1))
    one, other = (space.stack([gs.array([[s]])] * 2) for s in (1.0, -1.0))
    with pytest.raises(GeodesicError, match="joined to base_point"):
        space.metric.log(other, one)
    with pytest.raises(GeodesicError, match="change their sign"):
        space.metric.exp(other - one, one)
    assert_close(as_tensor(space.metric.exp(0.3 * (other - one), one)), 0.4 * as_tensor(one))


def test_projection_flips_the_smallest_singular_value_alone(generator):
    space = FullRankEndToEnd(3, 3, positive_det=True)
    x = normal(generator, 3, 3)
    x = x if float(torch.det(x)) < 0 else -x
    flipped = as_tensor(space.projection(array(x)))
    assert_close(torch.linalg.svdvals(flipped), torch.linalg.svdvals(x))
    assert float(torch.det(flipped)) > 0
    assert_close(torch.linalg.matrix_norm(flipped - x), 2 * torch.linalg.svdvals(x)[-1], ops=1000)


def test_global_generators_are_the_hosts(generator):
    """Random points follow geomstats' seed; the library's own draws do not touch it."""
    gs.random.seed(3)
    space = BalancedNetworks((2, 3, 2))
    one = as_tensor(space.random_point(2))
    gs.random.seed(3)
    assert_close(as_tensor(space.random_point(2)), one)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    state = torch.get_rng_state()
    space.belongs(array(one), atol=1e-9)
    space.to_tangent(array(one), array(one))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state)
