from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close

F64 = torch.float64


def plain(s, kind):
    """The definitions, one spectrum at a time."""
    s = np.asarray(s)
    if not s.any():
        return 0.0
    if kind == "stable":
        return ((s / s.max()) ** 2).sum()
    if kind == "numerical":
        return float((s > s.max() * len(s) * np.finfo(s.dtype).eps).sum())
    p = s[s > 0] / s.sum()
    return math.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize("kind", ["entropy", "stable", "numerical"])
def test_batches_are_the_definitions_one_by_one(kind, rng):
    s = np.abs(rng.normal(size=(2, 3, 4)))
    s[0, 1, 2:] = 0.0
    s[1, 2] = 0.0
    s[1, 0] *= 1e-300
    found = dln.effective_rank(s, kind)
    expected = [[plain(row, kind) for row in part] for part in s]
    assert_close(found, torch.tensor(expected, dtype=F64))


@pytest.mark.parametrize("depth", [1, 2.5, 3, math.inf])
def test_points_of_every_kind_agree(depth, generator):
    pair = dln.Collapsed.random(
        (5, 4), 3, depth, spectrum=[2.0, 1.0, 0.3], generator=generator, dtype=F64
    )
    for kind in ("entropy", "stable", "numerical"):
        expected = plain([2.0, 1.0, 0.3], kind)
        for x in (pair, pair.point()):
            assert_close(dln.effective_rank(x, kind), torch.tensor(expected, dtype=F64))
    net = dln.random_balanced((4, 3, 5), spectrum=[2.0, 1.0, 0.3], generator=generator, dtype=F64)
    assert_close(
        dln.effective_rank(net), torch.tensor(plain([2.0, 1.0, 0.3], "entropy"), dtype=F64)
    )


@pytest.mark.parametrize("kind", ["entropy", "stable"])
def test_gradients(kind, generator):
    s = torch.rand(3, 4, generator=generator, dtype=F64).add(0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: dln.effective_rank(s, kind), s)
    x = torch.randn(4, 3, generator=generator, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dln.effective_rank(dln.EndToEnd.of(x, 2.5), kind), x)


def test_the_zero_matrix_has_finite_gradients_of_the_stable_rank():
    s = torch.zeros(3, dtype=F64, requires_grad=True)
    dln.effective_rank(s, "stable").backward()
    assert s.grad.isfinite().all()


def test_numerical_rank_follows_its_tolerance():
    s = [1.0, 1e-3, 1e-9]
    assert dln.effective_rank(s, "numerical", rtol=1e-4) == 2
    assert dln.effective_rank(s, "numerical", rtol=0.0) == 3
    with pytest.raises(ValueError, match="rtol must be below 1, and go with kind"):
        dln.effective_rank(s, rtol=0.1)
    with pytest.raises(ValueError, match="give a matrix as its EndToEnd"):
        dln.effective_rank(np.array([[1.0, -1.0]]))
