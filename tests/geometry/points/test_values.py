"""Points as values: indexing, copies, moves between types, and what gradients hang on."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.points import Network
from dln_geometry.testing import assert_close

F64 = torch.float64
WIDTHS = (4, 5, 3, 6)


def matrix(generator, *batch, requires_grad=False):
    x = torch.randn(*batch, 5, 4, generator=generator, dtype=F64)
    return x.requires_grad_(requires_grad)


def kinds(x, depth=3.0, rank=None):
    p = dln.EndToEnd.of(x, depth, rank=rank)
    return [p, dln.Collapsed.of(p)]


INDICES = [1, -1, slice(1, 3), (slice(None), 0), (Ellipsis, 1), [2, 0], (2, 1)]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("depth", [1.0, 2.6, math.inf])
def test_an_index_takes_points_of_the_batch(index, depth, generator):
    x = matrix(generator, 3, 2)
    expected = x[index] if Ellipsis not in np.atleast_1d(index) else x[..., 1, :, :]
    for p in kinds(x, depth):
        taken = p[index]
        assert type(taken) is type(p)
        assert (taken.depth, taken.normalized) == (p.depth, p.normalized)
        assert_close(taken.matrix, expected, ops=300)
        assert taken.batch_shape == expected.shape[:-2]
        assert_close(taken.singular_values, torch.linalg.svdvals(expected), ops=300, scale=5.0)
    mask = torch.tensor([True, False, True])
    for p in kinds(x, depth):
        assert_close(p[mask].matrix, x[mask], ops=300)


@pytest.mark.parametrize("index", [2, (0, 0, 0), "a", (0, 5)])
def test_an_index_beyond_the_batch_is_refused(index, generator):
    for p in kinds(matrix(generator, 2, 3)):
        with pytest.raises((IndexError, TypeError)):
            p[index]


def test_length_and_iteration_follow_the_first_dimension(generator):
    x = matrix(generator, 3, 2)
    for p in kinds(x):
        assert len(p) == 3
        assert [q.batch_shape for q in p] == [(2,)] * 3
        assert_close(torch.stack([q.matrix for q in p]), x, ops=300)
    for p in kinds(x[0, 0]):
        assert p
        with pytest.raises(TypeError, match="has no length"):
            len(p)
        with pytest.raises(IndexError, match="has no batch"):
            p[0]


def test_types_batches_and_fields_are_changed_in_copies(generator):
    x = matrix(generator, 3)
    for p in kinds(x, 2.6):
        single = p.to(torch.float32)
        assert (single.dtype, single.depth) == (torch.float32, 2.6)
        assert single.to("cpu").device.type == "cpu"
        assert p.expand((2, 3)).batch_shape == (2, 3)
        assert p.expand((2, 3)).flatten().batch_shape == (6,)
        assert p[0].flatten().batch_shape == (1,)
        assert p.replace(depth=5).depth == 5.0
        deep = p.replace(depth=math.inf)
        assert deep.normalized
        assert not deep.replace(depth=4).normalized
        assert p.replace(normalized=True).replace(depth=4).normalized
        with pytest.raises(TypeError, match="has the fields"):
            p.replace(width=3)
    p = dln.EndToEnd.of(x, 3)
    assert_close(p.replace(s=2 * p.s).matrix, 2 * x, ops=300)


def test_an_array_of_a_point_is_its_matrix(generator):
    x = matrix(generator, 2)
    layers = dln.random_balanced(WIDTHS, generator=generator, dtype=F64, batch=(2,))
    for p, expected in [*((p, x) for p in kinds(x)), (layers, dln.end_to_end(layers))]:
        np.testing.assert_allclose(np.asarray(p), expected.numpy(), rtol=1e-12, atol=1e-12)
        assert np.asarray(p, dtype=np.float32).dtype == np.float32


def test_equality_is_identity(generator):
    x = matrix(generator)
    points = [*kinds(x), *kinds(x), dln.random_balanced(WIDTHS), dln.random_balanced(WIDTHS)]
    for i, p in enumerate(points):
        for j, q in enumerate(points):
            assert (p == q) is (i == j)
    assert len(set(points)) == len(points)


def test_reprs_are_one_line(generator):
    x = matrix(generator, 3)
    p, c = kinds(x, math.inf, rank=2)
    network = dln.random_balanced(WIDTHS, batch=(2, 7))
    assert repr(p) == "EndToEnd(5 x 4, rank 2, depth inf, batch (3,), float64, cpu)"
    assert repr(c[0]) == "Collapsed(5 x 4, rank 2, depth inf, float64, cpu)"
    assert repr(network) == (
        "Network(6 x 4, rank 3, depth 3, widths (4, 5, 3, 6), batch (2, 7), float32, cpu)"
    )
    named = dln.EndToEnd.of(x, 2.5, normalized=True)
    assert "depth 2.5, normalized, batch" in repr(named)
    for value in (p, c, network):
        assert value._repr_html_().count("<td>") >= 5
        assert "tensor" not in value._repr_html_()


def test_singular_values_may_be_called_as_before(generator):
    c = dln.Collapsed.of(dln.EndToEnd.of(matrix(generator), 3))
    assert torch.equal(c.singular_values(), c.singular_values)
    assert type(c.singular_values()) is torch.Tensor
    assert type(2 * c.singular_values) is torch.Tensor
    assert repr(c.singular_values).startswith("tensor(")


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("depth", [2.0, 3.7])
def test_copies_keep_what_gradients_hang_on(rank, depth, generator):
    """At equal singular values the gradient exists in the matrix alone, not in its frames."""
    u, v = (torch.linalg.qr(matrix(generator, 2)[..., :3]).Q for _ in range(2))
    s = torch.tensor([2.0, 2.0, 1.0], dtype=F64)
    x = ((u * s) @ torch.linalg.qr(v.mT[..., :3]).Q.mT).requires_grad_()
    q = dln.EndToEnd.of(1.7 * x[0].detach() + 0.1 * x[1].detach(), depth, rank=rank)

    def gradient(move):
        p = move(dln.EndToEnd.of(x, depth, rank=rank))
        return torch.autograd.grad(dln.distance(p, q).sum(), x)[0][0]

    plain = gradient(lambda p: p[0])
    assert torch.isfinite(plain).all()
    moves = {
        "select": lambda p: p.select(0),
        "slice": lambda p: p[:1],
        "iterate": lambda p: next(iter(p)),
        "to": lambda p: p[0].to(F64),
        "expand": lambda p: p[0].expand((1,)),
        "flatten": lambda p: p[0].flatten(),
        "depth": lambda p: p[0].replace(depth=9).replace(depth=depth),
        "normalized": lambda p: p[0].replace(normalized=True).replace(normalized=False),
    }
    for move in moves.values():
        assert_close(gradient(move), plain, ops=1000, scale=float(plain.abs().max()))
    p = dln.EndToEnd.of(x, depth, rank=rank)
    assert p.detach().source is None
    assert not p.detach().matrix.requires_grad
    assert p.replace(s=2 * p.s).source is None


def test_points_survive_pickle_and_deepcopy(generator):
    layers = dln.random_balanced(WIDTHS, generator=generator)
    for p in [*kinds(matrix(generator), 2.6), layers]:
        for q in (pickle.loads(pickle.dumps(p)), copy.deepcopy(p)):
            assert type(q) is type(p)
            assert torch.equal(q.matrix, p.matrix)
            assert (q.depth, q.normalized) == (p.depth, p.normalized)


def test_a_network_is_a_tuple_of_layers(generator):
    layers = dln.random_balanced(WIDTHS, rank=2, generator=generator, dtype=F64)
    first, second, third = layers
    assert isinstance(layers, tuple)
    assert len(layers) == 3
    assert layers[0] is first
    assert layers[1:] == (second, third)
    assert layers.layers == (first, second, third)
    assert type(layers.layers) is tuple
    assert dln.Network.of(layers) is layers
    assert layers.widths == WIDTHS
    assert (layers.depth, layers.shape, layers.rank) == (3.0, (6, 4), 2)
    x = dln.end_to_end(layers)
    assert_close(layers.matrix, x)
    assert_close(layers.singular_values, torch.linalg.svdvals(x)[:2], ops=300)
    assert_close(layers.spectrum**3, layers.singular_values)
    for p, w in enumerate(layers):
        q = layers.frames[p + 1] * layers.spectrum
        assert_close(q @ layers.frames[p].mT, w, ops=300)
    point = layers.point()
    assert_close(point.matrix, x, ops=300)
    assert point.rank == 2


def test_networks_that_are_not_balanced_have_values_but_no_frames(generator):
    shapes = list(zip(WIDTHS[1:], WIDTHS, strict=False))
    layers = [torch.randn(2, *shape, generator=generator, dtype=F64) for shape in shapes]
    network = dln.Network.of(layers)
    assert not network.is_balanced
    x = dln.end_to_end(layers)
    assert_close(network.singular_values, torch.linalg.svdvals(x)[..., :3], ops=300, scale=9.0)
    with pytest.raises(ValueError, match="factors must be balanced, got moments of relative size"):
        _ = network.frames
    assert torch.equal(network.select(1)[0], layers[0][1])
    changed = network.replace({0: 2 * layers[0]})
    assert_close(changed.matrix, 2 * x)
    assert network.to(torch.float32).dtype == torch.float32
    with pytest.raises(ValueError, match="must chain"):
        network.replace({0: layers[0].mT})
    with pytest.raises(IndexError, match="no batch"):
        network.select(0).select(0)
    with pytest.raises(ValueError, match="must chain"):
        dln.Network.of(layers[::-1])


def test_frames_are_made_once_and_anew_after_a_change_in_place(generator):
    layers = dln.random_balanced(WIDTHS, generator=generator, dtype=F64)
    assert layers.frames is layers.frames
    before = layers.spectrum
    for w in layers:
        w.mul_(2.0)
    assert_close(layers.spectrum, 2 * before)
    layers[1][0, 0] = math.nan
    with pytest.raises(ValueError, match="must be finite"):
        dln.moments(layers)


def test_frames_that_derivatives_go_through_are_not_kept(generator):
    layers = [w.requires_grad_() for w in dln.random_balanced(WIDTHS, generator=generator)]
    network = dln.Network.of(layers)
    with torch.no_grad():
        assert not network.spectrum.requires_grad
    for _ in range(2):
        (gradient,) = torch.autograd.grad(network.spectrum.sum(), layers[0])
        assert torch.isfinite(gradient).all()


def test_networks_go_through_transforms(generator):
    layers = dln.random_balanced((3, 3, 3), generator=generator, dtype=F64)

    def square(w):
        return 0.5 * dln.end_to_end(w).square().sum()

    found = torch.func.grad(square)(layers)
    assert type(found) is tuple
    x = dln.end_to_end(layers)
    for w, expected in zip(found, dln.lift(layers, x), strict=True):
        assert_close(w, expected, ops=300)
    _, pushed = torch.func.jvp(dln.end_to_end, (layers.layers,), (found,))
    assert_close(pushed, dln.cometric(layers.point(), x), ops=300, scale=2.0)


@pytest.mark.parametrize(
    "call",
    [
        dln.moments,
        dln.is_balanced,
        dln.balance,
        lambda w: dln.tangent(w, w),
        lambda w: dln.Collapsed.of(w).matrix,
        dln.vertical_frame,
        lambda w: dln.balanced_geodesic(w, dln.tangent(w, w), 0.3),
        lambda w: dln.balancing_flow(w, 0.5),
    ],
)
def test_a_network_is_accepted_wherever_factors_are(call, generator):
    layers = dln.random_balanced(WIDTHS, generator=generator, dtype=F64)
    found, expected = call(Network.of(layers)), call(list(layers))
    if isinstance(found, torch.Tensor):
        found, expected = (found,), (expected,)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


@pytest.mark.parametrize("what", ["float", "quantum:1", torch.int64, "cuda:999"])
def test_moves_to_what_is_no_type_and_no_device_are_refused(what):
    for point in (dln.EndToEnd.of(torch.eye(2), 3), dln.random_balanced((2, 3, 2), generator=0)):
        with pytest.raises(TypeError, match=r"must (get|be) a"):
            point.to(what)
