from __future__ import annotations

import math

import pytest
import torch
from torch.func import grad

from dln_geometry.learning import Rule, equation_of_motion, scale_velocity, translation_rate
from dln_geometry.testing import assert_close
from tests.learning.motion.routes import F64


@pytest.mark.parametrize("order", [-1, 0, 1, 3, None])
def test_translation_rate(order, generator):
    """The general machinery on a loss that does not see the sum of its parameters."""
    lr, k = 0.3, 0.7
    w = torch.randn(3, generator=generator, dtype=F64)

    def loss(p):
        c = p["q"] - p["q"].mean()
        return (c * w).sin().sum() + k / 2 * p["q"].square().sum()

    q = {"q": torch.randn(3, generator=generator, dtype=F64)}
    rate = translation_rate(lr, k, order)
    charge = q["q"].sum()
    if order is None:
        after = Rule(lr).step(loss, q)[0]["q"].sum()
        assert_close(
            after, charge * math.exp(-rate * lr), ops=1000, scale=float(q["q"].abs().sum())
        )
    else:
        velocity = equation_of_motion(loss, lr, order, check=False)(q)["q"].sum()
        assert_close(velocity, -rate * charge, ops=3000, scale=float(q["q"].abs().sum()))


@pytest.mark.parametrize("order", [-1, 0])
def test_scale_velocity(order, generator):
    lr, k = 0.3, 0.7
    w, q = (torch.randn(5, generator=generator, dtype=F64) for _ in range(2))

    def loss(p):
        unit = p["q"] / p["q"].norm()
        return (unit * w).sin().sum()

    def decayed(p):
        return loss(p) + k / 2 * p["q"].square().sum()

    params = {"q": q}
    velocity = equation_of_motion(decayed, lr, order, check=False)(params)["q"]
    actual = scale_velocity(params, grad(loss)(params), lr, k, order)
    assert_close(actual, 2 * (q * velocity).sum(), ops=1000)
    with pytest.raises(ValueError, match="orthogonal"):
        scale_velocity(params, params, lr, k, order)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, q: translation_rate(1.0, 1.0), ValueError, "must be below 1"),
        (lambda f, q: translation_rate(1.0, -1.0), ValueError, "must be non-negative"),
        (lambda f, q: scale_velocity(q, q, 0.1, 0.1, 1), ValueError, "must be -1 or 0"),
    ],
)  # fmt: skip
def test_rates_that_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(lambda p: p["q"].square().sum(), {"q": torch.ones(2)})
