from __future__ import annotations

import math

import pytest
import torch

from dln_geometry.dynamics.noise import FlatCoordinates
from dln_geometry.support import Depth
from dln_geometry.testing import assert_close
from tests.dynamics.noise.routes import F64


@pytest.mark.parametrize("depth", [1, 2, 2.7, 40, math.inf])
def test_weights_are_the_derivative_of_the_end_to_end_matrix(depth, generator):
    """Of ``Y -> X`` at a diagonal Y by autograd, and at infinite depth of ``H -> exp(H)``."""
    flat = FlatCoordinates(Depth(depth))
    s = torch.tensor([1.7, 1.1, 0.4], dtype=F64)
    rho = flat.of(s)
    assert_close(flat.values(rho), s)
    sums, slopes = flat.weights(rho, s)
    z = torch.randn(3, 3, generator=generator, dtype=F64)
    along, across = (z + z.mT) / 2, (z - z.mT) / 2

    def end_to_end(y):
        if flat.depth.infinite:
            return torch.linalg.matrix_exp(y)
        u, rho, vh = torch.linalg.svd(y)
        return (u * flat.values(rho)) @ vh

    for move, weights in ((along, slopes), (across, sums)):
        if flat.depth.infinite and weights is sums:
            # The orthogonal factor turns against the frames: X moves by the mean of both sides.
            moved = 0.5 * (move @ torch.diag(s) + torch.diag(s) @ move)
        else:
            y = torch.diag(rho)
            moved = torch.autograd.functional.jvp(end_to_end, y, move)[1] * flat.scale
        assert_close(weights * move, moved, ops=1000, condition=10)


def test_weights_are_finite_where_values_collide_and_vanish():
    flat, deep = FlatCoordinates(Depth(3)), FlatCoordinates(Depth(math.inf))
    s = torch.tensor([1.3, 1.3, 0.0, 0.0], dtype=F64)
    sums, slopes = flat.weights(flat.of(s), s)
    assert_close(slopes[0, :2], torch.full((2,), 3 * 1.3 ** (2 / 3), dtype=F64))
    assert_close(sums[0, :2], torch.full((2,), 1.3 ** (2 / 3), dtype=F64))
    assert bool((torch.stack((sums, slopes))[:, 2:, 2:] == 0).all())
    s = torch.tensor([1.3, 1.3 * (1 - 1e-12)], dtype=F64)
    for weights in deep.weights(deep.of(s), s):
        assert float((weights - 1.3).abs().max()) < 1e-11


def test_a_negative_coordinate_counts_as_itself():
    flat = FlatCoordinates(Depth(4))
    rho = torch.tensor([2.0, 1.5, -0.4], dtype=F64)
    lam, s = rho / 2, flat.values(rho.abs())
    sums, slopes = flat.weights(rho, s, signed=True)
    assert_close(sums[0, 2], (s[0] + s[2]) / (lam[0] + lam[2]))
    assert_close(slopes[0, 2], (s[0] - s[2]) / (lam[0] - lam[2]))
