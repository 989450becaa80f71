from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dln_geometry.ode import Gauss, Secants, collocate
from dln_geometry.testing import assert_close, assert_order

PENDULUM = torch.tensor([[0.7, 1.1]], dtype=torch.float64)


class Equation:
    """y' = f(y), errors measured as they are, until a time."""

    def __init__(self, f, until=math.inf):
        self.field, self.until = f, until

    def coordinates_at(self, state):
        return lambda difference: difference

    def restricted(self, samples):
        return self

    def ends(self, t, h, states):
        return np.where((t < self.until) & (self.until <= t + h), self.until, math.inf)


def pendulum(y):
    return torch.stack([y[..., 1], -torch.sin(y[..., 0])], -1)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_collocation_has_twice_the_order_of_its_stages(stages):
    def run(steps, stages=stages):
        journey = collocate(
            Equation(pendulum),
            PENDULUM,
            [2.0],
            rtol=1e-13,
            shortest=1e-9,
            method=Gauss(stages),
            steps=steps,
        )
        return journey.states[0]

    exact = run(20, 10)
    counts = [8, 12, 16, 24] if stages < 4 else [5, 7, 9, 12]
    errors = [float((run(n) - exact).abs().max()) for n in counts]
    assert_order([2.0 / n for n in counts], errors, 2 * stages, tol=0.25)


def test_collocation_controls_its_error_and_its_dense_output():
    times = [0.3, 1.7, 4.0, 9.5]
    options = {"shortest": 1e-9}
    exact = collocate(Equation(pendulum), PENDULUM, times, rtol=1e-12, steps=60, **options).states
    for rtol in (1e-5, 1e-8, 1e-11):
        found = collocate(Equation(pendulum), PENDULUM, times, rtol=rtol, **options).states
        assert float((torch.stack(found) - torch.stack(exact)).abs().max()) < 10 * rtol


def test_collocation_gives_up_at_a_pole():
    """One sample runs into the pole of y' = y^2, the other one has arrived before its own."""
    y = torch.tensor([[1.0], [0.25]], dtype=torch.float64)
    journey = collocate(Equation(torch.square), y, [2.0], rtol=1e-8, shortest=1e-6)
    assert 0.99 < journey.lost[0] < 1.0
    assert not journey.barred.any()
    assert math.isnan(journey.lost[1])
    assert_close(journey.states[0][1], [0.5], ops=1e-6 / 2e-16)
    assert float(journey.last[0]) > 100


def test_collocation_stops_where_the_system_ends():
    journey = collocate(Equation(pendulum, 1.3), PENDULUM, [1.0, 9.5], rtol=1e-10, shortest=1e-9)
    assert journey.lost.tolist() == [1.3]
    assert journey.barred.tolist() == [True]
    straight = collocate(Equation(pendulum), PENDULUM, [1.0], rtol=1e-10, shortest=1e-9)
    assert_close(journey.states[0], straight.states[0], ops=1e-9 / 2e-16)


def test_secants_solve_linear_equations_in_as_many_steps_as_dimensions(generator):
    """x <- x + f(x) diverges, for samples with different equations; some of them leave."""
    a = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    b = torch.randn(3, 4, 1, generator=generator, dtype=torch.float64)
    exact, secants, before = torch.linalg.solve(a, b).squeeze(-1), Secants(5), None
    x = torch.zeros(3, 4, dtype=torch.float64)
    for step in range(6):
        if step == 3:
            kept = torch.tensor([2, 0])
            a, b, x, exact, secants = (
                a[kept],
                b[kept],
                x[kept],
                exact[kept],
                secants.restricted(kept),
            )
            before = tuple(part[kept] for part in before)
        residual = b.squeeze(-1) - (a @ x.unsqueeze(-1)).squeeze(-1)
        image = x + residual
        if before is not None:
            secants.add(image - before[0], residual - before[1])
        before = image, residual
        x = image - secants.correction(residual)
    assert_close(x, exact, ops=1e-8 / 2e-16)
