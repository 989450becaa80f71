from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dln_geometry import exact
from dln_geometry.testing import assert_close

quadratic, quadratic_residual = exact.quadratic, exact.quadratic_residual

DEPTHS = [1, 1.5, 2, 2.7, 3, 4, 10, 64, math.inf]
# From below, from just below, from a tiny start, from above, to zero, to a negative target.
STARTS = [(0.3, 1.7), (1.69, 1.7), (1e-3, 0.8), (2.9, 1.3), (1.1, 0.0), (1.4, -0.6)]
EPS = torch.finfo(torch.float64).eps


def velocity(s, m, depth):
    rate = depth if math.isfinite(depth) else 1.0
    return -rate * s ** (2 - 2 / depth) * (s - m)


def printed_time(depth, s0, s1, m):
    """The implicit solution as it is printed, at high precision, from s0 to s1 below m."""
    if math.isinf(depth):
        values = [mpmath.log(s / (m - s)) / m**2 - 1 / (m * s) for s in (s0, s1)]
        return values[1] - values[0]
    b = 2 / mpmath.mpf(depth) - 1
    values = [s**b / (m * b) * mpmath.hyp2f1(1, b, b + 1, s / m) for s in (s0, s1)]
    return (values[1] - values[0]) / depth


@pytest.mark.parametrize("depth", DEPTHS)
def test_agrees_with_an_integrated_equation(depth):
    s0, m = np.array(STARTS).T
    t = np.linspace(0, 1.2 if depth < 10 else 1.2 / min(depth, 64), 7)
    if 1 < depth < 2:
        # A negative target is reached in a finite time, where the equation is not Lipschitz.
        t = t * 0.2

    path = solve_ivp(
        lambda _, s: velocity(s, m, depth),
        (0, t[-1]),
        s0,
        method="DOP853",
        t_eval=t,
        rtol=1e-13,
        atol=1e-18,
    )
    assert_close(quadratic(s0, m, depth, t), path.y.T, ops=1e-11 / EPS, scale=1.0)


@pytest.mark.parametrize("depth", [1.01, 1.5, 2.7, 3, 10, 64, 1e6, math.inf])
@pytest.mark.parametrize("start", [1e-12, 1e-3, 0.7, 1.2])
def test_agrees_with_the_printed_implicit_solution(depth, start):
    m = 1.3
    b = 2 / depth - 1
    rate = depth if math.isfinite(depth) else 1.0
    # About the time that the way to m takes, but for its end.
    half = math.expm1(b * math.log(m / start)) / b * start**b
    scale = abs(half) / m / rate
    with mpmath.workdps(80):
        late = scale + 5.0 / rate / m ** (2 - 2 / depth)
        for t in (1e-3 * scale, 0.4 * scale, scale, late):
            time = torch.tensor(t, dtype=torch.float64)
            residual = float(quadratic_residual(start, m, depth, time))
            s = float(quadratic(start, m, depth, time))
            below = mpmath.mpf(s) if s < m / 2 else mpmath.mpf(m) + residual
            error = printed_time(depth, mpmath.mpf(start), below, mpmath.mpf(m)) - t
            # In units of the distances to both ends.
            moved = abs(velocity(s, m, depth)) / min(s, -residual)
            assert_close(float(error) * moved, 0.0, scale=1 + t * moved, ops=100)


def test_depth_one_and_two_are_the_closed_forms(rng):
    s0, m = rng.uniform(0.1, 3, 20), rng.uniform(0.1, 3, 20)
    t = rng.uniform(0, 2, (4, 1))
    assert_close(quadratic(s0, m, 1, t[:, 0]), m + (s0 - m) * np.exp(-t))
    # Multiplied by e^{-2mt}, so that nothing overflows.
    logistic = m / (1 + np.exp(-2 * m * t) * (m / s0 - 1))
    assert_close(quadratic(s0, m, 2, t[:, 0]), logistic)


@pytest.mark.parametrize("depth", DEPTHS)
def test_late_residual_decays_at_the_local_rate(depth):
    m = 0.9
    rate = (depth if math.isfinite(depth) else 1.0) * m ** (2 - 2 / depth)
    t = torch.tensor([80.0, 100.0, 300.0], dtype=torch.float64) / rate
    start = torch.tensor([0.4, 1.5], dtype=torch.float64)
    late = quadratic_residual(start, m, depth, t)
    decay = torch.exp(-rate * (t[1:] - t[0]))[:, None]
    assert_close(late[1:] / late[0] / decay, torch.ones(2, 2), ops=1000)
    assert_close(quadratic(start, m, depth, t), torch.full((3, 2), m, dtype=torch.float64), ops=10)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("s0", "m"), [(1e-20, 0.7), (1e12, 0.7), (0.1, 1e9), (3e4, -1e-3)])
def test_parts_of_the_way_add_up(depth, s0, m):
    start = torch.tensor(s0, dtype=torch.float64)
    rate = depth if math.isfinite(depth) else 1.0
    times = torch.logspace(-2, 2, 9, dtype=torch.float64) / (rate * abs(m) ** (2 - 2 / depth))
    for t in times.tolist():
        middle = quadratic(start, m, depth, 0.3 * t)
        direct = quadratic(start, m, depth, t)
        if float(direct) > 1e-8 * min(s0, abs(m)):
            # The relative change of the result by one of the time is its condition.
            speed = abs(velocity(float(direct), m, depth)) * t / float(direct)
            assert_close(quadratic(middle, m, depth, 0.7 * t) / direct, 1.0, condition=1 + speed)


def test_zero_and_the_target_stand_still():
    t = [0.0, 0.5, 40.0]
    start = torch.tensor([0.0, 1.3], dtype=torch.float64)
    for depth in (1.5, 2, 3.3, math.inf):
        rest = quadratic(start, 1.3, depth, t)
        assert torch.equal(rest, start.expand(3, 2))
    # Depth 1 has no rest at zero.
    assert_close(quadratic(start[0], 1.3, 1, 0.5), -1.3 * math.expm1(-0.5))


def test_negative_target_stops_at_zero_after_a_finite_time_between_depth_one_and_two():
    depth, m, s0 = 1.5, -0.8, 0.4
    # int_0^s0 ds / (N s^a (s - m)), smooth in x = s^{1-a}.
    b = 2 / depth - 1
    nodes, weights = np.polynomial.legendre.leggauss(60)
    x = s0**b * (1 + nodes) / 2
    end = float((weights / (x ** (1 / b) - m)).sum()) * s0**b / 2 / b / depth
    before, after = quadratic(torch.tensor(s0), m, depth, [end * (1 - 1e-3), end * (1 + 1e-5)])
    assert 0 < float(before) < 1e-6
    assert float(after) == 0.0
    for late in (2, 3, math.inf):
        assert 0 < float(quadratic(s0, m, late, 4.0)) < 0.2


def test_normalisation_scales_time():
    start = torch.tensor([0.2, 2.0], dtype=torch.float64)
    for depth in (1, 2.7, 5):
        plain = quadratic(start, 1.1, depth, 0.6)
        assert_close(quadratic(start, 1.1, depth, 0.6 * depth, normalized=True), plain)
    assert torch.equal(
        quadratic(start, 1.1, math.inf, 0.6),
        quadratic(start, 1.1, math.inf, 0.6, normalized=True),
    )
    # The limit of large depth, with an error of order 1/N.
    near = quadratic(start, 1.1, 1e9, 0.6, normalized=True)
    assert_close(near, quadratic(start, 1.1, math.inf, 0.6), ops=1e-8 / EPS)


def test_shapes_time_first_and_dtypes():
    start, target = torch.rand(4, 1) + 0.1, torch.rand(3) + 0.5
    assert quadratic(start, target, 3, 0.5).shape == (4, 3)
    path = quadratic(start, target, 3, torch.linspace(0, 1, 7, dtype=torch.float64))
    assert path.shape == (7, 4, 3)
    assert path.dtype == torch.float32
    assert quadratic(start, target.double(), 3, 0.5).dtype == torch.float64
    assert quadratic(start.half(), 1, 3, 0.5).dtype == torch.float32
    assert quadratic(0.1, 1, 3, 0.5).dtype == torch.float32
    assert quadratic(0.1, 1, 3, np.array([0.5])).dtype == torch.float64
    one = quadratic(start[2, 0].double(), target[1].double(), 3, float(torch.linspace(0, 1, 7)[4]))
    assert_close(path[4, 2, 1], one, ops=2)
    # More values than are solved for at once.
    many = quadratic(start.expand(4, 3000), 1.0, 3, 0.5)
    assert torch.equal(many[:, :1].expand(4, 3000), many)


def test_bad_input():
    with pytest.raises(ValueError, match="s0 must be at least 0, got -1"):
        quadratic([1.0, -1.0], 1.0, 2, 1.0)
    with pytest.raises(ValueError, match="t must be at least 0"):
        quadratic(1.0, 1.0, 2, -1.0)
    with pytest.raises(ValueError, match="depth must be a real number >= 1"):
        quadratic(1.0, 1.0, 0.5, 1.0)
    with pytest.raises(ValueError, match="target must be finite"):
        quadratic(1.0, math.nan, 2, 1.0)
    with pytest.raises(ValueError, match="t must be finite"):
        quadratic(1.0, 1.0, 2, math.inf)
    with pytest.raises(ValueError, match=r"shapes that broadcast, got \(2,\) and \(3,\)"):
        quadratic([1.0, 2.0], [1.0, 2.0, 3.0], 2, 1.0)
    with pytest.raises(ValueError, match="normalized must be True or None"):
        quadratic(1.0, 1.0, math.inf, 1.0, normalized=False)
    for bad in ("a", None, 1j):
        with pytest.raises(TypeError, match="s0 must be"):
            quadratic(bad, 1.0, 2, 1.0)
