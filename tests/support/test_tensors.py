"""Contexts of torch in which numbers are rounded, or cannot be looked at."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import dln_geometry as dln
from dln_geometry.learning import DeepLinear
from dln_geometry.support import matrix_exponential


def entropy(x):
    return dln.entropy(dln.EndToEnd.of(x, depth=3))


def test_autocast_is_refused_where_it_would_round_products(generator):
    x = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    expected = dln.cometric(dln.EndToEnd.of(x, depth=3), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dln.cometric(dln.EndToEnd.of(x, depth=3), x), expected)
        for call in (
            lambda: dln.EndToEnd.of(x.float(), depth=3),
            lambda: dln.losses.Quadratic(x.float()),
            lambda: dln.end_to_end([x.float(), x.float()]),
            lambda: dln.random_balanced((3, 4, 2), generator=generator, dtype=torch.float32),
        ):
            with pytest.raises(ValueError, match=r"outside torch.autocast, .* to torch.bfloat16"):
                call()
        layer = DeepLinear((3, 4, 2), generator=generator)  # modules live under autocast
        assert layer(x.float()).dtype == torch.bfloat16
    assert bool(dln.is_balanced(list(layer.weights)))


def test_tensors_without_numbers_to_look_at_are_refused(generator):
    x = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"inside torch.func.vmap: points take batches"):
        torch.func.vmap(entropy)(x)
    with FakeTensorMode(), pytest.raises(TypeError, match="a fake tensor"):
        entropy(torch.ones(3, 3, dtype=torch.float64))
    point = dln.EndToEnd.of(x[0], depth=3)
    gradient = torch.func.grad(entropy)(x[0])
    torch.testing.assert_close(gradient, dln.entropy_gradient(point))


@pytest.mark.parametrize("size", [1e-3, 0.01, 0.045, 0.3, 4.0])
def test_exponentials_of_single_matrices_are_accurate(size):
    """Against the rotation by hand: torch's own is wrong by 1e-10 at some sizes."""
    angle = torch.tensor(size, dtype=torch.float64)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    expected = angle.cos() * torch.eye(2, dtype=torch.float64) + angle.sin() * turn
    for m in (size * turn, (size * turn)[None], (size * turn).expand(3, 2, 2)):
        dln.testing.assert_close(matrix_exponential(m), expected.expand_as(m), ops=100)
