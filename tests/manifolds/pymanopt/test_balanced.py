from __future__ import annotations

from itertools import pairwise

import numpy as np
import pymanopt
import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close, assert_order
from manifolds._pymanopt import BalancedManifold, EndToEndManifold, FactorVector
from tests.manifolds.pymanopt.routes import STEPS, a_network, closed, each_case, listed

# The default tolerance of geodesics, eps^{3/4}, in units of eps.
RTOL_OPS = 1e4


@each_case
def test_dimension_is_the_rank_of_a_parametrisation(widths, rank, generator):
    """Frames by Cayley transforms of antisymmetric matrices, and singular values."""
    sizes = [d * (d - 1) // 2 for d in widths]

    def layers(theta):
        parts = theta.split([*sizes, rank])
        frames = []
        for d, part in zip(widths, parts, strict=False):
            rows, columns = torch.tril_indices(d, d, -1)
            a = torch.zeros(d, d, dtype=theta.dtype).index_put((rows, columns), part)
            a, eye = a - a.mT, torch.eye(d, dtype=theta.dtype)
            frames.append(torch.linalg.solve(eye + a, eye - a)[:, :rank])
        lam = parts[-1]
        return torch.cat([((q * lam) @ p.mT).flatten() for p, q in pairwise(frames)])

    theta = torch.randn(sum(sizes) + rank, generator=generator, dtype=torch.float64)
    jacobian = torch.func.jacrev(layers)(theta)
    assert BalancedManifold(widths, rank).dim == int(torch.linalg.matrix_rank(jacobian, rtol=1e-9))


@each_case
@pytest.mark.parametrize("spectrum", [None, 0.8])
def test_projection_is_orthogonal_with_the_dimension_as_trace(widths, rank, spectrum, rng):
    manifold = BalancedManifold(widths, rank, rng=rng)
    x = a_network(manifold, rng, spectrum)
    shapes = [w.shape for w in listed(x)]

    def noise():
        parts = [rng.standard_normal(shape) for shape in shapes]
        return parts[0] if len(parts) == 1 else parts

    a, b = noise(), noise()
    pa, pb = manifold.projection(x, a), manifold.projection(x, b)
    for got, expected in zip(listed(manifold.projection(x, pa)), listed(pa), strict=True):
        assert_close(got, expected, scale=3.0)
    left, right = manifold.inner_product(x, pa, b), manifold.inner_product(x, a, pb)
    assert_close(left, right, scale=30.0)
    trace = 0.0
    for p, shape in enumerate(shapes):
        for entry in np.eye(shape[0] * shape[1]).reshape(-1, *shape):
            unit = [entry if q == p else np.zeros(s) for q, s in enumerate(shapes)]
            moved = manifold.projection(x, unit[0] if len(unit) == 1 else unit)
            trace += (listed(moved)[p] * entry).sum()
    assert_close(trace, float(manifold.dim), ops=1000)


@each_case
@pytest.mark.parametrize("spectrum", [None, 0.8])
def test_product_is_a_riemannian_submersion(widths, rank, spectrum, rng):
    """A cost of the product alone: everything upstairs is the lift of what is downstairs."""
    layers = len(widths) - 1
    up = BalancedManifold(widths, rank, rng=rng)
    down = EndToEndManifold(widths[-1], widths[0], rank, layers, rng=rng)
    x = a_network(up, rng, spectrum)
    factors = [torch.from_numpy(w) for w in listed(x)]
    y = down.point(up.product(x))
    a = torch.from_numpy(rng.standard_normal((widths[-1], widths[0])))

    def of_product(product):
        return torch.sin(product * a).sum() + (product @ a.mT).trace() ** 2

    @pymanopt.function.pytorch(up)
    def cost_up(*ws):
        return of_product(dln.end_to_end(ws))

    @pymanopt.function.pytorch(down)
    def cost_down(u, s, vt):
        return of_product((u * s) @ vt)

    above, below = pymanopt.Problem(up, cost_up), pymanopt.Problem(down, cost_down)
    gradient = above.riemannian_gradient(x)
    g = [torch.from_numpy(w) for w in listed(gradient)]
    for part, other in zip(dln.horizontal(factors, g), g, strict=True):
        assert_close(part, other, scale=10.0)
    pushed = dln.pushforward(factors, g)
    assert_close(pushed, down.tangent_matrix(y, below.riemannian_gradient(y)), ops=1000)
    # Second derivatives agree on horizontal vectors, by two formulas that share nothing.
    z = down.random_tangent_vector(y)
    covector = dln.metric(_in_library(down, y), torch.from_numpy(down.tangent_matrix(y, z)))
    lifted = up.projection(x, closed([w.numpy() for w in dln.lift(factors, covector)]))
    assert_close(up.norm(x, lifted), down.norm(y, z))
    curvature = up.inner_product(x, lifted, above.riemannian_hessian(x, lifted))
    assert_close(
        curvature, down.inner_product(y, z, below.riemannian_hessian(y, z)), ops=1000, scale=30.0
    )
    # And a step of the layers is the product step of the matrix.
    moved = up.product(up.retraction(x, 0.1 * lifted))
    if layers > 1:
        assert_close(moved, down.matrix(down.retraction(y, 0.1 * z)), ops=1000)


def _in_library(manifold, point):
    x = torch.from_numpy(manifold.matrix(point))
    depth = np.nextafter(1.0, 2.0) if manifold.depth == 1 else manifold.depth
    return dln.EndToEnd.of(x, depth, rank=manifold.rank)


@each_case
def test_transport_never_lengthens(widths, rank, rng):
    manifold = BalancedManifold(widths, rank, rng=rng)
    x = manifold.random_point()
    z, w = (manifold.random_tangent_vector(x) for _ in range(2))
    y = manifold.retraction(x, 0.3 * w)
    moved = manifold.transport(x, y, z)
    assert 0.3 < manifold.norm(y, moved) <= 1 + 1e-12
    residual = manifold.to_tangent_space(y, moved) - moved
    assert_close(manifold.norm(y, residual), 0.0, scale=1.0)
    in_place = manifold.transport(x, x, z) - z
    assert_close(manifold.norm(x, in_place), 0.0, scale=1.0)


@each_case
def test_chords_are_logarithms_to_second_order(widths, rank, rng):
    manifold = BalancedManifold(widths, rank, rng=rng, exact_log=False)
    x = manifold.random_point()
    z = manifold.random_tangent_vector(x)
    gaps, lengths = [], []
    for h in STEPS:
        y = manifold.retraction(x, h * z)
        gaps.append(manifold.norm(x, manifold.log(x, y) - h * z))
        lengths.append(abs(manifold.dist(x, y) - h))
        assert_close(manifold.dist(x, y), manifold.dist(y, x))
        middle = manifold.pair_mean(x, y)
        assert abs(manifold.dist(x, middle) - manifold.dist(middle, y)) < 1e-2 * h
    if max(gaps) > 1e-12:
        assert_order(STEPS, gaps, 3, 0.2, at_least=True)
        assert_order(STEPS, lengths, 3, 0.2, at_least=True)


@each_case
@pytest.mark.parametrize("spectrum", [None, 0.8])
def test_exponential_map_and_logarithm_are_inverse(widths, rank, spectrum, rng):
    manifold = BalancedManifold(widths, rank, rng=rng)
    x = a_network(manifold, rng, spectrum)
    z = 0.5 * manifold.random_tangent_vector(x)
    y = manifold.exp(x, z)
    assert type(y) is type(manifold.random_point())
    found = manifold.log(x, y)
    assert type(found) is type(z)
    assert_close(manifold.norm(x, found - z), 0.0, ops=RTOL_OPS, scale=1.0)
    back = listed(manifold.exp(x, found))
    assert_same(back, listed(y))
    assert_close(manifold.dist(x, y), 0.5, ops=RTOL_OPS)
    assert_close(manifold.dist(y, x), 0.5, ops=RTOL_OPS)
    middle = manifold.pair_mean(x, y)
    assert_same(listed(middle), listed(manifold.exp(x, 0.5 * z)))
    assert_close(manifold.dist(middle, y), 0.25, ops=RTOL_OPS)
    assert manifold.exp(x, 0.0 * z) is x
    assert_close(manifold.dist(x, x), 0.0, scale=1.0)


def assert_same(parts, others):
    for a, b in zip(parts, others, strict=True):
        assert_close(a, b, ops=RTOL_OPS, scale=2.0)


@each_case
def test_horizontal_logarithms_are_those_below(widths, rank, rng):
    """From the nearest point of the fibre: the end of a horizontal geodesic."""
    up = BalancedManifold(widths, rank, rng=rng)
    down = EndToEndManifold(widths[-1], widths[0], rank, len(widths) - 1, rng=rng)
    x = up.random_point()
    factors = [torch.from_numpy(w) for w in listed(x)]
    move = [torch.from_numpy(w) for w in listed(up.random_tangent_vector(x))]
    across = dln.horizontal(factors, move)
    z = up.projection(x, closed([0.4 * w.numpy() for w in across]))
    y = up.exp(x, z)
    a, b = down.point(up.product(x)), down.point(up.product(y))
    assert_close(up.dist(x, y), down.dist(a, b), ops=RTOL_OPS, scale=1.0)
    pushed = dln.pushforward(factors, [torch.from_numpy(w) for w in listed(up.log(x, y))])
    assert_close(pushed, down.tangent_matrix(a, down.log(a, b)), ops=RTOL_OPS, scale=2.0)


@pytest.mark.parametrize(("widths", "rank"), [((3, 4, 2), 2), ((4, 3), 2), ((3, 2, 3), 1)])
def test_geodesics_in_single_precision(widths, rank, rng):
    manifold = BalancedManifold(widths, rank, rng=rng)
    x = in_single(manifold.random_point())
    z = in_single(0.5 * manifold.random_tangent_vector(x))
    y = manifold.exp(x, z)
    assert {w.dtype for w in listed(y)} == {np.dtype(np.float32)}
    found = manifold.log(x, y)
    for a, b in zip(listed(found), listed(z), strict=True):
        assert a.dtype == np.float32
        assert_close(a, b, ops=1000, scale=1.0)


def in_single(x):
    parts = [w.astype(np.float32) for w in listed(x)]
    if len(parts) == 1:
        return parts[0]
    return FactorVector(parts) if isinstance(x, list) else tuple(parts)


def test_the_last_logarithm_is_kept_with_the_point(rng):
    manifold = BalancedManifold((3, 4, 2), 2, rng=rng)
    x, y = manifold.random_point(), manifold.random_point()
    y = manifold.exp(x, 0.3 * manifold.random_tangent_vector(x))
    z = manifold.log(x, y)
    kept = y.last_log
    assert all(np.array_equal(a, b) for a, b in zip(manifold.log(x, y), z, strict=True))
    assert y.last_log is kept
    other = manifold.exp(x, 0.1 * z)
    assert_close(manifold.norm(other, manifold.log(other, y)), 0.27, ops=RTOL_OPS)
    quick = BalancedManifold((3, 4, 2), 2, rng=rng, exact_log=False)
    w = quick.retraction(x, 0.3 * z)
    assert quick.norm(x, quick.log(x, w)) < quick.dist(x, w) < manifold.dist(x, w)


def test_what_no_geodesic_joins_or_ends(rng):
    manifold = BalancedManifold((2, 3, 2), 2, rng=rng)
    x = manifold.random_point()
    flipped = tuple(w.copy() for w in x)
    flipped[0][:, 0] *= -1
    with pytest.raises(ValueError, match="must lie on one component"):
        manifold.log(x, flipped)
    with pytest.raises(ArithmeticError, match="must keep its rank"):
        manifold.exp(x, FactorVector([-2 * w for w in x]))
    # Random points are joined, at least as far as determinants can tell.
    signs = {np.sign(np.linalg.det(manifold.product(manifold.random_point()))) for _ in range(20)}
    assert len(signs) == 1


def test_points_and_vectors_of_one_layer_are_arrays(rng):
    manifold = BalancedManifold((4, 3), 2, rng=rng)
    x = manifold.random_point()
    assert isinstance(x, np.ndarray)
    assert isinstance(manifold.random_tangent_vector(x), np.ndarray)
    assert manifold.point_layout == 1
    two = BalancedManifold((4, 3, 2), rng=rng)
    z = two.random_tangent_vector(two.random_point())
    assert isinstance(2 * z - z / 3, FactorVector)
    assert two.rank == 2
    assert two.typical_dist > 1


def test_random_points_leave_the_global_generators_alone():
    state, seed = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    x, y = (BalancedManifold((3, 4, 3), 2, rng=3).random_point() for _ in range(2))
    for a, b in zip(x, y, strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), seed)


def test_what_does_not_fit_is_refused(rng):
    manifold = BalancedManifold((3, 4, 2), 2, rng=rng)
    x = manifold.random_point()
    z = manifold.random_tangent_vector(x)
    for bad in (((3, 0), 1), ((3, 4, 2), 3), ((3, 4, 2), 0)):
        with pytest.raises(ValueError, match="must"):
            BalancedManifold(*bad)
    with pytest.raises(TypeError, match="must"):
        BalancedManifold("34")
    with pytest.raises(ValueError, match="the layers must have the shapes"):
        manifold.norm(x, z[:1])
    with pytest.raises(ValueError, match="the layers must have the shapes"):
        manifold.projection(x, [w.T for w in z])
    with pytest.raises(ValueError, match="factors must be balanced"):
        manifold.projection([2 * x[0], x[1]], z)
    thinner = BalancedManifold((3, 4, 2), 1, rng=rng).random_point()
    with pytest.raises(ValueError, match="point must have rank 2, got rank 1"):
        manifold.projection(thinner, z)


def test_the_logarithm_that_is_kept_belongs_to_its_points(rng):
    manifold = BalancedManifold((2, 3, 2), 2, rng=rng)
    x = manifold.random_point()
    z = manifold.random_tangent_vector(x) * 0.3
    y = manifold.exp(x, z)
    manifold.log(x, y)[0][:] = 0
    assert manifold.dist(x, y) == pytest.approx(0.3)
    # Arrays of the caller's own may change.
    mine = [w.copy() for w in x]
    assert manifold.dist(mine, y) == pytest.approx(0.3)
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    mine[0][:] = mine[0] @ turn
    assert manifold.dist(mine, y) == pytest.approx(manifold.dist([w.copy() for w in mine], y))
    assert manifold.dist(mine, y) > 0.5


def test_layers_whose_product_overflows_are_refused_in_words():
    manifold = BalancedManifold((3, 4, 2), rng=1)
    point = [1e300 * np.asarray(w) for w in manifold.random_point()]
    z = manifold.random_tangent_vector(point)
    with pytest.raises(ValueError, match="product is in the range of torch.float64, got layers"):
        manifold.retraction(point, z)
