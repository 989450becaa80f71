from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.geodesics import (
    Flow,
    GeodesicError,
    exponential,
    follow,
    geodesic,
    parallel_transport,
)
from dln_geometry.geometry.metric import Box
from dln_geometry.ode import StepFailure, collocate, nodes_and_weights
from dln_geometry.testing import assert_close, assert_order
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


def pendulum(y):
    return torch.stack([y[1], -torch.sin(y[0])])


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_collocation_has_twice_the_order_of_its_stages(stages):
    y = torch.tensor([[0.7], [1.1]], dtype=torch.float64)
    options = {"coordinates_at": lambda _: lambda d: d, "shortest": 1e-9}

    def run(steps, stages=stages):
        return collocate(pendulum, y, [2.0], rtol=1e-13, stages=stages, steps=steps, **options)[0]

    exact = run(20, 10)
    counts = [8, 12, 16, 24] if stages < 4 else [5, 7, 9, 12]
    errors = [float((run(n) - exact).abs().max()) for n in counts]
    assert_order([2.0 / n for n in counts], errors, 2 * stages, tol=0.25)


def test_collocation_controls_its_error_and_its_dense_output():
    y = torch.tensor([[0.7], [1.1]], dtype=torch.float64)
    options = {"coordinates_at": lambda _: lambda d: d, "shortest": 1e-9}
    times = [0.3, 1.7, 4.0, 9.5]
    exact = collocate(pendulum, y, times, rtol=1e-12, steps=60, **options)
    for rtol in (1e-5, 1e-8, 1e-11):
        found = collocate(pendulum, y, times, rtol=rtol, **options)
        assert float((torch.stack(found) - torch.stack(exact)).abs().max()) < 10 * rtol


def test_collocation_gives_up_at_a_pole():
    y = torch.tensor([[1.0]], dtype=torch.float64)
    with pytest.raises(StepFailure) as failure:
        collocate(
            lambda y: y**2,
            y,
            [2.0],
            coordinates_at=lambda _: lambda d: d,
            rtol=1e-8,
            shortest=1e-6,
        )
    assert 0.99 < failure.value.time < 1.0


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
        single = dln.EndToEnd(point.u[i], point.s[i], point.vh[i], depth, point.normalized)
        assert_close(exponential(single, z[i]).matrix, path.matrix[1, i], ops=ops)
    single = dln.EndToEnd(point.u[0], point.s[0], point.vh[0], depth, point.normalized)
    many = torch.stack([z[0], 0.5 * z[0]])
    assert_close(exponential(single, many).matrix, path.matrix[[1, 0], 0], ops=ops)


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


@pytest.mark.parametrize("depth", [1.5, 2, 3])
def test_rank_is_lost_at_finite_distance(depth, generator):
    point = draw((2, 2), (1.0, 0.3), depth, generator)
    distance = math.sqrt(depth) * 0.3 ** (1 / depth)
    rate = torch.tensor([0.0, -1.0], dtype=torch.float64)
    z = (point.u * rate) @ point.vh
    z = z / dln.inner(point, z, z).sqrt()
    assert geodesic(point, z, 0.99 * distance).s[-1] > 0
    with pytest.raises(GeodesicError, match=f"reaches zero at t = {distance:.4f}"[:-1]):
        geodesic(point, z, 1.01 * distance)
    # Turning a little it is met as well, by the integration, about as far.
    turn = torch.tensor([[0.0, 0.05], [-0.02, 0.0]], dtype=torch.float64)
    z = z + point.u @ turn @ point.vh
    with pytest.raises(GeodesicError, match="a singular value reaches zero at t = ") as refusal:
        geodesic(point, z, 1.3 * distance)
    met = float(str(refusal.value).split("t = ")[1].split(":")[0])
    x = geodesic(point, z, [0.9 * met, 0.99 * met, 0.999 * met]).s[:, -1] ** (1 / depth)
    # In the root it arrives at a constant speed.
    assert_close(x[1:] / x[:-1], [0.1, 0.1], ops=0.02 / 2e-16, scale=1.0)


@pytest.mark.parametrize("depth", [2.7, 8, 64])
def test_deep_metrics_lose_rank_in_few_steps(depth, generator, monkeypatch):
    """In the root of the singular values, zero is nothing special; in X it took hundreds."""
    monkeypatch.setattr("dln_geometry.ode.collocation._MOST_STEPS", 20)
    point = draw((2, 2), (1.0, 0.3), depth, generator)
    rate = torch.tensor([[0.0, 0.02], [0.05, -1.0]], dtype=torch.float64)
    z = point.u @ rate @ point.vh
    z = z / dln.inner(point, z, z).sqrt()
    with pytest.raises(GeodesicError, match="a singular value reaches zero"):
        geodesic(point, z, 2.0 * math.sqrt(depth))


def test_zero_is_passed_where_the_layers_pass_it(generator):
    """Three layers, followed by scipy: the determinant of their product changes its sign."""
    point = draw((2, 2), (1.0, 0.3), 3, generator)
    factors = dln.balanced_factors(point)
    z = point.u @ (gaussian((2, 2), generator) - torch.diag(torch.tensor([0.0, 2.0]))) @ point.vh
    z = z * (math.sqrt(3) * 0.3 ** (1 / 3) / dln.inner(point, z, z).sqrt())
    seen = set()
    for length in (0.7, 1.6):
        velocity = dln.lift(factors, dln.metric(point, length * z))
        end = dln.end_to_end(layered_geodesic(factors, velocity, rtol=1e-10)[0])
        passes = bool(torch.linalg.det(end) * torch.linalg.det(point.matrix) < 0)
        (root,), _, _ = follow(Box.around(point, length * z), [1.0], 1e-11, through=True)
        assert passes == bool(torch.linalg.eigvalsh(root.k)[0] < 0)
        found = root.u @ torch.linalg.matrix_power(root.k, 3) @ root.v.mT
        # Next to zero the constraint of the layers is ill-conditioned, and scipy drifts from it.
        assert_close(found, end, ops=(1e-5 if passes else 1e-8) / 2e-16)
        seen.add(passes)
        if passes:
            with pytest.raises(GeodesicError, match="a singular value reaches zero"):
                exponential(point, length * z)
    assert seen == {False, True}


@pytest.mark.parametrize("depth", [1.5, 2.7, 8, 64])
def test_refused_if_and_only_if_zero_is_met(depth, generator):
    """At fifty times along the way, a step for all or one for each."""
    point = draw((2, 2), (1.0, 0.3), depth, generator)
    z = torch.stack([tangent(point, generator, 1.0) for _ in range(6)])
    down = point.u[:, 1:] @ point.vh[1:]
    down = down / dln.inner(point, down, down).sqrt()
    z = torch.cat((z, 0.7 * z - down)) * (1.4 * math.sqrt(depth) * 0.3 ** (1 / depth))
    states, _, _ = follow(Box.around(point, z), list(np.linspace(0.02, 1, 50)), 1e-8, through=True)
    lowest = torch.stack([torch.linalg.eigvalsh(q.k)[..., 0] for q in states])
    _, _, lost = follow(Box.around(point, z), [1.0], 1e-11)
    assert lost.which.tolist() == (lowest <= 0).any(0).tolist()
    assert lost.barred.tolist() == lost.which.tolist()
    assert 0 < lost.which.sum() < 12


def test_a_pass_through_zero_and_back_within_one_step_is_seen(generator):
    """The root of the smallest singular value dips below zero between two nodes."""
    point = draw((2, 2), (1.0, 0.3), 3, generator)
    z = tangent(point, generator, 0.1)
    flow, state = Flow.of(Box.around(point, z), 1.0, 1e-10)
    nodes = torch.as_tensor(np.append(nodes_and_weights(16)[0], 1.0))
    states = state.unsqueeze(1).repeat(1, 17, 1, 1)
    gap = 0.5 * (nodes[7] + nodes[8])
    for depth, seen in ((1e-5, True), (-1e-5, False)):
        # A parabola below zero in the middle of the gap, or just not.
        states[0, :, 0, 8 + 3] = (nodes - gap) ** 2 - depth
        when = flow.ends(np.zeros(1), np.ones(1), states)[0]
        assert math.isfinite(when) == seen
        if seen:
            assert abs(when - float(gap)) < 0.01


def test_the_samples_that_fail_are_named(generator):
    point = draw((2, 2), (1.0, 0.3), 3, generator, batch=(3,))
    rate = torch.tensor([[0.0, 0.02], [0.05, -1.0]], dtype=torch.float64)
    z = point.u @ rate @ point.vh
    z = z * torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)[:, None, None]
    with pytest.raises(GeodesicError, match=r"\(samples 1, 2 of the batch\)"):
        exponential(point, z)
    straight = (point.u * torch.tensor([0.0, -1.0], dtype=torch.float64)) @ point.vh
    straight = straight * torch.tensor([0.1, 4.0, 0.1], dtype=torch.float64)[:, None, None]
    with pytest.raises(GeodesicError, match=r"\(sample 1 of the batch\)"):
        exponential(point, straight)
    with pytest.raises(GeodesicError, match=r"\(samples \(0, 1\), \(0, 2\) of the batch\)"):
        exponential(point, torch.stack((z, 0.1 * z)))


def test_a_hard_sample_does_not_slow_the_others(generator, monkeypatch):
    """Every sample takes its own steps, and leaves when it has arrived."""
    point = draw((2, 2), (1.0, 0.3), 8, generator)
    z = tangent(point, generator, 0.4).repeat(32, 1, 1)
    hard = (point.u * torch.tensor([0.2, -9.0])) @ point.vh + tangent(point, generator, 0.3)
    calls = []
    field = Flow.field

    def counted(self, state):
        calls.append(state.shape[2])
        return field(self, state)

    monkeypatch.setattr(Flow, "field", counted)
    exponential(point, z)
    alone = sum(calls)
    calls.clear()
    with pytest.raises(GeodesicError, match=r"sample 7 of"):
        exponential(point, torch.cat((z[:7], hard[None], z[8:])))
    assert sum(calls) < 1.5 * alone + 300


@pytest.mark.parametrize("depth", [64, math.inf])
def test_small_singular_values_are_as_precise_as_large_ones(depth, generator):
    """To and fro over singular values of 1e-12 of the largest."""
    point = draw((3, 3), (1.0, 1e-5, 1e-12), depth, generator)
    z = tangent(point, generator, 0.7)
    box = Box.around(point, z)
    (end,), _, _ = follow(box, [1.0], 1e-12)
    spectrum = end.point(point).s
    # The same in the depth-independent chart of the roots, with half the way twice.
    half, _, _ = follow(box, [0.5, 1.0], 1e-12)
    assert_close(half[1].point(point).s / spectrum, torch.ones(3), ops=RTOL_OPS * 64)


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
    with pytest.raises(TypeError, match="rtol must be a number"):
        geodesic(point, z, 1.0, rtol="small")
    with pytest.raises(ValueError, match="point must have positive singular values"):
        exponential(dln.EndToEnd.of(torch.zeros(2, 2), 3), z)
    thin = dln.EndToEnd.of(torch.diag(torch.tensor([1.0, 0.0])), math.inf, rank=1)
    with pytest.raises(ValueError, match="w must be tangent"):
        parallel_transport(thin, torch.diag(torch.tensor([1.0, 0.0])), torch.ones(2, 2))
    assert np.isfinite(geodesic(point, np.eye(2), np.array([0.1, 0.2])).s.numpy()).all()
