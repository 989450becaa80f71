from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.geodesics import GeodesicError
from dln_geometry.geometry.network_geodesics import (
    LayerBox,
    balanced_geodesic,
    balanced_transport,
    starting,
    travel,
)
from dln_geometry.geometry.points import balanced_network
from dln_geometry.geometry.submersion import horizontal_lift, second_fundamental_form
from dln_geometry.testing import assert_close, assert_order
from tests.geometry.geodesics.routes import layered_geodesic
from tests.geometry.network_geodesics.routes import (
    dot,
    minus,
    momenta,
    network,
    scaled,
    size,
    stepped_geodesic,
    vector,
)

CASES = [
    ((3, 3, 3), 3),
    ((4, 3), 2),
    ((3, 2), 2),
    ((3, 3, 3), 2),
    ((3, 4, 2, 4), 2),
    ((2, 3, 2), 2),
    ((2, 3, 2, 3, 2, 2), 2),
    ((2, 1, 3), 1),
    ((3, 2, 4, 3), 1),
]
each_case = pytest.mark.parametrize(("widths", "rank"), CASES, ids=str)
# The default tolerance, eps^{3/4}, in units of eps.
RTOL_OPS = 1e4
# scipy's tolerance was 1e-11 a step.
STEPPED_OPS = 1e-9 / 2e-16


def assert_same(v, w, **options):
    for a, b in zip(v, w, strict=True):
        assert_close(a, b, **{"scale": 2.0, **options})


@pytest.mark.parametrize(("widths", "rank"), [((3, 3, 3), 3), ((4, 2, 3), 2)], ids=str)
def test_the_equation_with_constraints(widths, rank, generator):
    """The moments held at zero, by scipy: no frames, no second fundamental form."""
    layers, v = network(widths, rank, generator)
    end, speed = layered_geodesic(layers, v)
    assert_same(balanced_geodesic(layers, v), end, ops=STEPPED_OPS)
    assert_same(balanced_transport(layers, v, v)[1], speed, ops=STEPPED_OPS)


@each_case
def test_the_equation_by_the_second_fundamental_form(widths, rank, generator):
    layers, v = network(widths, rank, generator)
    w = vector(layers, generator)
    end, speed, carried = stepped_geodesic(layers, rank, v, w)
    found, moved = balanced_transport(layers, v, w)
    assert_same(found, end, ops=STEPPED_OPS)
    assert_same(moved, carried, ops=STEPPED_OPS)
    assert_same(balanced_transport(layers, v, v)[1], speed, ops=STEPPED_OPS)


@each_case
def test_what_is_conserved(widths, rank, generator):
    """Speed, balance, rank, and the momenta of the rotations of all layers."""
    layers, v = network(widths, rank, generator, 1.0)
    end, speed = balanced_transport(layers, v, v)
    assert bool(dln.is_balanced(end))
    for w in end:
        assert int(torch.linalg.matrix_rank(w)) == rank
    assert_close(size(speed), 1.0, ops=RTOL_OPS)
    assert_same(dln.tangent(end, speed), speed, ops=RTOL_OPS)
    before, after = momenta(layers, v), momenta(end, speed)
    assert max(float(a.abs().max()) for a in before) > 1e-2
    assert_same(after, before, ops=RTOL_OPS)


@each_case
def test_horizontal_geodesics_project_to_those_of_the_matrices(widths, rank, generator):
    layers, v = network(widths, rank, generator)
    v = dln.horizontal(layers, v)
    end, speed = balanced_transport(layers, v, v)
    depth = len(layers) if len(layers) > 1 else math.nextafter(1.0, 2.0)
    below = dln.EndToEnd.of(dln.end_to_end(layers), depth, rank=rank)
    expected = dln.exponential(below, dln.pushforward(layers, v))
    assert_close(dln.end_to_end(end), expected.matrix, ops=RTOL_OPS)
    assert_same(dln.horizontal(end, speed), speed, ops=RTOL_OPS)


@each_case
def test_expansion_to_second_order(widths, rank, generator):
    layers, v = network(widths, rank, generator, 1.0)
    bend = second_fundamental_form(layers, v, v)
    steps = [0.04, 0.02, 0.01, 0.005]
    ends = balanced_geodesic(layers, v, steps)
    errors = []
    for k, h in enumerate(steps):
        taylor = [w + h * a + 0.5 * h * h * b for w, a, b in zip(layers, v, bend, strict=True)]
        errors.append(float(size(minus([w[k] for w in ends], taylor))))
    if max(errors) < 1e-13:
        # Of full rank at depth one the space is flat.
        assert (len(layers), rank) == (1, min(widths))
    else:
        assert_order(steps, errors, 3)


@each_case
def test_times_of_either_sign_and_composition(widths, rank, generator):
    layers, v = network(widths, rank, generator)
    times = [0.6, -0.4, 0.0, 1.0, -0.4]
    ends = balanced_geodesic(layers, v, times)
    assert_same([w[2] for w in ends], layers, ops=100)
    assert_same([w[1] for w in ends], [w[4] for w in ends], ops=1)
    for k in (0, 1, 3):
        single = balanced_geodesic(layers, scaled(v, times[k]))
        assert_same([w[k] for w in ends], single, ops=RTOL_OPS)
    # On from where it is at -0.4 with the velocity there.
    behind, speed = balanced_transport(layers, scaled(v, -0.4), v)
    assert_same(balanced_geodesic(behind, speed, 1.0), [w[0] for w in ends], ops=RTOL_OPS)


@each_case
def test_transport_is_an_isometry(widths, rank, generator):
    layers, v = network(widths, rank, generator)
    w, u = vector(layers, generator, 0.8), vector(layers, generator, 1.3)
    one, other = (balanced_transport(layers, v, x)[1] for x in (w, u))
    assert_close(dot(one, other), dot(w, u), ops=RTOL_OPS, scale=1.0)
    assert_close(size(one), 0.8, ops=RTOL_OPS)
    end, speed = balanced_transport(layers, v, v)
    back = balanced_transport(end, scaled(speed, -1.0), one)
    assert_same(back[0], layers, ops=RTOL_OPS)
    assert_same(back[1], w, ops=RTOL_OPS)


@pytest.mark.parametrize(("widths", "rank"), [((9, 7, 8), 2), ((8, 3, 9, 3), 2), ((9, 8), 3)])
def test_the_box_holds_all(widths, rank, generator, monkeypatch):
    layers, v = network(widths, rank, generator)
    w = vector(layers, generator)
    end, moved = balanced_transport(layers, v, w)
    assert starting(balanced_network(layers), v)[1].frames.shape[-2] == 2 * rank
    monkeypatch.setattr(
        LayerBox, "around", classmethod(lambda cls, widths, *_: cls(tuple(widths), None))
    )
    whole, carried = balanced_transport(layers, v, w)
    assert starting(balanced_network(layers), v)[1].frames.shape[-2] == max(widths)
    assert_same(end, whole, ops=RTOL_OPS)
    assert_same(moved, carried, ops=RTOL_OPS)


@pytest.mark.parametrize("widths", [(2, 1, 3), (3, 2), (3, 3, 2, 4), (1, 2, 1)], ids=str)
def test_the_cone_of_rank_one(widths, generator):
    """Closed form against the integrated equation."""
    layers, v = network(widths, 1, generator, 1.1)
    box, start = starting(balanced_network(layers), v)
    (end,) = travel(start, [1.0], 1e-12)
    assert_same(balanced_geodesic(layers, v), box.network(end.frames, end.k), ops=RTOL_OPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("widths", "rank"), [((3, 4, 2), 2), ((3, 2, 3), 1)], ids=str)
def test_batches_and_dtypes(widths, rank, dtype, generator):
    layers, v = network(widths, rank, generator, dtype=dtype, batch=(3,))
    v = scaled(v, torch.tensor([1.0, 0.0, 0.4]))
    ends = balanced_geodesic(layers, v, [1.0, -0.5])
    assert {w.dtype for w in ends} == {dtype}
    assert [tuple(w.shape[:2]) for w in ends] == [(2, 3)] * len(ends)
    ops = RTOL_OPS if dtype == torch.float64 else 1000.0
    for k in range(3):
        own = [w[k] for w in layers]
        single = balanced_geodesic(own, [a[k] for a in v], [1.0, -0.5])
        assert_same([w[:, k] for w in ends], single, ops=ops)
    assert_same([w[0, 1] for w in ends], [w[1] for w in layers], ops=100)
    # One network, many velocities.
    first, own = [w[0] for w in layers], [torch.stack([a[0], 0.5 * a[0]]) for a in v]
    fan, carried = balanced_transport(first, own, [a[0] for a in v])
    assert_same([w[0] for w in fan], [w[0, 0] for w in ends], ops=ops)
    assert carried[0].shape == (2, *layers[0].shape[1:])


def test_gradients_are_refused(generator):
    layers, v = network((3, 3, 3), 2, generator)
    followed = [w.clone().requires_grad_() for w in layers]
    for call in (
        lambda: balanced_geodesic(followed, v),
        lambda: balanced_geodesic(layers, v, torch.tensor(0.5, requires_grad=True)),
        lambda: balanced_transport(layers, v, [w.clone().requires_grad_() for w in v]),
        lambda: dln.balanced_logarithm(layers, followed),
        lambda: dln.balanced_distance(followed, layers),
    ):
        with pytest.raises(ValueError, match="has no derivative here"):
            call()
    with torch.no_grad():
        assert not balanced_geodesic(followed, v)[0].requires_grad


@pytest.mark.parametrize(
    ("widths", "rank"),
    [((2, 2, 2), 2), ((3, 4, 3), 2), ((3, 3), 3), ((1, 1, 1), 1), ((3, 2, 4), 1)],
    ids=str,
)
def test_geodesics_end_where_the_rank_falls(widths, rank, generator):
    """Straight into zero: all singular values at once, for which no determinant need change."""
    layers, _ = network(widths, rank, generator)
    inward = scaled(layers, -1.0)
    assert_same(balanced_geodesic(layers, inward, 0.6), scaled(layers, 0.4), ops=RTOL_OPS)
    for t in (1.7, [0.5, 2.0]):
        with pytest.raises(GeodesicError, match="must keep its rank"):
            balanced_geodesic(layers, inward, t)
    with pytest.raises(GeodesicError, match="must keep its rank"):
        balanced_geodesic(layers, scaled(layers, 1.0), -1.5)
    with pytest.raises(GeodesicError, match="must keep its rank"):
        balanced_transport(layers, scaled(layers, -2.0), layers)


@pytest.mark.parametrize("aside", [0.0, 0.1, 0.3])
def test_one_singular_value_through_zero(aside, generator):
    """A hypersurface where all widths are the rank: a geodesic crosses it, and is smooth there."""
    s = torch.tensor([1.3, 0.2], dtype=torch.float64)
    layers = dln.random_balanced((2, 2, 2), spectrum=s, generator=generator)
    inward = scaled(horizontal_lift(layers, _smallest(dln.end_to_end(layers))), -3.0)
    v = tuple(a + b for a, b in zip(inward, vector(layers, generator, aside), strict=True))
    near = balanced_geodesic(layers, scaled(v, 0.4))
    assert 0 < float(torch.linalg.svdvals(near[0])[-1]) < 0.6 * math.sqrt(0.2)
    with pytest.raises(GeodesicError, match="passes through networks of a smaller one"):
        balanced_geodesic(layers, v)


def _smallest(x):
    u, s, vh = torch.linalg.svd(x)
    return s[-1] * u[:, -1:] @ vh[-1:]


def test_past_zero_at_a_distance(generator):
    """Rank one in a plane is flat: a line that only just misses zero is no geodesic lost."""
    layers, v = network((1, 2, 1), 1, generator)
    aside = [torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double() @ layers[0], None]
    aside[1] = layers[1] @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()
    for miss in (1e-3, 1e-9):
        v = [-2.0 * w + miss * a for w, a in zip(layers, aside, strict=True)]
        end = balanced_geodesic(layers, v)
        assert_same(end, [w + a for w, a in zip(layers, v, strict=True)], ops=RTOL_OPS)


def test_what_makes_no_sense_is_refused(generator):
    layers, v = network((3, 4, 3), 2, generator)
    noise = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in layers]
    for call in (balanced_geodesic, lambda *a: balanced_transport(*a, v)):
        with pytest.raises(ValueError, match="v must be tangent to the balanced networks of rank"):
            call(layers, noise)
        with pytest.raises(ValueError, match="factors must be balanced"):
            call((layers[0], 2 * layers[1]), v)
        with pytest.raises(ValueError, match="v must hold one matrix for each of 2 layers"):
            call(layers, v[:1])
    with pytest.raises(ValueError, match="w must be tangent"):
        balanced_transport(layers, v, noise)
    with pytest.raises(ValueError, match=r"v\[0\] must be finite"):
        balanced_geodesic(layers, [float("nan") * a for a in v])
    with pytest.raises(TypeError, match="factors must be a sequence of matrices"):
        balanced_geodesic(torch.eye(2), v)
    with pytest.raises(ValueError, match="t must be a number or a vector"):
        balanced_geodesic(layers, v, [[1.0]])
    with pytest.raises(ValueError, match="rtol must lie between"):
        balanced_geodesic(layers, v, rtol=2.0)
    thinner, _ = network((3, 4, 3), 1, generator)
    mixed = [torch.stack(pair) for pair in zip(layers, thinner, strict=True)]
    with pytest.raises(ValueError, match="factors must have one rank throughout the batch"):
        balanced_geodesic(mixed, v)


def test_leading_dimensions_of_every_layer_broadcast(generator):
    factors = dln.random_balanced((3, 3, 3), generator=generator, dtype=torch.float64)
    noise = [torch.randn(2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
    straight = [0.1 * w for w in factors]
    v = [straight[0].expand(2, 3, 3), straight[1]]
    ends = balanced_geodesic(factors, v)
    assert ends[0].shape == (2, 3, 3)
    assert_close(ends[0][0], 1.1 * factors[0])
    with pytest.raises(ValueError, match="v must be tangent"):
        balanced_geodesic(factors, [noise[0], noise[1][0]])
    with pytest.raises(ValueError, match="factors must not be an empty batch"):
        balanced_geodesic([w.expand(0, 3, 3) for w in factors], straight)
