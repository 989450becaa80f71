from __future__ import annotations

import math

import pytest
import torch

from dln_geometry.learning import Gauge, Rescale, Rotation, Scale, Symmetry, Translation
from dln_geometry.testing import assert_close
from tests.learning.symmetry.routes import F64, random


def _symmetries(generator):
    turn = random((4, 4), generator)
    return {
        "translation": (Translation("t", random((6,), generator)), ()),
        "translation, broadcast": (Translation("w2", torch.ones(5, 1)), ()),
        "translation, axis": (Translation("k", axis=-2), (3, 2)),
        "scale": (Scale(["w1", "b1"]), ()),
        "scale, units": (Scale(("w1", "b1"), axis=0), (4,)),
        "scale, last axis": (Scale("k", axis=-1), (2,)),
        "rescale": (Rescale(["w1", "b1"], "w2"), ()),
        "rescale, units": (Rescale(["w1", "b1"], "w2", axes=(0, 1)), (4,)),
        "rescale, flattened": (Rescale("b1", "z", axes=(0, 0)), (4,)),
        "rotation": (Rotation("w1", turn - turn.T), ()),
        "rotation, joint": (Rotation(["k", "w2"], turn - turn.T, axis=1), ()),
        "rotation, group": (Rotation("k", axis=1), (4, 4)),
        "gauge": (Gauge(["w1", "b1"], "w2", turn), ()),
        "gauge, group": (Gauge(["w1", "b1"], ["w2", "k"]), (4, 4)),
        "gauge, keys": (Gauge("w1", "b1", turn, axes=(0, 0)), ()),
    }


NAMES = list(_symmetries(torch.Generator().manual_seed(0)))


@pytest.fixture(params=NAMES)
def case(request, generator):
    return _symmetries(generator)[request.param]


def test_generator_is_the_derivative_of_the_action(case, params, generator):
    symmetry, shape = case
    assert symmetry.shape(params) == shape
    s = random(shape, generator)
    still = symmetry.action(params, 0.0)
    assert all(torch.equal(still[name], q) for name, q in params.items())
    field = symmetry.field(params, s)
    derivative = torch.func.jvp(
        lambda t: symmetry.action(params, t), (torch.zeros(shape, dtype=F64),), (s,)
    )[1]
    for name in params:
        assert_close(field[name], derivative[name], scale=10)
    # Moved is what the action moves: the base class takes the generator from it.
    plain = Symmetry(symmetry.moved, shape=shape)
    for name, x in plain.field(params, s).items():
        assert_close(x, field[name], scale=10)


def test_pairing_is_the_product_with_the_generators(case, params, generator):
    symmetry, shape = case
    covector = {name: random(q.shape, generator) for name, q in params.items()}
    products = symmetry.pair(params, covector)
    assert products.shape == shape
    s = random(shape, generator)
    field = symmetry.field(params, s)
    expected = sum((covector[name] * field[name]).sum() for name in params)
    assert_close((products * s).sum(), expected, scale=30)
    assert_close(Symmetry(symmetry.moved, shape=shape).pair(params, covector), products, scale=30)
    assert_close(symmetry.conserved(params), symmetry.pair(params, params), scale=30)


def test_generators_have_the_degree_that_they_claim(case, params, generator):
    symmetry, shape = case
    s = random(shape, generator)
    other = {name: random(q.shape, generator) for name, q in params.items()}
    mixed = symmetry.field({n: 2 * q - 3 * other[n] for n, q in params.items()}, s)
    one, two = symmetry.field(params, s), symmetry.field(other, s)
    for name in params:
        total = 2 * one[name] - 3 * two[name] if symmetry.degree else one[name]
        assert_close(mixed[name], total, scale=30)


def test_action_composes(case, params, generator):
    """A one-parameter group: s = 0.3, then 0.5 is s = 0.8."""
    symmetry, shape = case
    s = random(shape, generator)
    twice = symmetry.action(symmetry.action(params, 0.3 * s), 0.5 * s)
    for name, q in symmetry.action(params, 0.8 * s).items():
        assert_close(twice[name], q, ops=1000, scale=max(float(q.abs().max()), 10))


def test_conserved_quantities_by_hand(params):
    w1, b1, w2 = params["w1"], params["b1"], params["w2"]
    first = w1 @ w1.T + torch.outer(b1, b1)
    assert_close(Gauge(["w1", "b1"], "w2").conserved(params), first - w2.T @ w2)
    units = Rescale(["w1", "b1"], "w2", axes=(0, 1)).conserved(params)
    assert_close(units, (first - w2.T @ w2).diagonal())
    assert_close(Rescale(["w1", "b1"], "w2").conserved(params), units.sum())
    assert_close(Scale("w1", axis=1).conserved(params), w1.square().sum(0))
    flattened = Rescale("b1", "z", axes=(0, 0)).conserved(params)
    assert_close(flattened, b1**2 - params["z"].reshape(4, -1).square().sum(1))
    assert_close(Translation("k", axis=1).conserved(params), params["k"].sum(1))
    assert_close(Rotation("w1").conserved(params), torch.zeros(4, 4), scale=10)


def test_bad_input_is_refused(params):
    with pytest.raises(TypeError, match="action must be a function"):
        Symmetry(3)
    with pytest.raises(ValueError, match="degree must be 0, 1 or None"):
        Symmetry(lambda p, s: p, degree=2)
    with pytest.raises(ValueError, match="either a direction or an axis"):
        Translation("t")
    with pytest.raises(ValueError, match="direction must not be zero"):
        Translation("t", torch.zeros(6))
    with pytest.raises(ValueError, match="direction must be finite"):
        Translation("t", [math.nan])
    with pytest.raises(ValueError, match="must be antisymmetric"):
        Rotation("w1", torch.eye(4))
    with pytest.raises(ValueError, match=r"shape \(d, d\), got \(4, 3\)"):
        Gauge("w1", "w2", torch.ones(4, 3))
    with pytest.raises(ValueError, match="no parameter in common"):
        Rescale(["w1", "b1"], "w1")
    with pytest.raises(ValueError, match="none twice"):
        Scale(["w1", "w1"])
    with pytest.raises(TypeError, match="names must be a name or a sequence"):
        Scale(3)
    bad = [
        (Scale("missing"), "one of the parameters"),
        (Rescale("w1", "missing"), "one of the parameters"),
        (Scale(["w1", "w2"], axis=0), "'w2' must have 4 entries along axis 0, got 5"),
        (Scale("w1", axis=2), "axis must be one of the 2"),
        (Rescale("w1", "t", axes=(0, 0)), "'t' must have a multiple of 4 entries"),
        (Gauge("w1", "w2", torch.ones(3, 3)), r"generator must have shape \(4, 4\)"),
        (Translation("t", torch.ones(5)), "direction must broadcast"),
    ]
    for symmetry, message in bad:
        with pytest.raises(ValueError, match=message):
            symmetry.conserved(params)
