from __future__ import annotations

import math

import torch

import dln_geometry as dln
from dln_geometry.dynamics.dyson import proximal
from dln_geometry.testing import assert_close, assert_order
from tests.dynamics.dyson.routes import F64


def test_implicit_step_solves_its_equation_from_any_order():
    y = torch.tensor([[0.3, -0.2, 0.3, 5.0], [0.0, 0.0, 0.0, 0.0]], dtype=F64)
    x = proximal(torch.zeros_like(y), y, 0.4)
    gaps = x.unsqueeze(-1) - x.unsqueeze(-2)
    gaps.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
    assert_close(x, y + 0.4 * gaps.reciprocal().sum(-1), ops=1000)
    assert_close(x[1], 0.2**0.5 * dln.laws.hermite_zeros(4), ops=1000)
    # Conjugate gradients instead of a factorisation.
    many = proximal(torch.zeros(150, dtype=F64), torch.zeros(150, dtype=F64), 2.0)
    assert_close(many, dln.laws.hermite_zeros(150), ops=1000)


def test_implicit_paths_converge_strongly(generator):
    """With refined Brownian increments the same path is met, with order 1 away from collisions."""
    index, t, finest = 20.0, 0.5, 1024
    dw = math.sqrt(t / finest) * torch.randn(finest, 300, 3, generator=generator, dtype=F64)
    x = torch.tensor([-1.0, 0.1, 0.9], dtype=F64).repeat(300, 1)
    ends = [
        dln.dyson(
            x, dyson_index=index, t_end=t, scheme="implicit", save_at=[t],
            increments=dw.reshape(k, -1, 300, 3).sum(1),
        ).final
        for k in (16, 32, 64, 128, finest)
    ]  # fmt: skip
    errors = [float((end - ends[-1]).square().mean().sqrt()) for end in ends[:-1]]
    assert_order([1 / 16, 1 / 32, 1 / 64, 1 / 128], errors, 1, tol=0.25)
