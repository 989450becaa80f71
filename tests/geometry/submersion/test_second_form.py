from __future__ import annotations

import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.curvature import riemann_curvature
from dln_geometry.geometry.points import balanced_frames, chain_from_frames
from dln_geometry.geometry.submersion import horizontal_lift, integrability, second_fundamental_form
from dln_geometry.testing import assert_close, assert_order

CASES = [
    ((3, 3, 3), 3),
    ((3, 3, 3, 3), 3),
    ((2, 4, 3, 5), 2),
    ((3, 4, 2, 4), 2),
    ((3, 3, 3), 2),
    ((3, 4, 4, 5), 2),
    ((2, 1, 3), 1),
    ((4, 3), 2),
]
LAYERED = [case for case in CASES if len(case[0]) > 2]
# With hidden layers that can turn.
TURNING = [case for case in LAYERED if max(case[0][1:-1]) > 1]
STEPS = [0.04, 0.02, 0.01, 0.005]


def network(widths, rank, generator):
    """Return balanced factors with two equal singular values, and two tangent vectors."""
    spectrum = torch.tensor([1.5, 1.5, 0.7], dtype=torch.float64)[:rank]
    layers = dln.random_balanced(widths, rank=rank, spectrum=spectrum, generator=generator)
    return layers, *(dln.tangent(layers, noise(layers, generator)) for _ in range(2))


def noise(layers, generator):
    return [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in layers]


def moved(layers, v, step, rank):
    """Return a balanced network that is at W + step v up to second order."""
    frames, lam = balanced_frames(
        dln.balance([w + step * a for w, a in zip(layers, v, strict=True)])
    )
    return chain_from_frames([q[..., :rank] for q in frames], lam[..., :rank] ** len(layers))


def dot(v, w):
    return sum((a * b).sum() for a, b in zip(v, w, strict=True))


def size(v):
    return float(dot(v, v)) ** 0.5


def difference(function, layers, v, w, step, rank):
    """Return the derivative along v, by a central difference, and the velocity that it had."""
    ahead, behind = (moved(layers, v, s, rank) for s in (step, -step))
    velocity = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
    parts = zip(function(ahead, w), function(behind, w), strict=True)
    return [(a - b) / (2 * step) for a, b in parts], velocity


@pytest.mark.parametrize(("widths", "rank"), CASES)
def test_second_form_is_normal_symmetric_and_the_derivative_of_the_projection(
    widths, rank, generator
):
    layers, v, w = network(widths, rank, generator)
    exact = second_fundamental_form(layers, v, w)
    assert size(dln.tangent(layers, exact)) < 1e-13 * size(v) * size(w)
    for a, b in zip(exact, second_fundamental_form(layers, w, v), strict=True):
        assert_close(a, b, scale=1 + size(exact))
    errors = []
    for step in STEPS:
        turned, velocity = difference(dln.tangent, layers, v, w, step, rank)
        wanted = second_fundamental_form(layers, velocity, w)
        errors.append(size([a - b for a, b in zip(turned, wanted, strict=True)]))
    assert_order(STEPS, errors, 2)


@pytest.mark.parametrize(("widths", "rank"), TURNING)
def test_integrability_is_the_derivative_of_the_projections(widths, rank, generator):
    layers, v, w = network(widths, rank, generator)
    v = dln.horizontal(layers, v)
    errors = []
    for step in STEPS:
        level, velocity = difference(dln.horizontal, layers, v, w, step, rank)
        upright, _ = difference(dln.vertical, layers, v, w, step, rank)
        parts = zip(dln.vertical(layers, level), dln.horizontal(layers, upright), strict=True)
        turned = [a + b for a, b in parts]
        wanted = integrability(layers, velocity, w)
        errors.append(size([a - b for a, b in zip(turned, wanted, strict=True)]))
    assert_order(STEPS, errors, 2)


@pytest.mark.parametrize(("widths", "rank"), CASES)
def test_integrability_is_antisymmetric_and_skew_adjoint(widths, rank, generator):
    layers, v, w = network(widths, rank, generator)
    x, y = dln.horizontal(layers, v), dln.horizontal(layers, w)
    u = dln.vertical(layers, w)
    scale = 1 + size(v) * size(w)
    for a, b in zip(integrability(layers, x, y), integrability(layers, y, x), strict=True):
        assert_close(a, -b, scale=scale, ops=1000)
    assert_close(
        dot(integrability(layers, x, y), u), -dot(integrability(layers, x, u), y), scale=scale**2
    )


@pytest.mark.parametrize(("widths", "rank"), LAYERED)
def test_curvature_below_is_that_of_gauss_and_oneill(widths, rank, generator):
    """Against the curvature of the cometric, which is made without layers."""
    layers, v, w = network(widths, rank, generator)
    x, y = dln.horizontal(layers, v), dln.horizontal(layers, w)
    form = second_fundamental_form
    gauss = dot(form(layers, x, x), form(layers, y, y)) - dot(
        form(layers, x, y), form(layers, x, y)
    )
    turn = integrability(layers, x, y)
    a, b = dln.pushforward(layers, x), dln.pushforward(layers, y)
    p = dln.EndToEnd.of(dln.end_to_end(layers), len(layers), rank=rank)
    expected = riemann_curvature(p, a, b, b, a)
    assert_close(gauss + 3 * dot(turn, turn), expected, scale=1 + size(x) ** 2 * size(y) ** 2)


@pytest.mark.parametrize(("widths", "rank"), CASES)
def test_horizontal_lift_inverts_the_pushforward(widths, rank, generator):
    layers, v, _ = network(widths, rank, generator)
    x = dln.horizontal(layers, v)
    back = horizontal_lift(layers, dln.pushforward(layers, x))
    for a, b in zip(back, x, strict=True):
        assert_close(a, b, scale=size(x), ops=1000)


def test_vectors_that_do_not_match_are_refused(generator):
    layers, v, _ = network((3, 3, 3), 3, generator)
    for function in (second_fundamental_form, integrability):
        with pytest.raises(ValueError, match="v must hold one matrix for each of 2 layers"):
            function(layers, v[:1], v)
        with pytest.raises(ValueError, match="factors must be balanced"):
            function((layers[0], 2 * layers[1]), v, v)
