from __future__ import annotations

import math
import pkgutil
from dataclasses import replace

import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.geodesics import GeodesicError
from dln_geometry.geometry.network_geodesics import (
    LayerBox,
    aim_at,
    balanced_distance,
    balanced_geodesic,
    balanced_logarithm,
    balanced_transport,
)
from dln_geometry.geometry.points import balanced_network
from dln_geometry.testing import assert_close, assert_order
from tests.geometry.network_geodesics.routes import minus, network, scaled, size, vector

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


def assert_same(v, w, **options):
    for a, b in zip(v, w, strict=True):
        assert_close(a, b, **{"ops": RTOL_OPS, "scale": 2.0, **options})


@each_case
def test_inverts_the_exponential_map_and_gives_a_symmetric_distance(widths, rank, generator):
    layers, v = network(widths, rank, generator, 0.7)
    end = balanced_geodesic(layers, v)
    assert_same(balanced_logarithm(layers, end), v)
    chord = size(minus(end, layers))
    for found in (balanced_distance(layers, end), balanced_distance(end, layers)):
        assert_close(found, 0.7, ops=RTOL_OPS)
        assert float(found) >= float(chord) * (1 - 1e-12)
    # The velocity back is the one of arrival, turned round.
    _, speed = balanced_transport(layers, v, v)
    assert_same(balanced_logarithm(end, layers), scaled(speed, -1.0))


@each_case
def test_no_shorter_than_the_chord_or_the_distance_below(widths, rank, generator):
    layers, v = network(widths, rank, generator, 0.6)
    w = vector(layers, generator, 0.5)
    ends = balanced_geodesic(layers, v), balanced_geodesic(layers, w)
    depth = len(layers) if len(layers) > 1 else math.nextafter(1.0, 2.0)
    points = [dln.EndToEnd.of(dln.end_to_end(x), depth, rank=rank) for x in (layers, *ends)]
    far = balanced_distance(*ends)
    assert float(far) >= float(size(minus(*ends))) * (1 - 1e-12)
    assert float(far) >= float(dln.distance(points[1], points[2])) * (1 - 1e-9)
    assert float(far) <= 1.1


@each_case
def test_chords_are_distances_up_to_third_order(widths, rank, generator):
    layers, v = network(widths, rank, generator, 1.0)
    steps = [0.1, 0.05, 0.025, 0.0125]
    ends = balanced_geodesic(layers, v, steps)
    gaps = [h - float(size(minus([w[k] for w in ends], layers))) for k, h in enumerate(steps)]
    if max(gaps) < 1e-12:
        assert (len(layers), rank) == (1, min(widths))
    else:
        assert_order(steps, gaps, 3)


@each_case
def test_horizontal_logarithms_project_to_those_of_the_matrices(widths, rank, generator):
    """The end of a horizontal geodesic is the nearest point of its fibre."""
    layers, v = network(widths, rank, generator)
    v = dln.horizontal(layers, v)
    end = balanced_geodesic(layers, v)
    depth = len(layers) if len(layers) > 1 else math.nextafter(1.0, 2.0)
    below = [dln.EndToEnd.of(dln.end_to_end(x), depth, rank=rank) for x in (layers, end)]
    found = balanced_logarithm(layers, end)
    assert_same(dln.horizontal(layers, found), found)
    assert_close(dln.pushforward(layers, found), dln.logarithm(*below), ops=RTOL_OPS, scale=2.0)
    assert_close(balanced_distance(layers, end), dln.distance(*below), ops=RTOL_OPS)


@each_case
def test_rotations_of_all_layers_are_isometries(widths, rank, generator):
    layers, v = network(widths, rank, generator)
    end = balanced_geodesic(layers, v)
    turns = []
    for d in widths:
        a = torch.randn(d, d, generator=generator, dtype=torch.float64)
        turns.append(torch.linalg.matrix_exp(a - a.mT))

    def turned(x):
        return [turns[p + 1] @ w @ turns[p].mT for p, w in enumerate(x)]

    found = balanced_logarithm(turned(layers), turned(end))
    assert_same(found, turned(balanced_logarithm(layers, end)))


def test_radial_distance_is_flat(generator):
    """Networks with the same singular vectors, the values in another order."""
    layers, _ = network((3, 4, 3), 3, generator)
    values = torch.tensor([0.4, 1.1, 2.3], dtype=torch.float64)
    u, s, vh = torch.linalg.svd(layers[0], full_matrices=False)
    out = torch.linalg.svd(dln.end_to_end(layers), full_matrices=False)[0]
    # Equal singular values: the frames must be taken from one layer to the next.
    out = layers[1] @ u / s
    end = [(u * values) @ vh, (out * values) @ u.mT]
    assert_close(balanced_distance(layers, end), math.sqrt(2.0) * (values - s).norm(), ops=RTOL_OPS)


def test_full_rank_at_depth_one_is_flat(generator):
    one, two = (network((4, 3), 3, generator)[0] for _ in range(2))
    assert_close(balanced_distance(one, two), size(minus(one, two)), ops=RTOL_OPS)
    assert_same(balanced_logarithm(one, two), minus(two, one))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 2.0, 2.0, 1.0)], ids=str)
def test_the_cone_of_rank_one(weights, generator):
    """The law of cosines on the cone, and the geodesic arrives."""
    widths = (3, 2, 4, 3)[: len(weights)]
    layers, v = network(widths, 1, generator, 1.2)
    frames = balanced_network(layers).frames
    other = scaled(balanced_geodesic(layers, v), 1.3)
    ends = balanced_network(other).frames
    cosines = torch.stack([(a * b).sum() for a, b in zip(frames, ends, strict=True)])
    angles = min(
        sum(w * t * t for w, t in zip(weights, torch.acos(s * cosines), strict=True))
        for s in (1.0, -1.0)
    )
    depth = len(weights) - 1
    phi = (angles / depth).sqrt()
    a, b = size(layers), size(other)
    expected = (a * a + b * b - 2.0 * a * b * torch.cos(phi)).sqrt()
    assert_close(balanced_distance(layers, other), expected, ops=1000)
    arrived = balanced_geodesic(layers, balanced_logarithm(layers, other))
    assert_same(arrived, other)


@pytest.mark.parametrize(("widths", "rank"), [((9, 7, 8), 2), ((8, 3, 9, 3), 2)])
def test_the_box_holds_all(widths, rank, generator, monkeypatch):
    layers, v = network(widths, rank, generator)
    end = balanced_geodesic(layers, v)
    found = balanced_logarithm(layers, end)
    assert aim_at(balanced_network(layers), balanced_network(end))[1].frames.shape[-2] == 2 * rank
    monkeypatch.setattr(
        LayerBox, "around", classmethod(lambda cls, widths, *_: cls(tuple(widths), None))
    )
    assert_same(found, balanced_logarithm(layers, end))
    assert_same(found, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("widths", "rank"), [((3, 4, 2), 2), ((3, 2, 3), 1)], ids=str)
def test_batches_and_dtypes(widths, rank, dtype, generator):
    layers, v = network(widths, rank, generator, dtype=dtype, batch=(3,))
    v = scaled(v, torch.tensor([1.0, 0.0, 0.4]))
    end = balanced_geodesic(layers, v)
    found = balanced_logarithm(layers, end)
    assert {w.dtype for w in found} == {dtype}
    ops = RTOL_OPS if dtype == torch.float64 else 1000.0
    assert_same(found, v, ops=ops)
    fan = balanced_geodesic([w[0] for w in layers], [a[0] for a in v], [1.0, 0.5])
    assert_close(balanced_distance([w[0] for w in layers], fan), size([a[0] for a in v])
                 * torch.tensor([1.0, 0.5]), ops=ops)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("widths", "rank"), [((3, 3, 3), 2), ((4, 3), 2), ((3, 4, 2, 3), 2)])
def test_networks_at_random_are_joined(widths, rank, generator):
    """Frames drawn independently: most of a turn away."""
    one, two = (
        dln.random_balanced(widths, rank=rank, spectrum=[1.3, 0.6], generator=generator,
                            dtype=torch.float64)
        for _ in range(2)
    )  # fmt: skip
    v = balanced_logarithm(one, two)
    assert float(size(v)) > 1.5
    assert_same(balanced_geodesic(one, v), two, condition=20)


def test_nearer_goals_lead_to_the_far_one(generator, monkeypatch):
    """As if every direct shot failed."""
    layers, v = network((3, 3, 3), 2, generator, 0.8)
    end = balanced_geodesic(layers, v)
    module = "dln_geometry.geometry.geodesics.shooting._correct"
    correct, calls = pkgutil.resolve_name(module), []

    def failing(aim, velocity, rtol):
        calls.append(aim.transported)
        found, done, missed = correct(aim, velocity, rtol)
        return (found, done, missed) if len(calls) > 2 else (found, done & False, missed)

    monkeypatch.setattr(module, failing)
    assert_same(balanced_logarithm(layers, end), v)
    assert calls[:3] == [False, True, True]
    assert len(calls) > 3

    def hopeless(aim, velocity, rtol):
        n = len(velocity)
        return velocity, torch.zeros(n, dtype=torch.bool), torch.full((n,), 0.3)

    monkeypatch.setattr(module, hopeless)
    with pytest.raises(GeodesicError, match=r"from factors to other: .* next goal by 3.0e-01"):
        balanced_logarithm(layers, end)
    ends = [torch.stack((w, w)) for w in end]
    with pytest.raises(GeodesicError, match=r"from factors to other \(sample 0 of the batch\)"):
        balanced_logarithm(layers, ends)


@pytest.mark.parametrize("length", [1e-3, 0.5, 3.0])
def test_a_first_shot_that_hits_is_not_made_worse(length, generator):
    """The space is flat, the guess exact, and the coarse first shot misses by its own error."""
    layers = (0.8 * torch.linalg.qr(torch.randn(4, 4, generator=generator).double()).Q,)
    z = torch.randn(4, 4, generator=generator).double()
    # Keeps the sign of the determinant.
    z = length * (0.2 * z / z.norm() + layers[0])
    assert_same(balanced_logarithm(layers, (layers[0] + z,)), (z,), scale=length)


@pytest.mark.parametrize("transported", [False, True])
def test_every_sample_is_shot_on_its_own(transported, generator):
    """Near and far goals, together and alone, and a velocity that does not arrive."""
    layers, v = network((3, 3, 3), 2, generator, 1.0)
    ends = balanced_geodesic(layers, v, [0.05, 1.0])
    # The second goal is half the network, and its velocity is made to pass zero.
    ends = [torch.stack((e[0], 0.5 * w, e[1])) for w, e in zip(layers, ends, strict=True)]
    expected = [torch.stack((0.05 * a, -0.5 * w, a)) for w, a in zip(layers, v, strict=True)]
    assert_same(balanced_logarithm(layers, ends), expected)
    aim = replace(
        aim_at(balanced_network(layers), balanced_network(ends))[1], transported=transported
    )
    velocity = aim.guess()
    velocity[1] *= 4.0
    miss, distance, arrives = aim.shoot(velocity, 1e-10)
    assert arrives.tolist() == [True, False, True]
    for i in (0, 2):
        one = aim.of_samples(torch.tensor([i]))
        alone = one.shoot(velocity[i : i + 1], 1e-10)
        assert_close(alone[0][0], miss[i], ops=RTOL_OPS, scale=1.0)
        assert_close(alone[1][0], distance[i], ops=RTOL_OPS, scale=1.0)


def test_what_no_geodesic_joins(generator):
    layers, _ = network((2, 2, 3, 2), 2, generator)
    flip = torch.diag(torch.tensor([1.0, -1.0]).double())
    for p in (0, 1, 3):
        end = list(layers)
        if p > 0:
            end[p - 1] = flip @ end[p - 1]
        if p < 3:
            end[p] = end[p] @ flip
        with pytest.raises(ValueError, match="must lie on one component of the balanced networks"):
            balanced_logarithm(layers, end)
    # All of them turned over lie on the same component.
    end = [flip @ layers[0] @ flip, layers[1] @ flip, flip @ layers[2]]
    aim_at(balanced_network(layers), balanced_network(end))
    point, _ = network((3, 2, 2), 1, generator)
    with pytest.raises(GeodesicError, match="no geodesic was found"):
        balanced_distance(point, scaled(point, -1.0))


def test_what_does_not_fit_is_refused(generator):
    layers, _ = network((3, 4, 3), 2, generator)
    for other in (network((3, 3, 3), 2, generator)[0], network((3, 4, 3), 1, generator)[0],
                  [w.float() for w in layers]):  # fmt: skip
        with pytest.raises(ValueError, match="must have the same widths, rank, dtype"):
            balanced_logarithm(layers, other)
    with pytest.raises(ValueError, match="other must be balanced"):
        balanced_distance(layers, (layers[0], 2 * layers[1]))
    with pytest.raises(ValueError, match="rtol must lie between"):
        balanced_distance(layers, layers, rtol=0.0)
    assert_close(balanced_distance(layers, layers), 0.0, scale=1.0, ops=100)
