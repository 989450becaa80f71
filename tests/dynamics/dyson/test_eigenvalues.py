from __future__ import annotations

import math
import warnings

import pytest
import torch

import dln_geometry as dln
from dln_geometry.dynamics.dyson import field_step, isospectral_step, tridiagonal_step
from dln_geometry.testing import assert_mean, assert_order
from tests.dynamics.dyson.routes import F64, POWERS, START, after, expected, power_sums
from tests.dynamics.noise.routes import assert_same_law


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


@pytest.mark.parametrize("index", [0.7, 2, 3.3])
def test_drift_and_covariance_of_one_small_step(index, generator):
    """All schemes against ``sum 1/(x_i - x_j)`` and 2/b, at a generic point."""
    x, h, count = torch.tensor(START, dtype=F64), 1e-4, 40_000
    gaps = x[:, None] - x + torch.diag(torch.full((3,), math.inf, dtype=F64))
    drift = gaps.reciprocal().sum(-1)
    for scheme in ("isospectral", "tridiagonal", "implicit"):
        path = dln.dyson(
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
    path = dln.dyson(zero, dyson_index=index, t_end=t, dt=t / 20, generator=generator, save_at=[t])
    assert_same_law(
        path.final, dln.laws.beta_hermite(5, index, t=t, size=count, generator=generator)
    )
    for shape in ((3, 3), (3, 5)):
        path = dln.singular_dyson(
            zero[:, :3], shape, dyson_index=index, t_end=t, dt=t / 16, generator=generator,
            save_at=[t],
        )  # fmt: skip
        exact = dln.laws.beta_laguerre(shape, index, t=t, size=count, generator=generator)
        assert_same_law(path.final, exact)


@pytest.mark.parametrize("scheme", ["isospectral", "tridiagonal"])
def test_edge_and_density_of_many_particles(scheme, generator):
    n, index, t = 300, 3.3, 1.9
    path = dln.dyson(
        torch.zeros(n, dtype=F64), dyson_index=index, t_end=t, dt=t / 20, generator=generator,
        scheme=scheme,
    )  # fmt: skip
    assert path.states.shape == (21, n)
    assert (path.states.diff(dim=-1) >= 0).all()
    for at, x in zip(path.t[1:].tolist(), path.states[1:], strict=True):
        radius = dln.laws.semicircle_radius(n, at)
        count = n * dln.laws.semicircle_distribution(x, radius)
        assert (count - torch.arange(1, n + 1)).abs().max() < 3 * math.log(n)
        assert abs(float(x[-1]) / radius - 1) < 4 * n ** (-2 / 3)


@pytest.mark.parametrize("scheme", ["tridiagonal", "implicit"])
def test_other_schemes_give_the_moments_in_the_limit(scheme, generator):
    """Order 1: the extrapolated means of 32 and 64 steps."""
    start, t, index = (-1.0, 0.1, 0.9), 0.5, 3.3
    x = torch.tensor(start, dtype=F64).repeat(8000, 1)
    ends = [
        dln.dyson(
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


@pytest.mark.parametrize("scheme", ["isospectral", "tridiagonal", "implicit"])
def test_confinement_ends_in_equilibrium(scheme, generator):
    """``E sum x^2`` solves a linear equation; its rest is that of a beta ensemble."""
    c, t, index, start = 0.7, 0.9, 3.3, (-1.0, 0.1, 0.9)
    x = torch.tensor(start, dtype=F64).repeat(10_000, 1)
    steps = 64
    path = dln.dyson(
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
    x = dln.dyson(torch.zeros(count, 4, dtype=F64), **options).final
    assert_same_law(x, dln.laws.beta_hermite(4, index, t=rest, size=count, generator=generator))
    s = dln.singular_dyson(torch.zeros(count, 3, dtype=F64), (5, 3), **options).final
    assert_same_law(
        s, dln.laws.beta_laguerre((5, 3), index, t=rest, size=count, generator=generator)
    )


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
        end = dln.dyson(
            x, dyson_index=index, t_end=t, dt=t / k, generator=generator, save_at=[t], scheme=scheme
        ).final
        steps.append(t / k)
        errors.append(abs(float(power_sums(end, (4,)).mean()) - wanted))
    assert_order(steps, errors, 1, tol=0.5)


def test_trajectories_are_as_they_are_promised(generator):
    x = torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    path = dln.dyson(x, dyson_index=1, t_end=1.0, dt=0.3, generator=generator)
    assert path.states.shape == (5, 2, 3)
    assert path.states.dtype == torch.float32
    assert path.states[0, 0].tolist() == [-1.0, 0.0, 2.0]
    assert path.stats["steps"] == 4
    assert torch.equal(path.final, path.states[-1])
    again = dln.dyson(x, dyson_index=1, t_end=1.0, save_at=[0.5], generator=generator)
    assert again.states.shape == (1, 2, 3)
    assert again.stats["steps"] == 2
    data = path.to_xarray()
    assert data["states"].dims == ("time", "batch", "particle")


@pytest.mark.parametrize("scheme", ["isospectral", "tridiagonal", "implicit"])
@pytest.mark.parametrize("index", [0.3, 2.5, 1e4])
@pytest.mark.parametrize("n", [1, 2, 150])
def test_single_precision_keeps_the_order(scheme, index, n, generator):
    path = dln.dyson(
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
        return dln.dyson(zero, dyson_index=2.5, t_end=1.0, dt=0.1, generator=g).states

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_progress_bars_do_not_disturb(generator, capsys):
    dln.dyson([0.0, 1.0], dyson_index=1, t_end=1.0, dt=0.5, generator=generator, progress=True)
    assert "Dyson" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"dyson_index": 0}, ValueError, "dyson_index must be positive"),
        ({"dyson_index": -1.0}, ValueError, "dyson_index must be positive"),
        ({"dyson_index": None}, TypeError, "dyson_index must be a real number"),
        ({"dt": 0.0}, ValueError, "dt must be positive"),
        ({"dt": None}, ValueError, "dt must be given"),
        ({"t_end": -1.0}, ValueError, "t_end must be positive"),
        ({"t_end": math.inf}, ValueError, "t_end must be positive and finite"),
        ({"confinement": -0.1}, ValueError, "confinement must be non-negative"),
        ({"confinement": "much"}, TypeError, "confinement must be a real number"),
        ({"start": [math.inf, 1.0]}, ValueError, "start must be finite"),
        ({"dyson_index": 1e-300}, ValueError, "must leave positions finite, got overflow"),
        ({"save_at": "now"}, TypeError, "save_at must be a real array or tensor, got str"),
        ({"scheme": "euler"}, ValueError, 'scheme must be one of "isospectral"'),
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
        dln.dyson(arguments.pop("start"), **arguments)


def test_hardly_any_steps_are_warned_of(generator):
    with pytest.warns(UserWarning, match="take dt below 0.125"):
        dln.dyson([0.0, 1.0], dyson_index=3.3, t_end=1.0, dt=0.5, generator=generator)
    with pytest.warns(UserWarning, match="take dt below 0.125"):
        dln.singular_dyson(
            [0.0, 1.0], (2, 2), dyson_index=3.3, t_end=1.0, dt=0.5, generator=generator
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dln.dyson([0.0, 1.0], dyson_index=1, t_end=1.0, dt=0.5, generator=generator)
