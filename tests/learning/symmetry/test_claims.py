from __future__ import annotations

import math

import pytest
import torch

from dln_geometry.learning import (
    Gauge,
    Rescale,
    Rotation,
    Scale,
    Symmetry,
    SymmetryError,
    Translation,
    check_symmetric,
    is_symmetric,
    symmetry_residual,
)
from dln_geometry.testing import assert_order
from tests.learning.symmetry.routes import F64


def _loss(p):
    """Has rescale, gauge (of w1 and w2), scale of z and a translation of t; nothing of k."""
    x = torch.arange(6, dtype=p["w1"].dtype).reshape(3, 2).cos()
    out = p["w2"] @ (p["w1"] @ x + p["b1"].unsqueeze(1))
    unit = p["z"] / p["z"].norm(dim=0)
    return (
        out.square().mean()
        + unit.sin().sum()
        + torch.log_softmax(p["t"], 0)[2]
        + p["k"].square().sum()
    )


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_symmetries_are_told_from_their_absence(dtype, params):
    params = {name: q.to(dtype) for name, q in params.items()}
    there = [
        Gauge(["w1", "b1"], "w2"),
        Rescale(["w1", "b1"], "w2", axes=(0, 1)),
        Scale("z", axis=1),
        Scale("z"),
        Translation("t", torch.ones(6)),
        Rotation("k", axis=2),
        Rotation("w2"),
    ]
    absent = [
        Gauge("w1", "w2"),
        Scale("z", axis=0),
        Scale("k"),
        Translation("t", torch.arange(6)),
        Rotation("z"),
        Rescale("w1", "w2", axes=(0, 1)),
    ]
    for symmetry in there:
        assert is_symmetric(_loss, symmetry, params)
        check_symmetric(_loss, symmetry, params)
        residual = symmetry_residual(_loss, symmetry, params)
        assert residual < 1000 * torch.finfo(dtype).eps
    for symmetry in absent:
        assert not is_symmetric(_loss, symmetry, params)
        with pytest.raises(SymmetryError, match="residual of") as caught:
            check_symmetric(_loss, symmetry, params)
        assert caught.value.residual == symmetry_residual(_loss, symmetry, params) > 1e-4


def test_residual_measures_how_much_is_broken(params):
    """A normalisation with an eps of its own keeps the scale up to that eps."""
    errors, sizes = [], [1e-2, 1e-3, 1e-4, 1e-5]
    for eps in sizes:

        def loss(p, eps=eps):
            return (p["z"] / (p["z"].square().sum() + eps).sqrt()).sin().sum()

        errors.append(symmetry_residual(loss, Scale("z"), params))
        assert is_symmetric(loss, Scale("z"), params, rtol=eps)
    assert_order(sizes, errors, 1)


def test_critical_points_and_infinite_losses(params):
    ones = {"t": torch.ones(6, dtype=F64)}
    zero = {"t": torch.zeros(6, dtype=F64)}
    assert symmetry_residual(lambda p: p["t"].sum() * 0, Scale("t"), ones) == 0
    # At the minimum both the loss and its slope vanish, and yet it is no symmetry.
    moved = Translation("t", torch.ones(6))
    assert symmetry_residual(lambda p: (p["t"] - 1).square().sum(), moved, ones) == math.inf
    assert symmetry_residual(lambda p: 1 / p["t"].sum(), Scale("t"), zero) == math.inf


def test_bad_claims_are_refused(params):
    wrong = [
        (lambda p, s: {"t": p["t"] + 1 + s}, ValueError, "identity at s = 0, got a change of 't'"),
        (lambda p, s: {"z": p["t"] * s.exp()}, ValueError, "must return parameters of .* got 'z'"),
        (lambda p, s: {"t": p["t"].sum() * s.exp()}, ValueError, r"got 't' of \(\)"),
        (lambda p, s: [p["t"]], TypeError, "action must return a dict of tensors, got list"),
    ]
    point = {"t": params["t"].detach()}
    for action, error, message in wrong:
        with pytest.raises(error, match=message):
            is_symmetric(lambda p: p["t"].square().sum(), Symmetry(action), point)
    with pytest.raises(TypeError, match="symmetry must be a Symmetry, got str"):
        is_symmetric(_loss, "scale", params)
    with pytest.raises(ValueError, match="at least one tensor, got none"):
        is_symmetric(_loss, Scale("t"), {})
    with pytest.raises(ValueError, match=r"real scalar of shape \(\), got \(6,\)"):
        is_symmetric(lambda p: p["t"], Scale("t"), point)
    leaves = {"t": point["t"].clone().requires_grad_()}
    assert is_symmetric(lambda p: p["t"][0] / p["t"].norm(), Scale("t"), leaves)
    with pytest.raises(ValueError, match="rtol must be positive"):
        is_symmetric(_loss, Scale("z"), params, rtol=0)
