from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close, assert_order
from tests.dynamics.noise.routes import BETA, F64, quadratic


def test_equal_singular_values_follow_the_hyperbolic_tangent(generator):
    """``E = |X|^2/2`` at depth 2: ``s(t) = s* tanh(2 s* t + c)``, ``s*^2 = (d-1)/(4 beta)``."""
    d, t = 3, torch.linspace(0.1, 2.0, 5, dtype=F64)
    p = dln.Collapsed.random((d, d), d, 2, scale=0.1, generator=generator, dtype=F64)
    path = dln.free_energy_flow(
        dln.losses.Quadratic(torch.zeros(d, d)), p, beta=BETA, t_end=2.0, save_at=t
    )
    end = math.sqrt((d - 1) / (4 * BETA))
    exact = end * torch.tanh(2 * end * t + math.atanh(0.1 / end))
    assert float((path.singular_values - exact.unsqueeze(-1)).abs().max()) < 1e-6
    energy = dln.FreeEnergy(dln.losses.Quadratic(torch.zeros(d, d)), BETA, 2, (d, d))
    assert_close(energy.value(path.final.matrix), path.loss[-1])


@pytest.mark.parametrize("widths", [None, 4])
def test_gradient_of_the_free_energy(widths, generator):
    x = torch.randn(4, 3, generator=generator, dtype=F64)
    energy = dln.FreeEnergy(quadratic((4, 3), generator), BETA, 2.7, (4, 3), widths=widths)
    direction = torch.randn(4, 3, generator=generator, dtype=F64)
    steps = [0.02 / 2**k for k in range(4)]
    slope = float((energy.gradient(x) * direction).sum())
    errors = [
        abs(
            float(energy.value(x + h * direction) - energy.value(x - h * direction)) / (2 * h)
            - slope
        )
        for h in steps
    ]
    assert_order(steps, errors, 2)
    left, right = (torch.randn(d, 3, generator=generator, dtype=F64) for d in (4, 3))
    value, gr, gl = energy.contract(left, right)
    y = left @ right.mT
    assert_close(value, energy.value(y), ops=1000)
    assert_close(gr, energy.gradient(y) @ right, ops=1000)
    assert_close(gl, energy.gradient(y).mT @ left, ops=1000)


@pytest.mark.parametrize("d", [2, 3])
def test_two_layers_rest_at_their_equilibrium_for_long(d):
    """Stiff steps at rest are long: trials of them overflow, and must be taken back."""
    start = dln.EndToEnd.of(torch.diag(torch.tensor([2.0, 1.0, 0.5][:d], dtype=F64)), 2)
    ridge = dln.losses.Quadratic(torch.zeros(d, d, dtype=F64))
    path = dln.free_energy_flow(ridge, start, beta=BETA, t_end=200.0)
    assert path.status == "t_end"
    end = torch.full((d,), math.sqrt((d - 1) / (4 * BETA)), dtype=F64)
    assert float((path.singular_values[-1] - end).abs().max()) < 1e-6
