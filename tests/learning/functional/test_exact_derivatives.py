from __future__ import annotations

import pytest
import torch
from torch.func import grad, jvp
from torch.nn import functional

from dln_geometry.learning.functional import ExactDerivatives, with_exact_derivatives
from dln_geometry.testing import assert_close

F64 = torch.float64


def cases(generator):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64)

    w, g, b, target = normal(4), normal(3, 1), normal(4), normal(3, 4, 5)
    layer, mean, variance = normal(4, 5), normal(4), normal(4).square()
    return {
        "layer_norm": lambda x: functional.layer_norm(x, (4, 5), layer, layer.sin(), 1e-3),
        "torch.layer_norm": lambda x: torch.layer_norm(x, (5,), None, None, 1e-3, False),
        "batch_norm": lambda x: functional.batch_norm(x, None, None, w, b, True, 0.1, 1e-3),
        "batch_norm, evaluation": lambda x: functional.batch_norm(x, mean, variance, w, b, False),
        "torch.batch_norm": lambda x: torch.batch_norm(x, w, b, None, None, True, 0.1, 1e-3, False),
        "instance_norm": lambda x: functional.instance_norm(x, None, None, w, b),
        "instance_norm, evaluation": lambda x: functional.instance_norm(
            x, mean, variance, w, b, use_input_stats=False
        ),
        "torch.instance_norm": lambda x: torch.instance_norm(
            x, w, b, None, None, True, 0.1, 1e-3, False
        ),
        "weight_norm": lambda x: torch._weight_norm(x, g[..., None], 0),
        "weight_norm, last": lambda x: torch._weight_norm(x, layer[:1, None], -1 % 3),
        "mse_loss": lambda x: functional.mse_loss(x, target),
        "mse_loss, sum": lambda x: functional.mse_loss(x, target, reduction="sum"),
        "mse_loss, none": lambda x: functional.mse_loss(x, target, reduction="none"),
    }


NAMES = list(cases(torch.Generator()))


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_torch_and_third_derivatives_are_right(name, generator):
    function = cases(generator)[name]
    x, v = (torch.randn(3, 4, 5, generator=generator, dtype=F64) for _ in range(2))
    with ExactDerivatives():
        plain = function(x)
    assert_close(plain, function(x), ops=1000)
    weights = torch.randn(plain.shape, generator=generator, dtype=F64)
    along = with_exact_derivatives(lambda t: (weights * function(x + t * v)).sin().sum())

    def forward(f):
        return lambda t: jvp(f, (t,), (torch.ones_like(t),))[1]

    zero, derivative, by_forward = torch.zeros((), dtype=F64), along, along
    for _ in range(3):
        before, derivative, by_forward = derivative, grad(derivative), forward(by_forward)
        value, h = derivative(zero), 1e-3
        # Central differences of order 4 of the derivative below.
        d = [before(torch.tensor(k * h, dtype=F64)) for k in (-2, -1, 1, 2)]
        differences = (d[0] - 8 * d[1] + 8 * d[2] - d[3]) / (12 * h)
        scale = max(abs(value), *(x.abs() for x in d))
        assert abs(value - differences) < 1e-6 * scale
        assert_close(by_forward(zero), value, ops=3000, scale=scale)


def test_running_statistics_are_left_alone():
    mean, variance = torch.zeros(2), torch.ones(2)
    with ExactDerivatives():
        functional.batch_norm(torch.arange(6.0).reshape(3, 2), mean, variance, training=True)
    assert torch.equal(mean, torch.zeros(2))
    assert torch.equal(variance, torch.ones(2))


def test_torch_is_wrong_still():
    """If this fails, torch has mended its third derivatives, and this module may go."""
    x = torch.tensor([[0.3, -1.0, 2.0, 0.4]], dtype=F64)
    v = torch.tensor([[1.0, 0.5, -0.2, 0.7]], dtype=F64)

    def along(t):
        return functional.layer_norm(x + t * v, (4,)).sin().sum()

    zero = torch.zeros((), dtype=F64)
    exact = grad(grad(grad(with_exact_derivatives(along))))(zero)
    assert abs(grad(grad(grad(along)))(zero) - exact) > 1e-3 * abs(exact)
