from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.geodesics import (
    exponential,
    geodesic,
    parallel_transport,
)
from dln_geometry.testing import assert_close
from tests.geometry.geodesics.routes import (
    dense_geodesic,
    draw,
    gaussian,
    layered_geodesic,
    tangent,
)

DEPTHS = [1, 1.5, 2, 2.7, 3, 8, math.inf]
POINTS = [
    ((3, 3), (1.9, 0.8, 0.4)),
    ((3, 3), (1.2, 1.2, 0.5)),
    ((4, 2), (0.7, 0.7 - 1e-9)),
    ((5, 7), (1.6, 0.6)),
    ((3, 4), (0.6,)),
]
points = pytest.mark.parametrize(("shape", "spectrum"), POINTS, ids=str)
depths = pytest.mark.parametrize("depth", DEPTHS)
# The default tolerance, eps^{3/4}, in units of eps.
RTOL_OPS = 1e4


@pytest.mark.parametrize(
    ("shape", "depth"),
    # Of rectangular matrices at infinite depth there is no dense metric.
    [((2, 2), 1.5), ((3, 2), 1.5), ((3, 2), 3), ((3, 3), 3), ((3, 3), math.inf)],
)
def test_the_geodesic_equation_of_the_dense_metric(shape, depth, generator):
    """Against scipy and Christoffel symbols by autodiff, with a transported vector."""
    point = draw(shape, (1.9, 0.8, 0.5)[: min(shape)], depth, generator)
    z, w = tangent(point, generator, 0.5), tangent(point, generator, 0.5)
    x, _, carried = dense_geodesic(point, z, w)
    end, moved = parallel_transport(point, z, w)
    # scipy's tolerance was 1e-11 a step.
    assert_close(end.matrix, x, ops=1e-9 / 2e-16)
    assert_close(moved, carried, ops=1e-9 / 2e-16)


@pytest.mark.parametrize(("shape", "spectrum"), [((2, 2), (1.9, 0.7)), ((2, 3), (0.8,))])
@pytest.mark.parametrize("depth", [2, 3])
def test_horizontal_geodesics_upstairs(shape, spectrum, depth, generator):
    """The lift is a geodesic of the balanced manifold, and stays horizontal."""
    point = draw(shape, spectrum, depth, generator)
    z = tangent(point, generator, 0.4)
    factors = dln.balanced_factors(point, widths=2, gauge="haar", generator=generator)
    velocity = dln.lift(factors, dln.metric(point, z))
    end, speed = layered_geodesic(factors, velocity)
    expected, moved = parallel_transport(point, z, z)
    assert_close(dln.end_to_end(end), expected.matrix, ops=1e-9 / 2e-16)
    lifted = dln.lift(end, dln.metric(expected, moved))
    for a, b in zip(speed, lifted, strict=True):
        assert_close(a, b, ops=1e-8 / 2e-16)


@points
@depths
def test_speed_and_angular_momenta_are_conserved(shape, spectrum, depth, generator):
    point = draw(shape, spectrum, depth, generator)
    z = tangent(point, generator, 0.5)
    end, velocity = parallel_transport(point, z, z)
    assert_close(dln.inner(end, velocity, velocity), dln.inner(point, z, z), ops=RTOL_OPS)
    momenta = []
    for p, v in ((point, z), (end, velocity)):
        turned = dln.metric(p, v) @ p.matrix.mT
        momenta.append(turned - turned.mT)
        turned = p.matrix.mT @ dln.metric(p, v)
        momenta.append(turned - turned.mT)
    scale = float(dln.metric(point, z).norm() * point.matrix.norm())
    if shape[0] == len(spectrum) or depth == 1:
        assert_close(momenta[2], momenta[0], ops=RTOL_OPS, scale=scale)
    assert end.rank == (min(shape) if depth == 1 else len(spectrum))
    assert bool((end.s[..., :-1] >= end.s[..., 1:]).all())


@points
@depths
def test_transport_is_an_isometry_and_reversible(shape, spectrum, depth, generator):
    point = draw(shape, spectrum, depth, generator, normalized=math.isinf(depth) or depth == 8)
    z, w, y = (tangent(point, generator, length) for length in (0.5, 1.3, 0.7))
    end, moved = parallel_transport(point, z, w)
    _, other = parallel_transport(point, z, y)
    _, velocity = parallel_transport(point, z, z)
    assert_close(dln.inner(end, moved, moved), 1.69, ops=RTOL_OPS)
    assert_close(dln.inner(end, moved, other), dln.inner(point, w, y), ops=RTOL_OPS, scale=1.0)
    start, back = parallel_transport(end, -velocity, moved)
    condition = spectrum[0] / spectrum[-1]
    assert_close(start.matrix, point.matrix, ops=RTOL_OPS, condition=condition)
    assert_close(back, w, ops=RTOL_OPS, condition=condition)


@points
@pytest.mark.parametrize("depth", [1.5, 3, math.inf])
def test_invariant_under_rotations(shape, spectrum, depth, generator):
    point = draw(shape, spectrum, depth, generator)
    z = tangent(point, generator, 0.5)
    q, o = (torch.linalg.qr(gaussian((d, d), generator)).Q for d in shape)
    turned = dln.EndToEnd(q @ point.u, point.s, point.vh @ o, depth, point.normalized)
    expected = q @ exponential(point, z).matrix @ o
    assert_close(exponential(turned, q @ z @ o).matrix, expected, ops=RTOL_OPS)


@depths
def test_depth_one_and_scalars(depth, generator):
    point = draw((1, 1), (8.0,), depth, generator)
    sign = point.u * point.vh
    end = exponential(point, 3.0 * sign)
    if depth == 1:
        assert_close(end.s, [11.0])
        flat = draw((4, 3), (1.2, 0.5), 1, generator)
        z = gaussian((4, 3), generator)
        assert_close(geodesic(flat, z, 0.7).matrix, flat.matrix + 0.7 * z)
        assert_close(parallel_transport(flat, z, 2 * z)[1], 2 * z)
    elif math.isinf(depth):
        assert_close(end.s, [8.0 * math.exp(3.0 / 8.0)])
    else:
        # The N-th root moves on a straight line.
        root = 8.0 ** (1 / depth) + 3.0 / (depth * 8.0 ** (1 - 1 / depth))
        assert_close(end.s, [root**depth])


@pytest.mark.parametrize("depth", [1.5, 3, math.inf])
@pytest.mark.parametrize("spectrum", [(1.9, 0.8), (1.2, 1.2)])
def test_radial_geodesics_are_straight(depth, spectrum, generator):
    """In closed form; a velocity next to it, which is integrated, ends next to it."""
    point = draw((4, 3), spectrum, depth, generator)
    rate = torch.tensor([0.3, -0.2], dtype=torch.float64)
    z = (point.u * rate) @ point.vh
    end = exponential(point, z)
    if math.isinf(depth):
        s = point.s * torch.exp(rate / point.s)
    else:
        s = (point.s ** (1 / depth) + rate / depth * point.s ** (1 / depth - 1)) ** depth
    assert_close(end.s, s)
    assert_close(end.matrix, (point.u * s) @ point.vh)
    turn = tangent(point, generator, 1e-11)
    near = exponential(point, z + turn)
    assert_close(near.matrix, end.matrix, ops=1e-10 / 2e-16)


@pytest.mark.parametrize("depth", [1.5, 2, 3, 8])
@pytest.mark.parametrize("shape", [(1, 3), (3, 1)])
def test_vectors_form_a_cone(depth, shape, generator):
    """g = d rho^2 + rho^2/N d theta^2, rho = sqrt(N) s^{1/N}: unrolled, straight lines."""
    point = draw(shape, (0.7,), depth, generator)
    rho = math.sqrt(depth) * 0.7 ** (1 / depth)
    radial, turning = 0.2, 0.6
    x = point.matrix.flatten() / 0.7
    side = gaussian((3,), generator)
    side = side - (side @ x) * x
    side = side / side.norm()
    # ds = rho' s N / rho, and |dx| across = s d theta, of length rho / sqrt N d theta.
    z = radial * depth * 0.7 / rho * x + turning * math.sqrt(depth) / rho * 0.7 * side
    end = exponential(point, z.reshape(shape))
    length = math.hypot(rho + radial, turning)
    theta = math.sqrt(depth) * math.atan2(turning, rho + radial)
    s = (length / math.sqrt(depth)) ** depth
    expected = s * (math.cos(theta) * x + math.sin(theta) * side)
    assert_close(end.matrix, expected.reshape(shape), ops=RTOL_OPS)


@pytest.mark.parametrize("depth", [1, 3, math.inf])
def test_many_times(depth, generator):
    point = draw((4, 3), (1.2, 0.5), depth, generator)
    z = tangent(point, generator, 0.8)
    times = [0.5, -0.3, 0.0, 1.0, 0.9, 0.5]
    path = geodesic(point, z, times)
    assert path.matrix.shape == (6, 4, 3)
    for t, x in zip(times, path.matrix, strict=True):
        assert_close(x, geodesic(point, z, t).matrix, ops=RTOL_OPS)
    assert_close(path.matrix[2], point.matrix)
    assert_close(path.matrix[0], path.matrix[5])


@pytest.mark.parametrize("depth", [2.7, 3, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_and_dtypes(depth, dtype, generator):
    point = draw((4, 3), (1.2, 1.2, 0.5), depth, generator, dtype=dtype, batch=(2,))
    z = tangent(point, generator, 0.5)
    path = geodesic(point, z, [0.5, 1.0])
    assert path.matrix.shape == (2, 2, 4, 3)
    assert path.s.dtype == dtype
    ops = RTOL_OPS if dtype == torch.float64 else 300.0
    for i in range(2):
        assert_close(exponential(point[i], z[i]).matrix, path.matrix[1, i], ops=ops)
    many = torch.stack([z[0], 0.5 * z[0]])
    assert_close(exponential(point[0], many).matrix, path.matrix[[1, 0], 0], ops=ops)


@pytest.mark.parametrize("depth", [2.7, math.inf])
def test_many_values_are_summed_point_by_point(depth, generator, monkeypatch):
    point = draw((3, 3), (1.9, 0.8, 0.4), depth, generator, batch=(2, 2))
    z = 0.3 * gaussian((2, 2, 3, 3), generator)
    expected = exponential(point, z).matrix
    monkeypatch.setattr("dln_geometry.geometry.kernel.differences._MOST_ENTRIES", 10)
    assert_close(exponential(point, z).matrix, expected)


def test_wide_shapes_cost_no_more_than_their_rank(generator):
    """The box of a rank 2 geodesic has four dimensions, here and in 300 x 200."""
    small = draw((4, 4), (1.5, 0.6), 3, generator)
    z = tangent(small, generator, 0.5)
    q, o = (
        torch.linalg.qr(gaussian((300, 4), generator)).Q,
        torch.linalg.qr(gaussian((200, 4), generator)).Q,
    )
    large = dln.EndToEnd(q @ small.u, small.s, small.vh @ o.mT, 3, False)
    end = exponential(large, q @ z @ o.mT)
    assert_close(end.matrix, q @ exponential(small, z).matrix @ o.mT, ops=RTOL_OPS)


def test_bad_input():
    point = dln.EndToEnd.of(torch.eye(2), 3)
    z = torch.eye(2)
    with pytest.raises(TypeError, match="point must be an EndToEnd"):
        geodesic(torch.eye(2), z, 1.0)
    with pytest.raises(ValueError, match=r"z must have shape \(..., 2, 2\)"):
        exponential(point, torch.eye(3))
    with pytest.raises(ValueError, match="t must be finite"):
        geodesic(point, z, math.nan)
    with pytest.raises(ValueError, match="t must be a number or a vector"):
        geodesic(point, z, [[1.0]])
    with pytest.raises(ValueError, match="rtol must lie between eps"):
        geodesic(point, z, 1.0, rtol=0.0)
    with pytest.raises(TypeError, match="rtol must be a real number"):
        geodesic(point, z, 1.0, rtol="small")
    with pytest.raises(ValueError, match="point must have positive singular values"):
        exponential(dln.EndToEnd.of(torch.zeros(2, 2), 3), z)
    thin = dln.EndToEnd.of(torch.diag(torch.tensor([1.0, 0.0])), math.inf, rank=1)
    with pytest.raises(ValueError, match="w must be tangent"):
        parallel_transport(thin, torch.diag(torch.tensor([1.0, 0.0])), torch.ones(2, 2))
    assert np.isfinite(geodesic(point, np.eye(2), np.array([0.1, 0.2])).s.numpy()).all()


@pytest.mark.parametrize("depth", [1e9, 1e12])
def test_great_depths_below_full_rank_are_those_of_the_square_or_refused(depth, generator):
    """Velocities that keep the spaces give the motion of the r x r core."""
    u, v = (
        torch.linalg.qr(torch.randn(d, 2, generator=generator, dtype=torch.float64)).Q
        for d in (5, 4)
    )
    core, move = (torch.randn(2, 2, generator=generator, dtype=torch.float64) for _ in "xz")
    p = dln.EndToEnd.of(u @ core @ v.mT, depth, rank=2, normalized=True)
    small = dln.EndToEnd.of(core, depth, normalized=True)
    z = 0.2 * move
    found = dln.exponential(p, u @ z @ v.mT).matrix
    assert_close(found, u @ dln.exponential(small, z).matrix @ v.mT, ops=1e4)
    turning = dln.metric(p, u @ z @ v.mT) + torch.randn(5, 2, generator=generator).double() @ v.mT
    with pytest.raises(ValueError, match="z must keep the row and column space at depths above"):
        dln.exponential(p, turning)
