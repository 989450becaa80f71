from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.dynamics.dyson import singular_step, vanishing_bessel
from dln_geometry.testing import assert_mean, assert_order
from tests.dynamics.dyson.routes import F64, after, expected, power_sums
from tests.dynamics.noise.routes import assert_same_law

SINGULAR = (0.2, 0.5, 1.1)


@pytest.mark.parametrize("index", [0.7, 1, 3.3])
@pytest.mark.parametrize("excess", [0, 2, 5])
def test_steps_of_singular_values_have_the_moments_of_the_motion(index, excess, generator):
    s = after(singular_step(excess, index, generator), SINGULAR, 0.5, 8, 10_000)
    assert (s >= 0).all()
    for powers in [(1,), (2,), (1, 1), (1, 2), (3,)]:
        wanted = expected(powers, SINGULAR, 0.5, index, excess)
        assert_mean(power_sums(s.square(), powers), wanted)


@pytest.mark.slow
def test_steps_of_singular_values_are_of_weak_order_two(generator):
    index, powers, t = 1e5, (4,), 0.25
    step, wanted = singular_step(1, index, generator), expected((4,), SINGULAR, t, index, 1)
    errors = []
    for steps in (2, 3, 4, 6):
        s = after(step, SINGULAR, t, steps, 200_000)
        errors.append(abs(float(power_sums(s.square(), powers).mean()) - wanted))
    assert_order([1 / 2, 1 / 3, 1 / 4, 1 / 6], errors, 2, tol=0.5)


def test_vanishing_bessel_processes(generator):
    """s^2 is a martingale of variance 4 s^2 t; it is 0 with probability exp(-s^2/2t)."""
    s, t = 0.8, 0.5
    end = vanishing_bessel(torch.full((40_000,), s, dtype=F64), t, generator)
    assert_mean(end.square(), s * s)
    assert_mean((end.square() - s * s).square(), 4 * s * s * t)
    assert_mean((end == 0).double(), math.exp(-s * s / (2 * t)))


@pytest.mark.parametrize("index", [0.7, 3.3])
def test_edge_and_density_of_many_singular_values(index, generator):
    shape, t = (450, 300), 1.9
    path = dln.singular_dyson(
        torch.zeros(300, dtype=F64), shape, dyson_index=index, t_end=t, dt=t / 8,
        generator=generator, save_at=[t],
    )  # fmt: skip
    s, order = path.final, torch.arange(1, 301)
    count = 300 * dln.laws.marchenko_pastur_distribution(s, shape, t)
    assert (count - order).abs().max() < 3 * math.log(300) / min(index, 1)
    edge = dln.laws.marchenko_pastur_edges(shape, t)[1]
    assert abs(float(s[-1]) / edge - 1) < 4 * 300 ** (-2 / 3) / min(index, 1)


def test_signed_singular_value_moves_through_zero(generator):
    """The determinant of a matrix Brownian motion is a martingale; its modulus is not."""
    start, count, t = torch.tensor([0.3, 1.0, 1.4], dtype=F64), 40_000, 0.2
    s = start.repeat(count, 1)
    signed = dln.singular_dyson(
        s, (3, 3), t_end=t, dt=t / 4, generator=generator, signed=True, save_at=[t]
    ).final
    assert (signed[:, 0] < 0).any()
    assert (signed[:, 0].abs() <= signed[:, 1]).all()
    assert_mean(signed.prod(-1), float(start.prod()))
    plain = dln.singular_dyson(s, (3, 3), t_end=t, dt=t / 4, generator=generator, save_at=[t]).final
    assert_same_law(signed.abs(), plain)


def test_errors_of_singular_values():
    with pytest.raises(ValueError, match=r"start must have shape \(..., 2\) for 3 x 2"):
        dln.singular_dyson([1.0, 2.0, 3.0], (3, 2), t_end=1.0)
    with pytest.raises(ValueError, match="start must be non-negative"):
        dln.singular_dyson([-1.0, 2.0], (3, 2), t_end=1.0)
    with pytest.raises(ValueError, match="signed must go with a square shape"):
        dln.singular_dyson([1.0, 2.0], (3, 2), t_end=1.0, signed=True)
    with pytest.raises(ValueError, match="but for the smallest"):
        dln.singular_dyson([-2.0, 1.0], (2, 2), t_end=1.0, signed=True)
