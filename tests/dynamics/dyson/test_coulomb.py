from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import dln_geometry as dln
from dln_geometry.testing import assert_close
from tests.dynamics.dyson.routes import F64, START, expected, power_sums


def polynomial_roots_of_heat(start, t):
    """exp(-t/2 d^2/dz^2) prod (z - x_i): its zeros repel each other as charges do."""
    with mpmath.workdps(60):
        coefficients = [mpmath.mpf(1)]
        for x in start:
            pairs = zip([*coefficients, 0], [0, *coefficients], strict=True)
            coefficients = [a - mpmath.mpf(x) * b for a, b in pairs]
        total, term, k = list(coefficients), list(coefficients), 0
        while len(term) > 2:
            degree = len(term) - 1
            term = [term[i] * (degree - i) * (degree - i - 1) for i in range(degree - 1)]
            k += 1
            for i, c in enumerate(term):
                total[len(total) - len(term) + i] += (
                    c * (-mpmath.mpf(t) / 2) ** k / math.factorial(k)
                )
        roots = mpmath.polyroots(total, maxsteps=500, extraprec=400)
        return sorted(float(mpmath.re(root)) for root in roots)


@pytest.mark.parametrize(
    "start", [(0.0, 0.0, 1.0, 3.0, 3.0, 3.0), (0.1, 0.3, 0.35, 2.1, 2.0), (-1.0, -1.0, -1.0, 2.0)]
)
def test_infinite_index_is_the_heat_equation_of_polynomials(start):
    times = [0.01, 0.7]
    path = dln.dyson(torch.tensor(start, dtype=F64), dyson_index=math.inf, t_end=2.0, save_at=times)
    for t, x in zip(times, path.states, strict=True):
        assert np.abs(x.numpy() - polynomial_roots_of_heat(start, t)).max() < 1e-8


@pytest.mark.parametrize("start", [(0.0, 0.0, 1.0, 1.0), (0.1, 0.4, 1.0, 2.0)])
def test_infinite_index_of_singular_values(start):
    """Against moments, which are exact for every index."""
    path = dln.singular_dyson(
        torch.tensor(start, dtype=F64), (6, 4), dyson_index=math.inf, t_end=2.0, save_at=[0.0, 0.3]
    )
    assert_close(path.states[0], start)
    for t, s in ((0.3, path.states[1]), (2.0, path.final)):
        for powers in [(1,), (2,), (3,), (4,)]:
            wanted = expected(powers, start, t, math.inf, 2)
            assert abs(float(power_sums(s.square(), powers)) / wanted - 1) < 1e-7


def test_infinite_index_is_the_limit_of_large_ones(generator):
    x = torch.tensor(START, dtype=F64)
    limit = dln.dyson(x, dyson_index=math.inf, t_end=0.7, confinement=0.4).final
    scipy = solve_ivp(
        lambda _, y: [sum(1 / (a - b) for b in y if b != a) - 0.4 * a for a in y],
        (0, 0.7), START, rtol=1e-12, atol=1e-12,
    )  # fmt: skip
    assert np.abs(limit.numpy() - scipy.y[:, -1]).max() < 1e-8
    near = dln.dyson(
        x, dyson_index=1e10, t_end=0.7, confinement=0.4, dt=1e-3, generator=generator
    ).final
    assert (near - limit).abs().max() < 0.02


def test_huge_indices_are_infinity(generator):
    start, options = [-1.0, 0.2, 0.9], {"t_end": 1.0, "dt": 0.01, "save_at": [1.0]}
    for motion, rest in ((dln.dyson, {}), (dln.singular_dyson, {"shape": (4, 3)})):
        x = torch.tensor(start, dtype=F64).abs()
        near = motion(x, dyson_index=1e300, generator=generator, **rest, **options)
        limit = motion(x, dyson_index=math.inf, **rest, **options)
        assert float((near.final - limit.final).abs().max()) < 1e-2
