from __future__ import annotations

import math
import warnings

import pytest
import torch
from scipy.integrate import solve_ivp

import dln_geometry as dln
from dln_geometry.testing import assert_close, assert_mean, assert_order
from tests.dynamics.noise.routes import assert_same_law

F64 = torch.float64
START = (1.3, 0.7, 0.2)


def quartic(s):
    return 0.3 * s.pow(4).sum(-1) - 0.5 * s.sum(-1)


def spectral_drift(s, depth, beta, kappa, excess, wall):
    """The drift and the noise of the singular values as theory gives them, term by term."""
    s = s.clone().requires_grad_()
    # The entropy from matrices, its slope by autograd.
    parts = -quartic(s) + dln.entropy(torch.diag(s), depth=depth) / beta
    parts = parts + excess / depth * s.log().sum() / beta
    slope = torch.autograd.grad(parts, s)[0]
    s = s.detach()
    lam = s ** (2 / depth)
    gaps = lam[:, None] - lam + torch.diag(torch.full_like(s, math.inf))
    metric = depth * s ** (2 - 2 / depth)
    noise = (depth - 1 + wall) * s ** (1 - 2 / depth) + (2 * s[:, None] / gaps).sum(-1)
    return metric * slope + kappa / beta * noise, 2 * kappa / beta * metric


@pytest.mark.parametrize("depth", [1, 2.5, 4])
@pytest.mark.parametrize("shape", [(3, 3), (5, 4)])
def test_drift_and_covariance_of_one_small_step(depth, shape, generator):
    beta, kappa, h, count = 1.7, 0.6, 1e-5, 100_000
    s = torch.tensor(START, dtype=F64)
    path = dln.dln_dyson(
        s.repeat(count, 1), depth, beta=beta, kappa=kappa, loss=quartic, shape=shape,
        t_end=h, dt=h, generator=generator, save_at=[h],
    )  # fmt: skip
    excess, wall = (depth - 1) * (min(shape) - 3), sum(shape) - 6
    drift, variance = spectral_drift(s, depth, beta, kappa, excess, wall)
    moved = path.singular_values[0] - s
    assert_mean(moved, drift * h)
    outer = moved.unsqueeze(-1) * moved.unsqueeze(-2) / h
    assert_mean(outer, torch.diag(variance), sigmas=5)
    assert_close(path.final, path.singular_values[0])
    assert_close((path.states.flip(-1) / depth**0.5) ** depth, path.singular_values, ops=1000)


def test_one_law_in_rho_at_every_depth(generator):
    """Brownian motion from the same rho; from 0 it is a Laguerre ensemble."""
    beta, t, count = 1.7, 0.8, 2000
    rho = torch.tensor([0.0, 0.6, 1.1], dtype=F64)
    ends = {}
    for depth in (1, 3, 10):
        start = ((rho / depth**0.5) ** depth).repeat(count, 1)
        path = dln.dln_dyson(
            start, depth, beta=beta, entropy=False, t_end=t, generator=generator, save_at=[t]
        )
        ends[depth] = path.states[0]
        zero = dln.dln_dyson(
            torch.zeros(count, 3, dtype=F64), depth, beta=beta, entropy=False, t_end=t,
            generator=generator, save_at=[t],
        )  # fmt: skip
        exact = dln.laws.beta_laguerre((3, 3), 1, t=2 * t / beta, size=count, generator=generator)
        assert_same_law(zero.states[0], exact)
    assert_same_law(ends[1], ends[3])
    assert_same_law(ends[1], ends[10])


def test_log_s_is_dyson_of_index_one_at_infinite_depth(generator):
    """Against Dyson paths of an independent scheme, and against a deep network's."""
    beta, kappa, t, count = 1.7, 0.6, 0.5, 2000
    u = torch.tensor([-1.0, 0.1, 0.6], dtype=F64)
    path = dln.dln_dyson(
        u.exp().repeat(count, 1), math.inf, beta=beta, kappa=kappa, entropy=False, t_end=t,
        generator=generator, save_at=[t],
    )  # fmt: skip
    assert_close(path.states[0].exp().flip(-1), path.singular_values[0])
    other = dln.dyson(
        u.repeat(count, 1), dyson_index=1, t_end=kappa * t / beta, dt=kappa * t / beta / 100,
        scheme="implicit", generator=generator, save_at=[kappa * t / beta],
    )  # fmt: skip
    assert_same_law(path.states[0], other.final)
    deep = dln.dln_dyson(
        u.exp().repeat(count, 1), 3000, beta=beta, kappa=kappa, entropy=False, t_end=t,
        generator=generator, save_at=[t], normalized=True,
    )  # fmt: skip
    assert_same_law(path.singular_values[0], deep.singular_values[0])


@pytest.mark.parametrize(
    ("shape", "rank", "depth", "beta", "kappa", "entropy"),
    [
        ((2, 2), 2, 3, 1.0, 0.6, False),
        ((2, 2), 2, 3, 1.0, 1.0, True),
        ((4, 3), 2, 3, 1.3, 0.7, True),
        ((3, 3), 3, 2.5, 2.5, 1.0, True),
    ],
)
def test_equilibria_in_the_ridge_energy(shape, rank, depth, beta, kappa, entropy, generator):
    """At three step sizes; the error is of order dt^2, so the first two are extrapolated too."""
    wanted = dln.laws.ridge_mean_square(shape, rank, depth, beta=beta, kappa=kappa, entropy=entropy)
    start, means = torch.full((3000, rank), 0.5, dtype=F64), []
    for dt in (0.2, 0.1, 0.05):
        path = dln.dln_dyson(
            start, depth, beta=beta, kappa=kappa, entropy=entropy, shape=shape,
            loss=lambda s: depth / 2 * (s ** (2 / depth)).sum(-1),
            t_end=5.0, dt=dt, generator=generator, save_at=[5.0],
        )  # fmt: skip
        squares = path.states[0].square().sum(-1)
        means.append(squares)
        if dt < 0.2:
            assert_mean(squares, wanted)
    assert_mean((4 * means[1] - means[0]) / 3, wanted)


@pytest.mark.parametrize("depth", [3, 2.5])
def test_weak_order_two(depth, generator):
    """``E |rho|^2`` of the Ornstein-Uhlenbeck process of the ridge energy is known exactly."""
    beta, kappa, t, count = 1.7, 0.6, 1.6, 40_000
    rho = torch.tensor([0.4, 1.1], dtype=F64)
    start = ((rho / depth**0.5) ** depth).repeat(count, 1)
    fade = math.exp(-2 * t)
    wanted = fade * float(rho.square().sum()) + 4 * kappa / beta * (1 - fade)
    steps, errors = [], []
    for number in (1, 2, 3, 4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # coarse steps are meant
            path = dln.dln_dyson(
                start, depth, beta=beta, kappa=kappa, entropy=False, t_end=t, dt=t / number,
                loss=lambda s: depth / 2 * (s ** (2 / depth)).sum(-1), generator=generator,
                save_at=[t],
            )  # fmt: skip
        steps.append(t / number)
        errors.append(abs(float(path.states[0].square().sum(-1).mean()) - wanted))
    assert_order(steps, errors, 2, tol=0.6, at_least=True)


def test_gauge_noise_alone_follows_the_tanh():
    """``s' = 2 s (s*^2/s - s)`` for equal singular values at depth 2 in |X|^2/2."""
    d, beta, s0, times = 3, 1.3, 0.1, [0.3, 1.0, 2.5]
    rest = math.sqrt((d - 1) / (4 * beta))
    path = dln.dln_dyson(
        torch.full((d,), s0, dtype=F64), 2, beta=beta, kappa=0.0,
        loss=lambda s: 0.5 * s.square().sum(-1), t_end=3.0, save_at=times,
    )  # fmt: skip
    phase = math.atanh(s0 / rest)
    wanted = [[rest * math.tanh(2 * rest * t + phase)] * d for t in times]
    assert (path.singular_values - torch.tensor(wanted, dtype=F64)).abs().max() < 1e-8


@pytest.mark.parametrize("depth", [2.5, math.inf])
def test_gauge_noise_alone_is_the_flow_of_the_free_energy(depth):
    beta, s = 1.7, torch.tensor(START, dtype=F64)

    class Spectral:
        def spectral_gradient(self, s):
            return 1.2 * s**3 - 0.5

    def velocity(_, s):
        s = torch.as_tensor(s).requires_grad_()
        value = quartic(s) - dln.entropy(torch.diag(s), depth=depth) / beta
        factor = 1.0 if math.isinf(depth) else depth
        slope = torch.autograd.grad(value, s)[0]
        return (-factor * s.detach() ** (2 - 2 / depth) * slope).numpy()

    path = dln.dln_dyson(s, depth, beta=beta, kappa=0.0, loss=Spectral(), t_end=0.7)
    wanted = solve_ivp(velocity, (0, 0.7), START, rtol=1e-10, atol=1e-12).y[:, -1]
    assert (path.final - torch.as_tensor(wanted)).abs().max() < 1e-7
    assert path.singular_values.shape == (101, 3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"beta": 0.0}, ValueError, "beta must be positive"),
        ({"kappa": -1.0}, ValueError, "kappa must be non-negative"),
        ({"dt": -0.1}, ValueError, "dt must be positive"),
        ({"depth": 0.5}, ValueError, "depth must be a real number >= 1"),
        ({"start": [-1.0, 1.0]}, ValueError, "start must be non-negative"),
        ({"start": [0.0, 1.0], "depth": math.inf}, ValueError, "start must be positive"),
        ({"shape": (3, 1)}, ValueError, "start must hold at most 1 values"),
        ({"shape": (3, 3), "depth": math.inf}, ValueError, "shape must be 2 x 2"),
        ({"loss": dln.losses.Quadratic(torch.eye(2))}, TypeError, "loss must be a function of the"),
        ({"loss": lambda s: s.sum()}, ValueError, "loss must return a tensor of shape"),
        ({"loss": lambda s: s[..., 0] ** 2}, ValueError, "loss must be a symmetric function"),
        ({"loss": lambda s: s.pow(8).sum(-1) * 1e9}, ValueError, "dt must be smaller than 0.1"),
        ({"loss": lambda s: s.sum(-1) * math.nan}, ValueError, "finite gradient at the start"),
        ({"loss": lambda s: s.detach().sum(-1)}, ValueError, "loss must be differentiable"),
        ({"entropy": "no"}, TypeError, "entropy must be True or False"),
        ({"dt": None}, ValueError, "dt must be given"),
        ({"kappa": 0.0, "entropy": False}, ValueError, "nothing moves"),
    ],
)
def test_errors_say_what_was_required(change, error, words, generator):
    arguments = {
        "start": [[0.5, 1.0]], "depth": 3, "beta": 1.0, "t_end": 10.0, "dt": 0.1,
        "generator": generator, **change,
    }  # fmt: skip
    with pytest.raises(error, match=words):
        dln.dln_dyson(arguments.pop("start"), arguments.pop("depth"), **arguments)


def test_a_step_that_is_too_large_warns_and_names_the_remedy(generator):
    start = torch.tensor([2.0, 1.0, 0.5], dtype=F64)
    options = {"beta": 2.0, "loss": lambda s: 0.5 * s.square().sum(-1), "generator": generator}
    with pytest.warns(UserWarning, match="take a smaller dt"):
        dln.dln_dyson(start, 3, t_end=0.4, dt=0.2, **options)
    # The entropy is steep at zero: no matter of the step.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dln.dln_dyson(0.0 * start, 10, t_end=0.4, dt=0.02, **options)


@pytest.mark.parametrize("field", ["complex", "quaternion"])
@pytest.mark.parametrize(("shape", "depth"), [((4, 3), 3), ((2, 2), math.inf)])
def test_other_fields_have_their_dimensions_at_equilibrium(field, shape, depth, generator):
    """Equipartition under the ridge, at infinite depth in ``sum (log s)^2 / 2``."""
    beta, kappa, f = 1.3, 0.7, {"complex": 2, "quaternion": 4}[field]
    deep = math.isinf(depth)

    def loss(s):
        return 0.5 * s.log().square().sum(-1) if deep else depth / 2 * s.pow(2 / depth).sum(-1)

    if deep:
        wanted = 2 + f * 0.5 * 2
    else:
        options = {"kappa": kappa, "field": field, "rank": 2}
        found = dln.thermodynamics.partition_function(None, shape, depth, beta=1.0, **options)
        wanted = 2 * found.energy / kappa
    path = dln.dln_dyson(
        torch.full((600, 2), 0.8, dtype=F64), depth, beta=beta, kappa=kappa, entropy=not deep,
        shape=shape, field=field, loss=loss, t_end=5.0, dt=0.05, generator=generator,
        save_at=[5.0],
    )  # fmt: skip
    assert_mean(path.states[0].square().sum(-1), kappa / beta * wanted)


def test_complex_singular_values_are_those_of_complex_matrices(generator):
    """Drift and covariance of small product steps of the matrices themselves."""
    h, count, depth = 1e-3, 20_000, 2.5
    start = dln.EndToEnd.of(torch.diag(torch.tensor(START, dtype=F64)).to(torch.complex128), depth)
    path = dln.langevin(
        None, start.expand((count,)), beta=1.7, t_end=h, dt=h, save_at=[h], generator=generator
    )
    other = dln.dln_dyson(
        torch.tensor(START, dtype=F64).repeat(count, 1), depth, beta=1.7, t_end=h, dt=h,
        field="complex", save_at=[h], generator=generator,
    )  # fmt: skip
    gap = path.singular_values[0].mean(0) - other.singular_values[0].mean(0)
    error = (path.singular_values[0].std(0) ** 2 + other.singular_values[0].std(0) ** 2).sqrt()
    assert bool((gap.abs() < 4 * error / count**0.5).all())
    assert_same_law(path.singular_values[0], other.singular_values[0])
