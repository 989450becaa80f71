from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dln_geometry.ode import RODAS, differences, integrate
from dln_geometry.testing import assert_close
from tests.ode.routes import START, Chain, Decay, fixed_steps, interrupted, pendulum, rough_start

STIFF = torch.tensor([[1.0, 0.0, 0.0], [0.7, 0.0, 0.3]], dtype=torch.float64)


def robertson(t, y, out):
    a, b, c = y.unbind(-1)
    out[:, 0] = -0.04 * a + 1e4 * b * c
    out[:, 2] = 3e7 * b * b
    out[:, 1] = -out[:, 0] - out[:, 2]
    return out.norm(dim=-1, keepdim=True)


def robertson_jacobian(t, y):
    _, b, c = y.unbind(-1)
    j = y.new_zeros(len(y), 3, 3)
    j[:, 0, 0], j[:, 0, 1], j[:, 0, 2] = -0.04, 1e4 * c, 1e4 * b
    j[:, 2, 1] = 6e7 * b
    j[:, 1] = -j[:, 0] - j[:, 2]
    return j


def robertson_exact(start, t):
    def field(t, y):
        out = torch.empty(1, 3, dtype=torch.float64)
        robertson(None, torch.from_numpy(y)[None], out)
        return out[0].numpy()

    def jacobian(t, y):
        return robertson_jacobian(None, torch.from_numpy(y)[None])[0].numpy()

    # Ten thousand times as exact as what is compared with it.
    options = {"method": "Radau", "rtol": 1e-7, "atol": 1e-16, "jac": jacobian}
    return torch.from_numpy(solve_ivp(field, (0, t), start.numpy(), **options).y[:, -1])


def test_coefficients_meet_the_order_conditions():
    """Of Hairer, Wanner, Solving ODEs II, IV.7: one for every tree of up to five nodes."""
    s, gamma = len(RODAS.a), RODAS.gamma
    a, g = np.zeros((s, s)), np.zeros((s, s))
    for i in range(s):
        a[i, :i], g[i, :i] = RODAS.a[i], RODAS.g[i]
    big = np.linalg.inv(np.eye(s) / gamma - g)
    alpha, last = a @ big, a[-1].copy()
    last[-1] = 1.0
    b, beta = last @ big, alpha + big
    c, d, e = alpha.sum(1), beta.sum(1), np.ones(s)
    scale = np.abs(b).sum() * max(1.0, np.abs(beta).sum(1).max()) ** 3
    assert_close(c, np.array(RODAS.c), ops=300, scale=scale)
    assert_close(big.sum(1), np.array(RODAS.d), ops=300, scale=scale)
    trees = [
        *((e, 1), (d, 2), (c**2, 3), (beta @ d, 6), (c**3, 4), (c * (alpha @ d), 8)),
        *((beta @ c**2, 12), (beta @ beta @ d, 24), (c**4, 5), (beta @ c**3, 20)),
        *((c**2 * (alpha @ d), 10), (c * (alpha @ c**2), 15), ((alpha @ d) ** 2, 20)),
        *((c * (alpha @ beta @ d), 30), (beta @ (c * (alpha @ d)), 40)),
        *((beta @ beta @ c**2, 60), (beta @ beta @ beta @ d, 120)),
    ]
    for vector, density in trees:
        assert_close(b @ vector, 1.0 / density, ops=300, scale=scale)
    assert abs(b @ c**5 - 1 / 6) > 1e-6
    # The stage before the last has order 4.
    embedded = a[-1] @ big
    for vector, density in trees[:8]:
        assert_close(embedded @ vector, 1.0 / density, ops=300, scale=scale)
    assert abs(embedded @ c**4 - 1 / 5) > 1e-6


def test_every_decay_is_damped_and_fast_ones_vanish():
    z = torch.logspace(-2, 12, 57, dtype=torch.float64)[:, None]
    factors = fixed_steps(Decay(z), torch.ones_like(z), 1.0, 1, RODAS).abs().squeeze(1)
    assert bool((factors < 1).all())
    assert float(factors[-1]) < 1e-9


def test_differences_are_the_jacobian():
    y = START.repeat(3, 1) * torch.tensor([[1.0], [0.2], [-2.0]], dtype=torch.float64)
    t = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    q, p = y[:, 0], y[:, 1]
    expected = torch.zeros(3, 3, 3, dtype=torch.float64)
    expected[:, 0, 1], expected[:, 1, 0], expected[:, 1, 1] = 1.0, -torch.cos(q), -0.1
    expected[:, 2, 0], expected[:, 2, 1], expected[:, 2, 2] = p, q, -0.5
    gap = (differences(pendulum, t, y) - expected).abs().max()
    assert float(gap) < 100 * torch.finfo(torch.float64).eps ** (2 / 3)


@pytest.mark.parametrize("method", ["rodas", "auto"])
def test_stiff_kinetics_reach_late_times_at_every_samples_own_pace(method):
    t_end = 1e12
    options = {"t_end": t_end, "rtol": 1e-6, "atol": 1e-14, "blocks": (1, 1, 1)}
    run = integrate(
        robertson, STIFF, method=method, jacobian=robertson_jacobian, autonomous=True, **options
    )
    assert run.status == ["t_end", "t_end"]
    assert "rodas" in run.stats["by_method"]
    assert run.stats["evaluations"] < 6000
    for y, start in zip(run.y, STIFF, strict=True):
        exact = robertson_exact(start, t_end)
        assert bool(((y - exact).abs() <= 1e-3 * exact).all())
    assert_close(run.y.sum(-1), STIFF.sum(-1), ops=1e6)


def test_single_precision_keeps_its_tolerance_on_a_stiff_problem():
    y0 = rough_start(20).float()
    field = Chain(20, 1.0)
    run = integrate(field, y0, t_end=2.0, rtol=1e-4, method="rodas")
    exact = integrate(field, y0.double(), t_end=2.0, rtol=1e-10, method="rk8")
    assert float((run.y.double() - exact.y).norm()) <= 1e-3 * float(exact.y.norm())


def test_time_dependence_is_followed():
    """A fast relaxation towards a moving point, with the derivative in time by differences."""

    def field(t, y, out):
        out.copy_(-1e5 * (y - torch.cos(t)[:, None]))

    y0 = torch.ones(1, 1, dtype=torch.float64)
    run = integrate(field, y0, t_end=10.0, rtol=1e-6, method="rodas")
    exact = (1e10 * math.cos(10.0) + 1e5 * math.sin(10.0)) / (1e10 + 1)
    assert abs(float(run.y) - exact) < 1e-5
    assert run.stats["steps"] < 300


def test_an_interrupted_run_continues_to_the_same_bits():
    options = {"t_end": 1e6, "rtol": 1e-5, "atol": 1e-12, "method": "rodas"}
    options["jacobian"] = robertson_jacobian
    whole = integrate(robertson, STIFF, **options)
    stored = []
    with pytest.raises(KeyboardInterrupt):
        integrate(interrupted(robertson, 150), STIFF, checkpoint=stored.append, **options)
    again = integrate(robertson, STIFF, resume=stored[-1], **options)
    assert torch.equal(again.y, whole.y)
    assert again.stats["steps"] == whole.stats["steps"]


def test_a_step_that_was_rejected_keeps_the_jacobian():
    calls = []

    def jacobian(t, y):
        calls.append(1)
        return robertson_jacobian(t, y)

    run = integrate(robertson, STIFF[:1], t_end=100.0, rtol=1e-8, method="rodas", jacobian=jacobian)
    assert run.stats["rejected"] > 0
    assert len(calls) == run.stats["steps"] < run.stats["steps"] + run.stats["rejected"]


def test_projection_holds_an_invariant():
    def field(t, y, out):
        out[:, 0], out[:, 1] = -y[:, 1], y[:, 0]

    def project(y, y_new):
        return y_new / y_new.norm(dim=-1, keepdim=True)

    y0 = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    run = integrate(field, y0, t_end=5.0, rtol=1e-4, method="rodas", project=project)
    assert_close(run.y.norm(dim=-1), torch.ones(2, dtype=torch.float64), ops=100)


def test_a_projection_that_moves_a_state_by_more_than_the_tolerance_rejects_the_step():
    """Where the estimate is blind: a projection that spoils what a step has found."""
    jumps = []

    def field(t, y, out):
        out[:, 0], out[:, 1] = -y[:, 1], y[:, 0]

    def project(y, y_new):
        angle = 1e-3 if len(jumps) % 4 == 3 else 0.0
        jumps.append(angle)
        c, s = math.cos(angle), math.sin(angle)
        return y_new @ torch.tensor([[c, s], [-s, c]], dtype=y.dtype)

    begun = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    options = {"t_end": 5.0, "rtol": 1e-6, "method": "rodas"}
    run = integrate(field, begun, project=project, **options)
    free = integrate(field, begun, **options)
    assert sum(x > 0 for x in jumps) > 5
    assert run.stats["rejected"] >= sum(x > 0 for x in jumps)
    assert_close(run.y, free.y, scale=1e-4 / torch.finfo(torch.float64).eps, ops=1)
    # A distance that does not see these turns lets them pass.
    jumps.clear()
    blind = integrate(
        field, begun, project=project, shift=lambda a, b: (a.norm(dim=-1) - b.norm(dim=-1)).abs(),
        **options,
    )  # fmt: skip
    assert float((blind.y - free.y).norm()) > 1e-3
