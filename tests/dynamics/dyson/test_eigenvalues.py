from __future__ import annotations

import math
import warnings
from collections import defaultdict
from itertools import combinations

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import solve_ivp

from dln_geometry.dynamics import laws
from dln_geometry.dynamics.dyson import (
    dyson,
    field_step,
    isospectral_step,
    proximal,
    singular_dyson,
    singular_step,
    tridiagonal_step,
    vanishing_bessel,
)
from dln_geometry.testing import assert_close, assert_mean, assert_order

F64 = torch.float64
START = (-0.3, 0.1, 0.9)
SINGULAR = (0.2, 0.5, 1.1)
POWERS = [(2,), (4,), (2, 2), (3, 3), (2, 4), (6,)]


def expected(powers, start, t, index, excess=None):
    """E prod_k p_k at time t, exactly: the generator lowers the degree of symmetric polynomials.

    Power sums p_k of the positions; with `excess`, of the squares of singular values.
    """
    n = len(start)
    values = np.array(start) if excess is None else np.array(start) ** 2

    def add(out, c, degrees):
        out[tuple(sorted(k for k in degrees if k))] += c * float(n) ** degrees.count(0)

    def applied(poly):
        out = defaultdict(float)
        for mono, c in poly.items():
            for i, k in enumerate(mono):
                rest = list(mono[:i] + mono[i + 1 :])
                if excess is None and k >= 2:
                    add(out, c * k * (k - 1) * (1 / index - 0.5), [*rest, k - 2])
                    for a in range(k - 1):
                        add(out, c * k / 2, [*rest, a, k - 2 - a])
                elif excess is not None:
                    alone = k * (excess + 1) + 2 / index * k * (k - 1) - k * k
                    add(out, c * alone, [*rest, k - 1])
                    for a in range(k):
                        add(out, c * k, [*rest, a, k - 1 - a])
            for i, j in combinations(range(len(mono)), 2):
                rest = [k for q, k in enumerate(mono) if q not in (i, j)]
                k, other = mono[i], mono[j]
                if excess is None:
                    add(out, c * 2 / index * k * other, [*rest, k + other - 2])
                else:
                    add(out, c * 4 / index * k * other, [*rest, k + other - 1])
        return {mono: c for mono, c in out.items() if c}

    poly, total, order, factor = {tuple(sorted(powers)): 1.0}, 0.0, 0, 1.0
    while poly:
        for mono, c in poly.items():
            total += factor * c * math.prod(float((values**k).sum()) for k in mono)
        poly, order = applied(poly), order + 1
        factor *= t / order
    return total


def power_sums(x, powers):
    return torch.stack([(x**k).sum(-1) for k in powers]).prod(0)


def after(step, start, t, steps, count):
    x = torch.tensor(start, dtype=F64).repeat(count, 1)
    for _ in range(steps):
        x = step(x, t / steps)
        assert (x.diff(dim=-1) >= 0).all()
    return x


def assert_same_law(a, b):
    for k in (0, a.shape[-1] // 2, a.shape[-1] - 1):
        test = stats.ks_2samp(a[..., k].flatten().numpy(), b[..., k].flatten().numpy())
        assert test.pvalue > 1e-4, (k, test)


@pytest.mark.parametrize("index", [0.7, 1, 2, 3.3, 30.0])
def test_isospectral_steps_have_the_moments_of_the_motion(index, generator):
    x = after(isospectral_step(index, generator), START, 0.5, 8, 20_000)
    for powers in POWERS:
        assert_mean(power_sums(x, powers), expected(powers, START, 0.5, index))


@pytest.mark.parametrize("index", [1, 2, 4])
def test_gaussian_matrices_are_exact_in_one_step(index, generator):
    x = after(field_step(index, generator), START, 1.3, 1, 20_000)
    for powers in POWERS:
        assert_mean(power_sums(x, powers), expected(powers, START, 1.3, index))


def test_isospectral_steps_are_of_weak_order_two(generator):
    """At infinite index, where the random signs alone are noise and the error is largest."""
    step, powers = isospectral_step(math.inf, generator), (3, 3)
    wanted, errors = expected(powers, START, 1.0, math.inf), []
    for steps in (1, 2, 4, 8):
        sample = power_sums(after(step, START, 1.0, steps, 60_000), powers)
        errors.append(abs(float(sample.mean()) - wanted))
    assert_order([1, 1 / 2, 1 / 4, 1 / 8], errors, 2)


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


@pytest.mark.parametrize("index", [0.7, 2, 3.3])
def test_drift_and_covariance_of_one_small_step(index, generator):
    """All schemes against ``sum 1/(x_i - x_j)`` and 2/b, at a generic point."""
    x, h, count = torch.tensor(START, dtype=F64), 1e-4, 40_000
    gaps = x[:, None] - x + torch.diag(torch.full((3,), math.inf, dtype=F64))
    drift = gaps.reciprocal().sum(-1)
    for scheme in ("isospectral", "tridiagonal", "implicit"):
        path = dyson(
            x.repeat(count, 1), dyson_index=index, t_end=8 * h, dt=h, save_at=[h],
            generator=generator, scheme=scheme,
        )  # fmt: skip
        moved = path.states[0] - x
        assert_mean(moved, drift * h)
        outer = moved.unsqueeze(-1) * moved.unsqueeze(-2) / h
        # What is left is of order h.
        assert_mean(outer, 2 / index * torch.eye(3, dtype=F64), sigmas=5)


@pytest.mark.parametrize("index", [0.7, 1, 2, 3.3])
def test_law_from_zero_is_a_beta_ensemble(index, generator):
    t, count = 1.3, 2000
    zero = torch.zeros(count, 5, dtype=F64)
    path = dyson(zero, dyson_index=index, t_end=t, dt=t / 20, generator=generator, save_at=[t])
    assert_same_law(path.final, laws.beta_hermite(5, index, t=t, size=count, generator=generator))
    for shape in ((3, 3), (3, 5)):
        path = singular_dyson(
            zero[:, :3], shape, dyson_index=index, t_end=t, dt=t / 16, generator=generator,
            save_at=[t],
        )  # fmt: skip
        exact = laws.beta_laguerre(shape, index, t=t, size=count, generator=generator)
        assert_same_law(path.final, exact)


@pytest.mark.parametrize("scheme", ["isospectral", "tridiagonal"])
def test_edge_and_density_of_many_particles(scheme, generator):
    n, index, t = 300, 3.3, 1.9
    path = dyson(
        torch.zeros(n, dtype=F64), dyson_index=index, t_end=t, dt=t / 20, generator=generator,
        scheme=scheme,
    )  # fmt: skip
    assert path.states.shape == (21, n)
    assert (path.states.diff(dim=-1) >= 0).all()
    for at, x in zip(path.t[1:].tolist(), path.states[1:], strict=True):
        radius = laws.semicircle_radius(n, at)
        count = n * laws.semicircle_distribution(x, radius)
        assert (count - torch.arange(1, n + 1)).abs().max() < 3 * math.log(n)
        assert abs(float(x[-1]) / radius - 1) < 4 * n ** (-2 / 3)


@pytest.mark.parametrize("scheme", ["tridiagonal", "implicit"])
def test_other_schemes_give_the_moments_in_the_limit(scheme, generator):
    """Order 1: the extrapolated means of 32 and 64 steps."""
    start, t, index = (-1.0, 0.1, 0.9), 0.5, 3.3
    x = torch.tensor(start, dtype=F64).repeat(8000, 1)
    ends = [
        dyson(
            x, dyson_index=index, t_end=t, dt=t / k, generator=generator, save_at=[t], scheme=scheme
        ).final
        for k in (32, 64)
    ]
    for powers in [(2,), (4,), (2, 2)]:
        coarse, fine = (power_sums(end, powers) for end in ends)
        assert_mean(2 * fine - coarse, expected(powers, start, t, index))


def test_tridiagonal_steps_of_a_pair_are_exact(generator):
    index, t, start = 3.3, 2.0, (0.0, 0.5)
    x = after(tridiagonal_step(index, generator), start, t, 1, 20_000)
    for powers in POWERS:
        assert_mean(power_sums(x, powers), expected(powers, start, t, index))


def test_implicit_step_solves_its_equation_from_any_order():
    y = torch.tensor([[0.3, -0.2, 0.3, 5.0], [0.0, 0.0, 0.0, 0.0]], dtype=F64)
    x = proximal(torch.zeros_like(y), y, 0.4)
    gaps = x.unsqueeze(-1) - x.unsqueeze(-2)
    gaps.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
    assert_close(x, y + 0.4 * gaps.reciprocal().sum(-1), ops=1000)
    assert_close(x[1], 0.2**0.5 * laws.hermite_zeros(4), ops=1000)
    # Conjugate gradients instead of a factorisation.
    many = proximal(torch.zeros(150, dtype=F64), torch.zeros(150, dtype=F64), 2.0)
    assert_close(many, laws.hermite_zeros(150), ops=1000)


def test_implicit_paths_converge_strongly(generator):
    """With refined Brownian increments the same path is met, with order 1 away from collisions."""
    index, t, finest = 20.0, 0.5, 1024
    dw = math.sqrt(t / finest) * torch.randn(finest, 300, 3, generator=generator, dtype=F64)
    x = torch.tensor([-1.0, 0.1, 0.9], dtype=F64).repeat(300, 1)
    ends = [
        dyson(
            x, dyson_index=index, t_end=t, scheme="implicit", save_at=[t],
            increments=dw.reshape(k, -1, 300, 3).sum(1),
        ).final
        for k in (16, 32, 64, 128, finest)
    ]  # fmt: skip
    errors = [float((end - ends[-1]).square().mean().sqrt()) for end in ends[:-1]]
    assert_order([1 / 16, 1 / 32, 1 / 64, 1 / 128], errors, 1, tol=0.25)


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
    path = dyson(torch.tensor(start, dtype=F64), dyson_index=math.inf, t_end=2.0, save_at=times)
    for t, x in zip(times, path.states, strict=True):
        assert np.abs(x.numpy() - polynomial_roots_of_heat(start, t)).max() < 1e-8


@pytest.mark.parametrize("start", [(0.0, 0.0, 1.0, 1.0), (0.1, 0.4, 1.0, 2.0)])
def test_infinite_index_of_singular_values(start):
    """Against moments, which are exact for every index."""
    path = singular_dyson(
        torch.tensor(start, dtype=F64), (6, 4), dyson_index=math.inf, t_end=2.0, save_at=[0.0, 0.3]
    )
    assert_close(path.states[0], start)
    for t, s in ((0.3, path.states[1]), (2.0, path.final)):
        for powers in [(1,), (2,), (3,), (4,)]:
            wanted = expected(powers, start, t, math.inf, 2)
            assert abs(float(power_sums(s.square(), powers)) / wanted - 1) < 1e-7


def test_infinite_index_is_the_limit_of_large_ones(generator):
    x = torch.tensor(START, dtype=F64)
    limit = dyson(x, dyson_index=math.inf, t_end=0.7, confinement=0.4).final
    scipy = solve_ivp(
        lambda _, y: [sum(1 / (a - b) for b in y if b != a) - 0.4 * a for a in y],
        (0, 0.7), START, rtol=1e-12, atol=1e-12,
    )  # fmt: skip
    assert np.abs(limit.numpy() - scipy.y[:, -1]).max() < 1e-8
    near = dyson(
        x, dyson_index=1e10, t_end=0.7, confinement=0.4, dt=1e-3, generator=generator
    ).final
    assert (near - limit).abs().max() < 0.02


@pytest.mark.parametrize("scheme", ["isospectral", "tridiagonal", "implicit"])
def test_confinement_ends_in_equilibrium(scheme, generator):
    """``E sum x^2`` solves a linear equation; its rest is that of a beta ensemble."""
    c, t, index, start = 0.7, 0.9, 3.3, (-1.0, 0.1, 0.9)
    x = torch.tensor(start, dtype=F64).repeat(10_000, 1)
    steps = 64
    path = dyson(
        x, dyson_index=index, t_end=t, dt=t / steps, generator=generator, scheme=scheme,
        confinement=c, save_at=[t],
    )  # fmt: skip
    rest = (6 + 6 / index) / (2 * c)
    wanted = rest + math.exp(-2 * c * t) * (sum(v * v for v in start) - rest)
    squares = path.final.square().sum(-1)
    bias = {"isospectral": 0.0, "tridiagonal": 0.01, "implicit": 0.03}[scheme]
    assert abs(float(squares.mean()) / wanted - 1) < bias + 4 * float(squares.std()) / 100 / wanted


@pytest.mark.parametrize("index", [0.7, 3.3])
def test_confinement_has_a_beta_ensemble_as_its_stationary_law(index, generator):
    """At ``t = 1/(2c)`` of the free motion, for eigenvalues and for singular values."""
    c, count = 0.8, 2000
    options = {
        "dyson_index": index, "t_end": 4.0, "dt": 0.2, "confinement": c, "save_at": [4.0],
        "generator": generator,
    }  # fmt: skip
    rest = -math.expm1(-8 * c) / (2 * c)
    x = dyson(torch.zeros(count, 4, dtype=F64), **options).final
    assert_same_law(x, laws.beta_hermite(4, index, t=rest, size=count, generator=generator))
    s = singular_dyson(torch.zeros(count, 3, dtype=F64), (5, 3), **options).final
    assert_same_law(s, laws.beta_laguerre((5, 3), index, t=rest, size=count, generator=generator))


@pytest.mark.parametrize("index", [0.7, 3.3])
def test_edge_and_density_of_many_singular_values(index, generator):
    shape, t = (450, 300), 1.9
    path = singular_dyson(
        torch.zeros(300, dtype=F64), shape, dyson_index=index, t_end=t, dt=t / 8,
        generator=generator, save_at=[t],
    )  # fmt: skip
    s, order = path.final, torch.arange(1, 301)
    count = 300 * laws.marchenko_pastur_distribution(s, shape, t)
    assert (count - order).abs().max() < 3 * math.log(300) / min(index, 1)
    edge = laws.marchenko_pastur_edges(shape, t)[1]
    assert abs(float(s[-1]) / edge - 1) < 4 * 300 ** (-2 / 3) / min(index, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "start", "count"),
    [("tridiagonal", (-0.5, -0.2, 0.2, 0.5), 40_000), ("implicit", (-1.0, 0.1, 0.9), 8000)],
)
def test_other_schemes_are_of_weak_order_one(scheme, start, count, generator):
    """Pairs are exact for the tridiagonal one, and three particles nearly so: four take part."""
    t, index = 0.5, 3.3
    x, steps, errors = torch.tensor(start, dtype=F64).repeat(count, 1), [], []
    wanted = expected((4,), start, t, index)
    for k in (8, 12, 16, 24):
        end = dyson(
            x, dyson_index=index, t_end=t, dt=t / k, generator=generator, save_at=[t], scheme=scheme
        ).final
        steps.append(t / k)
        errors.append(abs(float(power_sums(end, (4,)).mean()) - wanted))
    assert_order(steps, errors, 1, tol=0.5)


def test_signed_singular_value_moves_through_zero(generator):
    """The determinant of a matrix Brownian motion is a martingale; its modulus is not."""
    start, count, t = torch.tensor([0.3, 1.0, 1.4], dtype=F64), 40_000, 0.2
    s = start.repeat(count, 1)
    signed = singular_dyson(
        s, (3, 3), t_end=t, dt=t / 4, generator=generator, signed=True, save_at=[t]
    ).final
    assert (signed[:, 0] < 0).any()
    assert (signed[:, 0].abs() <= signed[:, 1]).all()
    assert_mean(signed.prod(-1), float(start.prod()))
    plain = singular_dyson(s, (3, 3), t_end=t, dt=t / 4, generator=generator, save_at=[t]).final
    assert_same_law(signed.abs(), plain)


def test_trajectories_are_as_they_are_promised(generator):
    x = torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    path = dyson(x, dyson_index=1, t_end=1.0, dt=0.3, generator=generator)
    assert path.states.shape == (5, 2, 3)
    assert path.states.dtype == torch.float32
    assert path.states[0, 0].tolist() == [-1.0, 0.0, 2.0]
    assert path.stats["steps"] == 4
    assert torch.equal(path.final, path.states[-1])
    again = dyson(x, dyson_index=1, t_end=1.0, save_at=[0.5], generator=generator)
    assert again.states.shape == (1, 2, 3)
    assert again.stats["steps"] == 2
    data = path.to_xarray()
    assert data["states"].dims == ("time", "batch", "particle")


@pytest.mark.parametrize("scheme", ["isospectral", "tridiagonal", "implicit"])
@pytest.mark.parametrize("index", [0.3, 2.5, 1e4])
@pytest.mark.parametrize("n", [1, 2, 150])
def test_single_precision_keeps_the_order(scheme, index, n, generator):
    path = dyson(
        torch.zeros(2, n), dyson_index=index, t_end=1.0, dt=0.1, generator=generator,
        scheme=scheme, confinement=0.5,
    )  # fmt: skip
    assert path.states.dtype == torch.float32
    assert torch.isfinite(path.states).all()
    assert (path.states.diff(dim=-1) >= 0).all()


def test_runs_repeat_with_their_generator():
    def run(seed):
        g = torch.Generator().manual_seed(seed)
        zero = torch.zeros(4, dtype=F64)
        return dyson(zero, dyson_index=2.5, t_end=1.0, dt=0.1, generator=g).states

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_progress_bars_do_not_disturb(generator, capsys):
    dyson([0.0, 1.0], dyson_index=1, t_end=1.0, dt=0.5, generator=generator, progress=True)
    assert "Dyson" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"dyson_index": 0}, ValueError, "dyson_index must be positive"),
        ({"dyson_index": -1.0}, ValueError, "dyson_index must be positive"),
        ({"dyson_index": None}, TypeError, "dyson_index must be a number"),
        ({"dt": 0.0}, ValueError, "dt must be positive"),
        ({"dt": None}, ValueError, "dt must be given"),
        ({"t_end": -1.0}, ValueError, "t_end must be positive"),
        ({"t_end": math.inf}, ValueError, "t_end must be positive and finite"),
        ({"confinement": -0.1}, ValueError, "confinement must be non-negative"),
        ({"confinement": "much"}, TypeError, "confinement must be a real number"),
        ({"start": [math.inf, 1.0]}, ValueError, "start must be finite"),
        ({"dyson_index": 1e-300}, ValueError, "must leave positions finite, got overflow"),
        ({"save_at": "now"}, TypeError, "save_at must be a vector of times"),
        ({"scheme": "euler"}, ValueError, "scheme must be one of isospectral"),
        ({"scheme": "exact"}, ValueError, "dyson_index must be 1, 2 or 4"),
        ({"start": [math.nan, 1.0]}, ValueError, "start must be finite"),
        ({"start": 1.0}, ValueError, r"start must have shape \(..., n\)"),
        ({"start": "zero"}, TypeError, "start must be a real array"),
        ({"save_at": [0.5, 2.0]}, ValueError, "save_at must lie in"),
        ({"increments": [[0.1, 0.1]]}, ValueError, "increments must go with"),
        (
            {"increments": [[0.1, 0.1]], "scheme": "implicit", "dyson_index": math.inf},
            ValueError,
            "increments must go with .* finite index",
        ),
        (
            {"increments": [0.1, 0.1], "scheme": "implicit"},
            ValueError,
            r"increments must have shape \(K, ..., 2\)",
        ),
    ],
)
def test_errors_say_what_was_required(change, error, words):
    arguments = {"start": [0.0, 1.0], "dyson_index": 3.3, "t_end": 1.0, "dt": 0.1, **change}
    with pytest.raises(error, match=words):
        dyson(arguments.pop("start"), **arguments)


def test_errors_of_singular_values():
    with pytest.raises(ValueError, match=r"start must have shape \(..., 2\) for 3 x 2"):
        singular_dyson([1.0, 2.0, 3.0], (3, 2), t_end=1.0)
    with pytest.raises(ValueError, match="start must be non-negative"):
        singular_dyson([-1.0, 2.0], (3, 2), t_end=1.0)
    with pytest.raises(ValueError, match="signed must go with a square shape"):
        singular_dyson([1.0, 2.0], (3, 2), t_end=1.0, signed=True)
    with pytest.raises(ValueError, match="but for the smallest"):
        singular_dyson([-2.0, 1.0], (2, 2), t_end=1.0, signed=True)


def test_huge_indices_are_infinity(generator):
    start, options = [-1.0, 0.2, 0.9], {"t_end": 1.0, "dt": 0.01, "save_at": [1.0]}
    for motion, rest in ((dyson, {}), (singular_dyson, {"shape": (4, 3)})):
        x = torch.tensor(start, dtype=F64).abs()
        near = motion(x, dyson_index=1e300, generator=generator, **rest, **options)
        limit = motion(x, dyson_index=math.inf, **rest, **options)
        assert float((near.final - limit.final).abs().max()) < 1e-2


def test_hardly_any_steps_are_warned_of(generator):
    with pytest.warns(UserWarning, match="take dt below 0.125"):
        dyson([0.0, 1.0], dyson_index=3.3, t_end=1.0, dt=0.5, generator=generator)
    with pytest.warns(UserWarning, match="take dt below 0.125"):
        singular_dyson([0.0, 1.0], (2, 2), dyson_index=3.3, t_end=1.0, dt=0.5, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dyson([0.0, 1.0], dyson_index=1, t_end=1.0, dt=0.5, generator=generator)
