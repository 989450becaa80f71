from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dln_geometry.ode import (
    integrate,
)
from tests.ode.routes import (
    START,
    Chain,
    chain_numpy,
    pendulum,
    relative_error,
    rough_start,
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stabilised_method_and_auto_are_cheap_on_a_stiff_gradient_flow(dtype):
    n, t_end, rtol = 200, 2.0, 1e-4
    y0 = rough_start(n)
    field = Chain(n, 0.01)
    exact = solve_ivp(
        lambda t, y: chain_numpy(field, y),
        (0, t_end),
        y0[0].numpy(),
        "LSODA",
        rtol=1e-11,
        atol=1e-13,
        lband=1,
        uband=1,
    ).y[:, -1]
    evaluations = {}
    for method in ("rk5", "rkc", "auto"):
        field.calls = 0
        run = integrate(field, y0.to(dtype), t_end=t_end, rtol=rtol, method=method)
        assert relative_error(run.y[0], exact) < 10 * rtol
        assert run.stats["evaluations"] == field.calls == sum(run.stats["by_method"].values())
        evaluations[method] = field.calls
    assert evaluations["rkc"] < evaluations["rk5"] / 5
    assert evaluations["auto"] < evaluations["rk5"] / 5


def test_stiff_linear_problem_against_the_matrix_exponential():
    n = 60
    field = Chain(n, 0.05)
    jacobian = field.jacobian_at_zero(n)
    y0 = rough_start(n, batch=2)

    def linear(t, y, out):
        torch.mm(y, jacobian, out=out)

    exact = y0 @ torch.linalg.matrix_exp(jacobian)
    for method in ("rkc", "auto"):
        run = integrate(linear, y0, t_end=1.0, rtol=1e-6, method=method)
        assert relative_error(run.y, exact) < 1e-4


def test_auto_switches_to_the_stabilised_method_and_back():
    """A relaxation towards a moving point, its rate 1, then 2000, then 1 again."""
    direction = torch.tensor([[1.0, -0.5, 0.3]], dtype=torch.float64)

    def rate(t):
        return 1 + 2000 * torch.exp(-(((t - 5) / 1.5) ** 4))

    def field(t, y, out):
        out.copy_(-rate(t)[:, None] * (y - torch.cos(t)[:, None] * direction))

    def field_numpy(t, y):
        r = 1 + 2000 * np.exp(-(((t - 5) / 1.5) ** 4))
        return -r * (y - np.cos(t) * direction[0].numpy())

    y0 = torch.zeros(1, 3, dtype=torch.float64)
    run = integrate(field, y0, t_end=12.0, rtol=1e-5)
    exact = solve_ivp(field_numpy, (0, 12), y0[0].numpy(), "Radau", rtol=1e-10, atol=1e-12).y[:, -1]
    assert relative_error(run.y[0], exact) < 1e-3
    explicit = integrate(field, y0, t_end=12.0, rtol=1e-5, method="rk5")
    assert run.stats["by_method"].keys() == {"rk5", "rkc"}
    assert run.stats["switches"] in (2, 4)
    assert run.stats["evaluations"] < 0.5 * explicit.stats["evaluations"]


def test_auto_stays_explicit_where_nothing_is_stiff():
    run = integrate(pendulum, START, t_end=200.0, rtol=1e-5)
    assert run.stats["switches"] == 0
    assert run.stats["by_method"].keys() == {"rk5"}
