from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.geodesics import GeodesicError, distance, exponential, logarithm
from dln_geometry.testing import assert_close
from tests.geometry.geodesics.routes import draw, gaussian, tangent

# The default tolerance, eps^{3/4}, in units of eps.
RTOL_OPS = 3e4

POINTS = [
    ((3, 3), (1.9, 0.8, 0.4)),
    ((3, 3), (1.2, 1.2, 0.5)),
    ((4, 2), (0.7, 0.7 - 1e-9)),
    ((5, 7), (1.6, 0.6)),
    ((1, 4), (0.6,)),
]


@pytest.mark.parametrize(("shape", "spectrum"), POINTS, ids=str)
@pytest.mark.parametrize("depth", [1, 1.5, 2, 3, math.inf])
def test_inverts_the_exponential_map_and_gives_a_symmetric_distance(
    shape, spectrum, depth, generator
):
    point = draw(shape, spectrum, depth, generator, normalized=math.isinf(depth) or depth == 3)
    length = 0.3 if depth == 3 else 0.7
    z = tangent(point, generator, length)
    end = exponential(point, z)
    assert_close(logarithm(point, end), z, ops=RTOL_OPS, condition=2)
    if len(spectrum) == end.rank:
        assert_close(distance(point, end), length, ops=RTOL_OPS)
        assert_close(distance(end, point), length, ops=RTOL_OPS)


@pytest.mark.parametrize("depth", [1.5, 3, 8, math.inf])
@pytest.mark.parametrize("shape", [(3, 3), (4, 5)])
def test_radial_distance_is_exact(depth, shape, generator):
    """sqrt(N) |Lam_1 - Lam_0|, through crossing singular values too."""
    point = draw(shape, (1.9, 0.8, 0.4), depth, generator)
    s = torch.tensor([0.7, 1.1, 2.5], dtype=torch.float64)
    end = dln.EndToEnd(point.u.flip(-1), s.flip(-1), point.vh.flip(-2), depth, point.normalized)
    if math.isinf(depth):
        expected = (s.log() - point.s.log()).norm()
    else:
        expected = math.sqrt(depth) * (s ** (1 / depth) - point.s ** (1 / depth)).norm()
    assert_close(distance(point, end), expected)
    flat = distance(point, point)
    assert_close(flat, 0.0, scale=1.0)


def test_depth_one_is_flat(generator):
    p, q = draw((4, 3), (1.2, 0.5), 1, generator), draw((4, 3), (1.0, 0.9), 1, generator)
    assert_close(distance(p, q), (p.matrix - q.matrix).norm())
    assert_close(logarithm(p, q), q.matrix - p.matrix)


@pytest.mark.parametrize("depth", [2, 2.7])
def test_cone_of_vectors(depth, generator):
    """Chords of the unrolled cone with opening angle 2 pi / sqrt N."""
    p, q = draw((1, 3), (0.7,), depth, generator), draw((1, 3), (1.4,), depth, generator)
    x, y = p.matrix.flatten(), q.matrix.flatten()
    theta = torch.acos(x @ y / (x.norm() * y.norm())) / math.sqrt(depth)
    a, b = (math.sqrt(depth) * v.norm() ** (1 / depth) for v in (x, y))
    expected = (a * a + b * b - 2 * a * b * torch.cos(theta)).sqrt()
    assert_close(distance(p, q), expected, ops=RTOL_OPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_and_dtypes(dtype, generator):
    point = draw((3, 3), (1.9, 0.8, 0.4), 3, generator, dtype=dtype, batch=(3,))
    z = tangent(point, generator)
    z = z * (torch.tensor([0.2, 0.6, 0.4]).to(dtype) / dln.inner(point, z, z).sqrt())[:, None, None]
    end = exponential(point, z)
    found = logarithm(point, end)
    assert found.dtype == dtype
    ops = RTOL_OPS if dtype == torch.float64 else 1000.0
    assert_close(found, z, ops=ops, condition=5)
    single = point[1]
    ends = exponential(single, torch.stack([z[1], 0.5 * z[1]]))
    length = dln.inner(single, z[1], z[1]).sqrt()
    assert_close(distance(single, ends) / length, [1.0, 0.5], ops=ops, condition=5)


def test_moderately_distant_pairs(generator):
    """Random pairs of a 3 x 3 problem: the geodesic found reaches its goal."""
    for depth in (2.0, 3.0, math.inf):
        p = draw((3, 3), (1.9, 0.8, 0.5), depth, generator)
        turn = torch.linalg.matrix_exp(0.4 * (g := gaussian((3, 3), generator)) - 0.4 * g.mT)
        q = dln.EndToEnd.of(turn @ p.matrix + 0.1 * gaussian((3, 3), generator), depth)
        z = logarithm(p, q)
        assert_close(exponential(p, z).matrix, q.matrix, ops=RTOL_OPS, condition=4)


def test_the_point_itself_in_a_batch(generator):
    point = draw((3, 3), (1.2, 0.7, 0.4), 3, generator, batch=(2,))
    z = tangent(point, generator, 0.2) * torch.tensor([0.0, 1.0]).double()[:, None, None]
    assert_close(logarithm(point, exponential(point, z)), z, ops=RTOL_OPS, scale=1.0)


@pytest.mark.parametrize("depth", [2.7, 8, math.inf])
def test_wide_spectra_are_found_as_well_as_they_are_known(depth, generator):
    point = draw((3, 3), (1.0, 1e-3, 1e-6), depth, generator)
    z = tangent(point, generator, 0.1 if math.isinf(depth) else 0.3e-6 ** (1 / depth))
    found = logarithm(point, exponential(point, z))
    missed = dln.inner(point, found - z, found - z).sqrt() / dln.inner(point, z, z).sqrt()
    assert_close(missed, 0.0, scale=1.0, ops=1e4, condition=1e6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("depth", [2, 2.7, 3, 8])
def test_multiples_of_equal_singular_values_lie_straight_ahead(depth, dtype, generator):
    """The singular vectors of the two points are free to differ; the frames that matter agree."""
    x = dln.Collapsed.random((10, 8), 4, depth, scale=0.1, generator=generator, dtype=dtype).matrix
    p, q = (dln.EndToEnd.of(c * x, depth, rank=4) for c in (1.0, 1.2))
    # sqrt(N) |Lam_1 - Lam_0|, four times the same value.
    expected = 2.0 * depth**0.5 * (0.12 ** (1 / depth) - 0.1 ** (1 / depth))
    assert_close(distance(p, q), torch.tensor(expected, dtype=dtype), ops=1000, scale=1.0)
    assert_close(exponential(p, logarithm(p, q)).matrix, 1.2 * x, ops=1000)


def test_says_how_far_it_came(generator, monkeypatch):
    p, q = (draw((1, 3), (s,), 3, generator) for s in (0.7, 1.4))
    monkeypatch.setattr("dln_geometry.geometry.geodesics.shooting._MOST_SHOTS", 2)
    with pytest.raises(GeodesicError, match="no geodesic was found from p to q: shooting reached"):
        logarithm(p, q)
    with pytest.raises(GeodesicError, match=r"from p to q \(sample 1 of the batch\): shooting"):
        logarithm(p, exponential(p, torch.stack((0.0 * p.matrix, q.matrix))))


@pytest.mark.parametrize("times", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("depth", [2, 2.7, 8, math.inf])
def test_points_beyond_the_distance_to_rank_loss(depth, times, generator):
    """Where a geodesic exists one is found, and it is no longer."""
    found = 0
    for _ in range(8):
        point = draw((3, 3), (1.2, 0.7, 0.4), depth, generator)
        reach = 1.0 if math.isinf(depth) else math.sqrt(depth) * 0.4 ** (1 / depth)
        z = tangent(point, generator, times * reach)
        try:
            end = exponential(point, z)
        except GeodesicError:
            continue
        found += 1
        if found > 2:
            break
        w = logarithm(point, end)
        there = exponential(point, w)
        assert_close(there.matrix, end.matrix, ops=RTOL_OPS)
        assert_close(there.s.log(), end.s.log(), ops=RTOL_OPS * 100)
        assert float(dln.inner(point, w, w).sqrt()) < 1.02 * times * reach
    assert found


@pytest.mark.parametrize(
    ("shape", "spectrum"), [((1, 4), (0.6,)), ((5, 1), (0.6,)), ((4, 6), (1.0, 0.5))]
)
@pytest.mark.parametrize("depth", [8, 17])
def test_frames_that_turn_by_more_than_a_right_angle(shape, spectrum, depth, generator):
    """Deep metrics turn vectors cheaply; where the sine comes back is not where they arrive."""
    point = draw(shape, spectrum, depth, generator)
    for _ in range(3):
        z = tangent(point, generator, 0.6 * math.sqrt(depth) * spectrum[-1] ** (1 / depth))
        end = exponential(point, z)
        assert_close(exponential(point, logarithm(point, end)).matrix, end.matrix, ops=RTOL_OPS)


@pytest.mark.parametrize("depth", [3, 8])
def test_geodesics_that_pass_through_zero_are_no_logarithms(depth, generator):
    """Turned by a half turn, the straight way leads through zero; the way around is found."""
    s = torch.tensor([1.0, 0.5], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    angle = 3.0
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]],
        dtype=torch.float64,
    )
    p, q = dln.EndToEnd(eye, s, eye, depth, False), dln.EndToEnd(turn, s, eye, depth, False)
    path = dln.geodesic(p, logarithm(p, q), torch.linspace(0.0, 1.0, 21))
    assert_close(path.matrix[-1], q.matrix, ops=RTOL_OPS)
    assert bool((path.s > 0).all())
    assert bool((torch.linalg.det(path.matrix) > 0).all())


def test_a_batch_is_its_samples(generator, monkeypatch):
    """Near and far ones together, each on its own way."""
    point = draw((3, 3), (1.2, 0.7, 0.4), 3, generator, batch=(2, 1))
    z = tangent(point, generator)
    z = z / dln.inner(point, z, z).sqrt()[..., None, None]
    z = z * torch.tensor([0.01, 0.5, 1.2], dtype=torch.float64)[:, None, None]
    end = exponential(point, z)
    assert_close(logarithm(point, end), z, ops=RTOL_OPS, scale=1.0)
    assert_close(distance(point, end), [[0.01, 0.5, 1.2]] * 2, ops=RTOL_OPS)
    # Derivatives a few samples at a time.
    monkeypatch.setattr("dln_geometry.geometry.geodesics.chart._MOST_ENTRIES", 200)
    assert_close(distance(point, end), [[0.01, 0.5, 1.2]] * 2, ops=RTOL_OPS)


@pytest.mark.parametrize("depth", [8, 20, 30, 100, 1000])
def test_great_depth_winds_no_further_than_it_must(depth):
    """Of vectors at an angle: the law of cosines on the cone, at every angle below pi."""
    angles = torch.tensor([0.5, 2.0, 2.7, 2.9, 3.1], dtype=torch.float64)
    q = 2.0 * torch.stack((angles.cos(), angles.sin()), -1).unsqueeze(-2)
    p = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    one, two = depth**0.5, depth**0.5 * 2.0 ** (1 / depth)
    # Without the cancellation of great radii.
    half = torch.sin(0.5 * angles / depth**0.5)
    expected = ((two - one) ** 2 + 4.0 * one * two * half.square()).sqrt()
    actual = distance(dln.EndToEnd.of(p, depth), dln.EndToEnd.of(q, depth))
    assert_close(actual, expected, ops=1e5)


@pytest.mark.parametrize("depth", [1, 2.7, math.inf])
def test_empty_batches(depth):
    point = dln.EndToEnd.of(torch.zeros(0, 3, 3), depth)
    assert logarithm(point, point).shape == (0, 3, 3)
    assert distance(point, point).shape == (0,)


def test_what_is_left_of_long_vectors_is_tangent(generator):
    point = draw((4, 3), (1.2, 0.5), 3, generator)
    z = tangent(point, generator)
    again = logarithm(point, exponential(point, 0.1 * z)) - 0.1 * z
    assert float(dln.inner(point, again, again)) < 1e-20
    with pytest.raises(ValueError, match="must be tangent"):
        dln.inner(point, again, torch.eye(4, 3, dtype=torch.float64))


def test_what_has_no_logarithm(generator):
    eye = torch.eye(2, dtype=torch.float64)
    p = dln.EndToEnd.of(eye, 3)
    with pytest.raises(ValueError, match="p and q must have determinants of one sign"):
        logarithm(p, dln.EndToEnd.of(torch.diag(torch.tensor([1.0, -1.0]).double()), 3))
    with pytest.raises(ValueError, match="p and q must have one shape, rank, depth"):
        distance(p, dln.EndToEnd.of(eye, 4))
    with pytest.raises(ValueError, match="q must have positive singular values"):
        distance(p, dln.EndToEnd.of(torch.diag(torch.tensor([1.0, 0.0]).double()), 3))
    with pytest.raises(TypeError, match="q must be an EndToEnd"):
        distance(p, eye)
    thin = draw((3, 3), (1.0,), math.inf, generator)
    other = draw((3, 3), (1.0,), math.inf, generator)
    with pytest.raises(ValueError, match="one row and one column space at infinite depth"):
        distance(thin, other)


@pytest.mark.parametrize("depth", [1e9, 1e12, 1e15])
def test_great_depths_below_full_rank_are_those_of_the_square_or_refused(depth, generator):
    def normal(*sizes):
        return torch.randn(*sizes, dtype=torch.float64, generator=generator)

    u, v = (torch.linalg.qr(normal(size, 2)).Q for size in (4, 3))
    a = normal(2, 2)
    b = a + 0.1 * normal(2, 2)
    p, q = (dln.EndToEnd.of(u @ x @ v.mT, depth, rank=2) for x in (a, b))
    square = [dln.EndToEnd.of(x, depth) for x in (a, b)]
    assert_close(u.mT @ dln.logarithm(p, q) @ v, dln.logarithm(*square), ops=10000)
    assert_close(dln.distance(p, q), dln.distance(*square), ops=10000)
    with pytest.raises(ValueError, match="one row and one column space at depths above"):
        dln.logarithm(p, dln.EndToEnd.of(normal(4, 3), depth, rank=2))
