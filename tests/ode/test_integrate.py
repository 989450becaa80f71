from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dln_geometry.ode import (
    METHODS,
    Chebyshev,
    IntegrationError,
    coefficients,
    fixed_steps,
    integrate,
    stage_number,
)
from dln_geometry.ode import stepper as stepper_module
from dln_geometry.testing import assert_close, assert_order

# A pendulum with friction and a drive, in three unknowns: nonlinear, non-autonomous, generic.
DRIVE = 0.7


def pendulum(t, y, out):
    q, p, z = y.unbind(-1)
    out[:, 0] = p
    out[:, 1] = -torch.sin(q) - 0.1 * p + DRIVE * torch.cos(1.3 * t)
    out[:, 2] = q * p - 0.5 * z
    return torch.stack([q * q + p * p, z], dim=-1)


def pendulum_numpy(t, y):
    q, p, z = y
    return [p, -np.sin(q) - 0.1 * p + DRIVE * np.cos(1.3 * t), q * p - 0.5 * z]


START = torch.tensor([[1.2, -0.4, 0.3]], dtype=torch.float64)


def pendulum_exact(t, start=START):
    run = solve_ivp(
        pendulum_numpy, (0, t), start[0].numpy(), method="DOP853", rtol=3e-14, atol=1e-15
    )
    return run.y[:, -1]


def rotation(t, y, out):
    out[:, 0], out[:, 1] = -y[:, 1], y[:, 0]
    return (y.norm(dim=1, keepdim=True) - 1).abs()


class Decay:
    """y' = -rates (y - target), counting the calls."""

    def __init__(self, rates, target=0.0):
        self.rates, self.target, self.calls = rates, target, 0

    def __call__(self, t, y, out):
        self.calls += 1
        torch.mul(y - self.target, -self.rates, out=out)
        return out.norm(dim=-1, keepdim=True)


class Chain:
    """The gradient flow of 1/2 c |Dy|^2 + |y|^4/4 - |y|^2/2: a reaction and diffusion chain."""

    def __init__(self, n, diffusion, reaction=1.0):
        self.c, self.reaction, self.calls = diffusion * (n + 1) ** 2, reaction, 0

    def __call__(self, t, y, out):
        self.calls += 1
        torch.mul(y, 1 - y * y, out=out)
        out.mul_(self.reaction).add_(y, alpha=-2 * self.c)
        out[:, 1:].add_(y[:, :-1], alpha=self.c)
        out[:, :-1].add_(y[:, 1:], alpha=self.c)

    def jacobian_at_zero(self, n):
        laplace = torch.diag(torch.full((n,), -2.0, dtype=torch.float64))
        off = torch.ones(n - 1, dtype=torch.float64)
        laplace += torch.diag(off, 1) + torch.diag(off, -1)
        return self.reaction * torch.eye(n, dtype=torch.float64) + self.c * laplace


def rough_start(n, batch=1):
    x = torch.linspace(0, 1, n + 2, dtype=torch.float64)[1:-1]
    waves = [0.3 * torch.sin(math.pi * k * x) / k for k in (1, 3, 25)]
    return torch.stack([sum(waves) * (1 + 0.3 * i) for i in range(batch)])


def relative_error(y, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return float((y.double() - expected).norm() / expected.norm())


# ---- the methods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_tableau_meets_its_order_conditions(name):
    method = METHODS[name]
    s = len(method.b)
    a = np.zeros((s, s))
    for i, row in enumerate(method.a):
        a[i, :i] = row
    b, c = np.array(method.b), np.array(method.c)
    assert_close(a.sum(1), c, ops=100)

    def trees(order):
        """Yield pairs (weights over the stages, product over the tree) of bushes on tall stems."""
        for stem in range(order):
            leaves = order - stem - 1
            vector, density = c**leaves, leaves + 1
            for k in range(stem):
                vector, density = a @ vector, density * (leaves + 2 + k)
            yield vector, 1 / density

    scale = np.abs(a).sum(1).max()
    for order in range(1, method.order + 1):
        for vector, value in trees(order):
            assert_close(b @ vector, value, ops=300, scale=scale)
    assert any(abs(b @ v - x) > 1e-6 for v, x in trees(method.order + 1))
    # The estimate of the highest order among the rows, as the combination of two rows is.
    for row, order in zip(method.e, (method.error_order if name != "rk8" else 5, 3), strict=False):
        for q in range(1, order + 1):
            for vector, _ in trees(q):
                assert_close(np.array(row) @ vector, 0.0, ops=300, scale=scale)
        assert any(abs(np.array(row) @ v) > 1e-6 for v, _ in trees(order + 1))


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        ("rk3", (40, 80, 160, 320, 640)),
        ("rk5", (8, 16, 32, 64, 128)),
        # Four halvings at order 8 would span more than the digits there are.
        ("rk8", (3, 4, 5, 6, 8, 10, 12)),
        (Chebyshev(2), (40, 80, 160, 320, 640)),
        (Chebyshev(5), (40, 80, 160, 320, 640)),
        (Chebyshev(12), (40, 80, 160, 320, 640)),
    ],
)
def test_fixed_steps_converge_at_the_declared_order(method, counts):
    t_end = 2.0
    exact = pendulum_exact(t_end)
    errors = [
        relative_error(fixed_steps(pendulum, START, t_end, n, method)[0], exact) for n in counts
    ]
    order = METHODS[method].order if isinstance(method, str) else method.order
    assert_order([t_end / n for n in counts], errors, order)


@pytest.mark.parametrize("stages", [2, 3, 8, 50, 300])
def test_chebyshev_stages_hold_the_spectral_radius_they_are_chosen_for(stages):
    """On y' = -z y one step multiplies by 1 - z + z^2/2 + O(z^3), at most by one up to the end."""
    reach = (stages**2 - 1) / 1.54
    assert stage_number(0.999 * reach) <= stages
    z = torch.linspace(0, reach, 4001, dtype=torch.float64)[:, None]
    factors = fixed_steps(Decay(z), torch.ones_like(z), 1.0, 1, Chebyshev(stages))
    assert float(factors.abs().max()) <= 1 + 1e-12
    if stages > 2:
        # Damped: strictly inside away from zero.
        assert float(factors[z > 3].abs().max()) < 0.97
    k = coefficients(stages)
    assert_close(k.c[-1], 1.0, ops=300)
    small = [2.0**-k for k in range(3, 9)]
    lam = torch.ones(1, 1, dtype=torch.float64)
    steps = [fixed_steps(Decay(lam), lam, h, 1, Chebyshev(stages)).item() for h in small]
    assert_order(small, [abs(y - math.exp(-h)) for y, h in zip(steps, small, strict=True)], 3)


# ---- accuracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["rk3", "rk5", "rk8", "rkc", "auto"])
def test_tolerance_is_met_on_a_nonstiff_problem(method, dtype):
    exact = pendulum_exact(10.0)
    errors = []
    for rtol in (1e-3, 1e-4, 1e-5):
        run = integrate(
            pendulum, START.to(dtype), t_end=10.0, rtol=rtol, method=method, blocks=[2, 1]
        )
        assert run.y.dtype == run.t.dtype == dtype
        errors.append(relative_error(run.y[0], exact))
        # Second and third order accumulate more steps of an error near the tolerance.
        assert errors[-1] <= (300 if method in ("rkc", "rk3") else 50) * rtol
    assert errors[2] < errors[0]


def test_tight_tolerance_agrees_with_scipy_at_every_save_time():
    times = np.linspace(0.5, 10, 20)
    run = integrate(pendulum, START, t_end=10.0, rtol=1e-11, save_at=times)
    reference = solve_ivp(
        pendulum_numpy, (0, 10), START[0].numpy(), "DOP853", times, rtol=1e-13, atol=1e-14
    )
    assert run.saved["y"].shape == (20, 1, 3)
    assert relative_error(run.saved["y"][:, 0], reference.y.T) < 1e-9
    assert run.stats["by_method"].keys() == {"rk8"}


@pytest.mark.parametrize("method", ["rk5", "rk8", "rkc"])
def test_samples_of_a_batch_step_as_if_alone(method):
    # Time scales a thousand apart.
    speed = torch.tensor([[1.0], [30.0], [1000.0]], dtype=torch.float64)
    start = torch.tensor([[1.2, -0.4], [0.3, 0.9], [-1.0, 0.5]], dtype=torch.float64)

    def field(v):
        def write(t, y, out):
            out[:, :1] = v * y[:, 1:]
            out[:, 1:] = -v * (torch.sin(y[:, :1]) + 0.2 * y[:, 1:])
            return (y * y).sum(1, keepdim=True)

        return write

    rtol = 1e-4 if method == "rkc" else 1e-6
    kwargs = {"t_end": 0.5, "rtol": rtol, "method": method, "save_at": [0.0, 0.1, 0.37]}
    together = integrate(field(speed), start, **kwargs)
    assert together.saved["y"].shape == (3, 3, 2)
    trials = []
    for i in range(3):
        alone = integrate(field(speed[i : i + 1]), start[i : i + 1], **kwargs)
        trials.append(alone.stats["steps"] + alone.stats["rejected"])
        if method == "rkc":
            # Its stages are those of the stiffest sample, hence only the accuracy is the same.
            assert relative_error(together.saved["y"][:, i], alone.saved["y"][:, 0]) < 300 * rtol
        else:
            assert_close(together.y[i], alone.y[0], ops=1000)
            assert_close(together.saved["y"][:, i], alone.saved["y"][:, 0], ops=1000)
    # The slow samples do not wait for the fast one, nor the reverse.
    if method != "rkc":
        assert together.stats["steps"] <= max(trials)
    assert 5 * min(trials) < max(trials)


def test_error_norm_is_invariant_under_rotation_of_a_block(generator):
    n = 6
    a = torch.randn(n, n, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    y0 = torch.randn(1, n, generator=generator, dtype=torch.float64)

    def straight(t, y, out):
        out.copy_(torch.tanh(y @ a.T @ a) @ -a.T)

    def turned(t, y, out):
        out.copy_(torch.tanh(y @ rotation @ a.T @ a) @ -a.T @ rotation.T)

    plain = integrate(straight, y0, t_end=2.0, rtol=1e-6)
    other = integrate(turned, y0 @ rotation.T, t_end=2.0, rtol=1e-6)
    assert plain.stats["steps"] == other.stats["steps"]
    assert_close(other.y, plain.y @ rotation.T, ops=1000)


def test_a_small_block_is_resolved_beside_a_large_one():
    rates = torch.tensor([[0.1, 3.0]], dtype=torch.float64)
    y0 = torch.tensor([[1e6, 1e-3]], dtype=torch.float64)
    exact = y0 * torch.exp(-rates)
    fine = integrate(Decay(rates), y0, t_end=1.0, rtol=1e-6, atol=0.0, blocks=[1, 1])
    assert relative_error(fine.y[0, 1:], exact[0, 1:]) < 1e-5
    coarse = integrate(Decay(rates), y0, t_end=1.0, rtol=1e-6)
    assert coarse.stats["steps"] < fine.stats["steps"]


def test_absolute_tolerance_per_sample():
    rates = torch.ones(2, 1, dtype=torch.float64)
    y0 = torch.ones(2, 1, dtype=torch.float64)
    atol = torch.tensor([1e-2, 1e-9])
    run = integrate(Decay(rates), y0, t_end=3.0, rtol=1e-9, atol=atol)
    errors = (run.y - torch.exp(-3 * rates)).abs().flatten()
    assert errors[0] > 10 * errors[1]
    assert errors[1] < 1e-7


def test_a_start_at_zero_and_a_start_at_rest():
    ones = torch.ones(1, 2, dtype=torch.float64)
    from_zero = integrate(Decay(ones, target=2.0), 0 * ones, t_end=1.0)
    assert relative_error(from_zero.y, 2 * (1 - math.exp(-1.0)) * ones) < 1e-6
    at_rest = integrate(Decay(ones, target=1.0), ones, t_end=100.0)
    assert torch.equal(at_rest.y, ones)
    assert at_rest.stats["steps"] < 20
    none = integrate(Decay(ones), ones, t_end=0.0)
    assert none.status == ["t_end"]
    assert torch.equal(none.saved["y"], ones[None])


# ---- saving and stopping -------------------------------------------------------------------------


def test_single_sample_saves_every_step_and_batch_the_ends():
    rates = torch.tensor([[1.0], [5.0]], dtype=torch.float64)
    y0 = torch.ones(2, 1, dtype=torch.float64)
    one = integrate(Decay(rates[:1]), y0[:1], t_end=2.0, rtol=1e-6)
    assert len(one.t) == one.stats["steps"] + 1
    assert (one.t.diff() > 0).all()
    assert one.t[0] == 0
    assert one.t[-1] == 2.0
    assert relative_error(one.saved["y"][:, 0, 0], torch.exp(-one.t)) < 1e-5
    two = integrate(Decay(rates), y0, t_end=2.0, rtol=1e-6)
    assert two.t.tolist() == [0.0, 2.0]
    assert torch.equal(two.saved["y"], torch.stack([y0, two.y]))


def test_save_points_are_met_exactly_and_do_not_cost_the_step_size():
    rates = torch.tensor([[1.0]], dtype=torch.float64)
    y0 = torch.ones(1, 1, dtype=torch.float64)
    plain = integrate(Decay(rates), y0, t_end=4.0, rtol=1e-6, method="rk5")
    times = torch.linspace(0, 4, 9, dtype=torch.float64)[1:]
    saved = integrate(Decay(rates), y0, t_end=4.0, rtol=1e-6, method="rk5", save_at=times)
    assert torch.equal(saved.t, times)
    assert relative_error(saved.saved["y"][:, 0, 0], torch.exp(-times)) < 1e-5
    # One more step for each of the 8 stops at most, and no time to grow back.
    assert saved.stats["steps"] <= plain.stats["steps"] + 8


def test_record_sees_states_and_observables_that_belong_together():
    seen = []

    def record(y, obs):
        seen.append(len(y))
        return {
            "check": (y[:, 0] ** 2 + y[:, 1] ** 2) - obs[:, 0],
            "outer": y[:, :, None] * y[:, None],
        }

    y0 = torch.cat([START, 0.5 * START])
    run = integrate(pendulum, y0, t_end=3.0, save_at=[0.0, 1.0, 2.5], record=record, rtol=1e-6)
    assert run.saved["outer"].shape == (3, 2, 3, 3)
    assert_close(run.saved["check"], torch.zeros(3, 2), ops=10, scale=1.0)
    assert run.obs is not None
    assert_close(run.obs[:, 0], (run.y[:, :2] ** 2).sum(1), ops=10)
    assert sum(seen) == 6


def test_stop_rules_freeze_their_samples():
    rates = torch.tensor([[1.0], [5.0], [0.01]], dtype=torch.float64)
    y0 = torch.ones(3, 1, dtype=torch.float64)
    times = torch.linspace(0, 4, 9, dtype=torch.float64)
    run = integrate(Decay(rates), y0, t_end=4.0, save_at=times, stop={"speed": (0, 0.1)}, rtol=1e-6)
    assert run.status == ["speed", "speed", "speed"]
    # The third one starts below the threshold.
    assert run.t_final[2] == 0.0
    assert torch.equal(run.y[2], y0[2])
    for i in range(2):
        stop = float(run.t_final[i])
        exact = math.log(float(rates[i]) / 0.1) / float(rates[i])
        assert exact <= stop < 4.0
        assert relative_error(run.y[i], torch.exp(-rates[i] * stop)) < 1e-5
        late = times > stop
        assert late.any()
        assert torch.equal(run.saved["y"][late][:, i], run.y[i].expand(int(late.sum()), 1))
        assert (
            relative_error(run.saved["y"][~late][:, i, 0], torch.exp(-rates[i] * times[~late]))
            < 1e-5
        )


def test_stop_rule_of_a_single_sample_ends_its_rows():
    one = torch.ones(1, 1, dtype=torch.float64)
    run = integrate(Decay(one), one, t_end=math.inf, save_at=[0.0, 1.0, 50.0], stop={"s": (0, 0.1)})
    assert run.status == ["s"]
    assert run.t[:2].tolist() == [0.0, 1.0]
    assert len(run.t) == 3
    assert run.t[2] == run.t_final[0] < 50
    assert torch.equal(run.saved["y"][-1], run.y)


def test_limits_stop_with_their_names():
    one = torch.ones(2, 1, dtype=torch.float64)
    run = integrate(Decay(one), one, t_end=math.inf, max_steps=7)
    assert run.status == ["steps", "steps"]
    assert run.stats["steps"] + run.stats["rejected"] >= 7
    assert run.t[1] == run.t_final.max()
    assert integrate(Decay(one), one, t_end=1.0, max_seconds=0.0).status == ["seconds", "seconds"]


def test_corrections_are_applied_and_counted():
    """A rotation integrated coarsely, pulled back to the circle when it has left it."""

    y0 = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    calls = []

    def fix(y):
        calls.append(len(y))
        return y / y.norm(dim=1, keepdim=True)

    run = integrate(
        rotation,
        y0,
        t_end=30.0,
        rtol=1e-3,
        method="rk5",
        correct=(lambda obs: obs[:, 0] > 1e-4, fix),
    )
    assert float((run.y.norm(dim=1) - 1).abs().max()) <= 1e-4
    assert run.stats["corrections"] == sum(calls) > 0
    assert run.obs is not None
    assert_close(run.obs[:, 0], (run.y.norm(dim=1) - 1).abs(), scale=1.0, ops=10)


# ---- stiffness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stabilised_method_and_auto_are_cheap_on_a_stiff_gradient_flow(dtype):
    n, t_end, rtol = 200, 2.0, 1e-4
    y0 = rough_start(n)
    field = Chain(n, 0.01)
    exact = solve_ivp(
        lambda t, y: _chain_numpy(field, y),
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


def _chain_numpy(field, y):
    out = field.reaction * (y - y**3) - 2 * field.c * y
    out[1:] += field.c * y[:-1]
    out[:-1] += field.c * y[1:]
    return out


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


# ---- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rk5", "rk8", "rkc", "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blow_up_raises_with_the_solution_so_far(method, dtype):
    def square(t, y, out):
        torch.mul(y, y, out=out)

    y0 = torch.tensor([[1.0], [0.25]], dtype=dtype)
    with pytest.raises(IntegrationError, match="in sample 0, where the state has norm") as caught:
        integrate(square, y0, t_end=2.0, rtol=1e-4, method=method, save_at=[0.5, 0.9, 1.5])
    solution = caught.value.solution
    assert isinstance(caught.value, ValueError)
    assert solution.status[0] == "failed"
    assert solution.status[1] in ("t_end", "unfinished")
    assert 0.95 < float(solution.t_final[0]) < 1.05
    assert relative_error(solution.saved["y"][:2, 0, 0], [2.0, 10.0]) < 2e-2
    with pytest.raises(IntegrationError) as caught:
        integrate(square, y0[:1], t_end=2.0, rtol=1e-4, method=method)
    assert caught.value.solution.t[-1] > 0.95
    assert caught.value.solution.saved["y"].shape[0] == len(caught.value.solution.t)


@pytest.mark.parametrize("method", ["rk5", "rkc"])
def test_a_field_that_turns_nan_raises(method):
    def wall(t, y, out):
        out.copy_(torch.where(y < 1.0, 1.0, math.nan))

    y0 = torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(IntegrationError) as caught:
        integrate(wall, y0, t_end=2.0, rtol=1e-6, method=method)
    assert_close(caught.value.solution.t_final, [1.0], ops=1000)
    with pytest.raises(ValueError, match="field must be finite at the start"):
        integrate(wall, y0 + 2, t_end=2.0)
    with pytest.raises(ValueError, match="y0 must be finite at the start"):
        integrate(wall, y0 + math.nan, t_end=2.0)


BAD = [
    ({"t_end": -1.0}, "t_end must be"),
    ({"t_end": math.nan}, "t_end must be"),
    ({"t_end": math.inf}, "t_end must be finite"),
    ({"method": "euler"}, "method must be one of"),
    ({"save_at": [0.0, 2.0, 1.0]}, "save_at must be finite and strictly increasing"),
    ({"save_at": [0.0, math.nan]}, "save_at must be finite"),
    ({"save_at": []}, "save_at must be a non-empty vector"),
    ({"save_at": [0.0, 11.0]}, r"save_at must lie in \[0, 10.0\]"),
    ({"save_at": [-1.0, 1.0]}, "save_at must lie in"),
    ({"blocks": [1, 1]}, "blocks must be positive and sum to 3"),
    ({"blocks": [4, -1]}, "blocks must be positive"),
    ({"rtol": 0.0}, "rtol must be positive"),
    ({"rtol": math.nan}, "rtol must be positive"),
    ({"atol": -1.0}, "atol must be finite"),
    ({"atol": torch.ones(2)}, "atol must be a number or have shape"),
    ({"stop": {"x": (5, 0.0)}}, "stop must name columns"),
    ({"stop": {"x": (-1, 0.0)}}, "stop"),
    ({"stop": {"t_end": (0, 0.0)}}, "reserved"),
    ({"max_steps": -1}, "max_steps must be"),
    ({"max_seconds": math.nan}, "max_seconds must be"),
    ({"resume": {}}, "resume must be"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments_say_what_was_required(arguments, message):
    with pytest.raises(ValueError, match=message):
        integrate(pendulum, START, **{"t_end": 10.0, "rtol": 1e-3, **arguments})


def test_bad_states_and_fixed_steps():
    with pytest.raises(TypeError, match="y0 must be a floating tensor"):
        integrate(pendulum, START.long(), t_end=1.0)
    with pytest.raises(TypeError, match="y0 must be a floating tensor"):
        integrate(pendulum, [[1.0]], t_end=1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="y0 must have shape"):
        integrate(pendulum, START[0], t_end=1.0)
    with pytest.raises(ValueError, match="fixed number of stages"):
        fixed_steps(pendulum, START, 1.0, 3, "rkc")
    with pytest.raises(ValueError, match="n must be"):
        fixed_steps(pendulum, START, 1.0, 0, "rk5")
    with pytest.raises(ValueError, match="stages must be"):
        Chebyshev(1)


# ---- running -------------------------------------------------------------------------------------


def _interrupted(field, after):
    calls = 0

    def write(t, y, out):
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt
        return field(t, y, out)

    return write


@pytest.mark.parametrize(
    ("method", "dtype", "save_at"),
    [
        ("auto", torch.float64, [0.0, 0.02, 0.3, 1.0]),
        ("auto", torch.float32, None),
        ("rk8", torch.float64, None),
        ("rkc", torch.float64, [0.1, 0.2]),
    ],
)
@pytest.mark.parametrize("after", [30, 107, 230])
def test_resumed_run_equals_the_uninterrupted_one_to_the_bit(
    method, dtype, save_at, after, tmp_path
):
    n = 40
    field, y0 = Chain(n, 0.05), rough_start(n, batch=1 if save_at is None else 2).to(dtype)
    kwargs = {"t_end": 1.0, "rtol": 1e-5, "method": method, "save_at": save_at}
    whole = integrate(field, y0, **kwargs)
    assert whole.stats["evaluations"] > after
    states = []
    with pytest.raises(KeyboardInterrupt):
        integrate(_interrupted(field, after), y0, checkpoint=states.append, **kwargs)
    torch.save(states[-1], tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt")
    resumed = integrate(field, y0, resume=state, **kwargs)
    assert torch.equal(resumed.y, whole.y)
    assert torch.equal(resumed.t, whole.t)
    assert torch.equal(resumed.saved["y"], whole.saved["y"])
    assert resumed.status == whole.status
    for name in ("evaluations", "steps", "rejected", "switches", "by_method"):
        assert resumed.stats[name] == whole.stats[name]
    with pytest.raises(ValueError, match="resume must match y0"):
        integrate(field, y0[:, 1:], resume=state, **kwargs)
    with pytest.raises(ValueError, match="resume must be given with the method"):
        integrate(field, y0, resume=state, **{**kwargs, "method": "rk3"})


@pytest.mark.parametrize("after", range(40, 49))
def test_resumed_run_with_corrections_equals_the_uninterrupted_one(after):
    """Over more than one step, so that one interrupt falls into a corrected evaluation."""
    kwargs = {
        "t_end": 8.0,
        "rtol": 1e-3,
        "method": "rk5",
        "correct": (lambda obs: obs[:, 0] > 1e-5, lambda y: y / y.norm(dim=1, keepdim=True)),
    }
    y0 = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    whole = integrate(rotation, y0, **kwargs)
    assert whole.stats["corrections"] > 5
    states = []
    with pytest.raises(KeyboardInterrupt):
        integrate(_interrupted(rotation, after), y0, checkpoint=states.append, **kwargs)
    resumed = integrate(rotation, y0, resume=states[-1], **kwargs)
    assert torch.equal(resumed.saved["y"], whole.saved["y"])
    assert resumed.stats["evaluations"] == whole.stats["evaluations"]
    assert resumed.stats["corrections"] == whole.stats["corrections"]


def test_a_finished_run_can_be_extended():
    states = []
    short = integrate(pendulum, START, t_end=2.0, checkpoint=states.append, checkpoint_every=0.0)
    assert len(states) > 3
    longer = integrate(pendulum, START, t_end=5.0, resume=states[-1])
    assert longer.t_final[0] == 5.0
    assert torch.equal(longer.t[: len(short.t)], short.t)
    assert relative_error(longer.y[0], pendulum_exact(5.0)) < 1e-6


def test_one_wait_for_the_device_per_step(monkeypatch):
    waits = 0
    fetch = stepper_module.fetch

    def counted(pieces):
        nonlocal waits
        waits += 1
        return fetch(pieces)

    monkeypatch.setattr("dln_geometry.ode.loop.fetch", counted)
    n = 60
    for method in ("rk5", "rk8", "auto"):
        waits = 0
        run = integrate(
            Chain(n, 0.05),
            rough_start(n, 2),
            t_end=1.0,
            rtol=1e-5,
            method=method,
            save_at=[0.0, 0.5],
            max_steps=100,
        )
        # Two for the start; a trial all of whose samples are rejected is a step, too.
        assert waits <= run.stats["steps"] + run.stats["rejected"] + 2


def test_progress_and_gradients_are_left_alone():
    calls = []
    y0 = START.clone().requires_grad_()
    run = integrate(
        pendulum,
        y0,
        t_end=math.inf,
        stop={"z": (1, -1e9)},
        max_steps=30,
        progress=lambda fraction, info: calls.append((fraction, info)),
    )
    assert not run.y.requires_grad
    assert torch.is_grad_enabled()
    assert 1 <= len(calls) <= 5
    assert all(0 <= fraction <= 1 for fraction, _ in calls)
    assert {"t", "h", "steps", "evaluations", "method", "obs"} <= calls[-1][1].keys()
    calls.clear()
    integrate(pendulum, y0, t_end=1.0, progress=lambda fraction, _: calls.append(fraction))
    assert calls[-1] == 1.0
