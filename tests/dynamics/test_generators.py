"""Every public function with a `generator`: optional, an integer seed or a `torch.Generator`."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

import dln_geometry as dln
import manifolds.geomstats_dln
import manifolds.pymanopt_dln
from dln_geometry import dynamics, geometry
from dln_geometry.dynamics import dyson, laws, noise, sampling

F64 = torch.float64
X = torch.tensor([[1.2, 0.3], [-0.2, 0.7]], dtype=F64)
POINT = dln.EndToEnd.of(X, 3)
SHORT = {"t_end": 0.2, "dt": 0.1}

# One call of each, without its generator: what it returns is compared through its numbers.
CALLS = {
    "langevin": lambda f, **g: f(dln.losses.Quadratic(X), POINT, beta=2.0, **SHORT, **g),
    "brownian_motion": lambda f, **g: f(POINT, **SHORT, **g),
    "sample_gibbs": lambda f, **g: f(
        dln.losses.Quadratic(X), POINT, beta=2.0, draws=3, burn_in=4, **g
    ),
    "dyson": lambda f, **g: f([0.0, 1.0], dyson_index=2, t_end=0.2, dt=0.01, **g),
    "singular_dyson": lambda f, **g: f([0.5, 1.0], (2, 2), dyson_index=1, **SHORT, **g),
    "dln_dyson": lambda f, **g: f([0.5, 1.0], 3, beta=2.0, **SHORT, **g),
    "isospectral_flow": lambda f, **g: f(X + X.T, dyson_index=1, **SHORT, **g),
    "ProbabilityLaw.sample": lambda f, **g: f(laws.quarter_circle(), 3, **g),
    "gauge_noise": lambda f, **g: f(
        (X, torch.eye(2, dtype=F64)), beta=2.0, t_end=0.1, steps=4, **g
    ),
    "beta_hermite": lambda f, **g: f(3, 2.0, **g),
    "beta_laguerre": lambda f, **g: f((3, 2), 2.0, **g),
    "balanced_factors": lambda f, **g: f(POINT, gauge="haar", **g),
    "random_balanced": lambda f, **g: f((2, 3, 2), **g),
    "Collapsed.factors": lambda f, **g: f(dln.Collapsed.of(POINT), **g),
    "Collapsed.random": lambda f, **g: f((2, 2), 2, 3, **g),
}
# Inside the library: their callers have made the generator.
INSIDE = {
    *("simulate", "balanced_chain", "haar_frames", "haar_stiefel", "vanishing_bessel"),
    *("isospectral_step", "singular_step", "tridiagonal_step", "field_step", "implicit_step"),
    *("lower_normals", "real_singular_values", "Gaussians", "IsospectralSteps", "SpectralSteps"),
}
# Without a generator the gauge is the canonical one.
CANONICAL = {"Collapsed.factors"}


def found():
    """Return the public functions and methods that have a generator, by name."""
    rooms = (dln, dynamics, geometry, geometry.points, noise, dyson, sampling, laws)
    functions = {}
    for room in (*rooms, manifolds.pymanopt_dln, manifolds.geomstats_dln):
        for name in getattr(room, "__all__", dir(room)):
            if name.startswith("_"):
                continue
            value = getattr(room, name)
            if inspect.isclass(value):
                parts = [n for n in vars(value) if not n.startswith("_")]
                functions |= {f"{name}.{n}": getattr(value, n) for n in parts}
                value = value.__init__
            functions[name] = value
    taking = {}
    for name, value in functions.items():
        here = getattr(value, "__module__", None) or ""
        plain = inspect.isfunction(value) or inspect.ismethod(value)
        if not plain or ".learning" in here or name in INSIDE:
            continue
        if "generator" in inspect.signature(value).parameters:
            taking[name] = value
    return taking


def numbers_of(result):
    """Return the numbers of what a call returned, as one vector."""
    if isinstance(result, dln.Trajectory):
        result = result.final
    if isinstance(result, tuple):
        return torch.cat([w.flatten() for w in result])
    return torch.as_tensor(getattr(result, "matrix", result)).flatten()


def test_every_function_with_a_generator_is_tried_here():
    assert set(found()) == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_generators_are_optional_and_may_be_seeds(name):
    function, call = found()[name], CALLS[name]
    parameter = inspect.signature(function).parameters["generator"]
    assert parameter.default is None
    before = torch.get_rng_state()
    seeded, again = call(function, generator=5), call(function, generator=5)
    given = call(function, generator=torch.Generator().manual_seed(5))
    assert torch.equal(numbers_of(seeded), numbers_of(again))
    assert torch.equal(numbers_of(seeded), numbers_of(given))
    fresh = [numbers_of(call(function)), numbers_of(call(function, generator=None))]
    assert torch.equal(*fresh) == (name in CANONICAL)
    assert torch.equal(torch.get_rng_state(), before), "the global generator stays untouched"
    for wrong in ("5", 5.0, True, [5]):
        with pytest.raises(TypeError, match="generator must be a torch.Generator or an integer"):
            call(function, generator=wrong)
    for wrong in (-1, 2**64):
        with pytest.raises(ValueError, match="generator must be a seed from 0"):
            call(function, generator=wrong)


def test_increments_and_motions_without_noise_need_no_generator():
    still = dln.langevin(dln.losses.Quadratic(X), POINT, beta=2.0, kappa=0.0, t_end=0.1)
    assert math.isfinite(float(still.loss[-1]))
    increments = torch.zeros(2, 2, 2, dtype=F64)
    moved = dln.brownian_motion(POINT, t_end=0.1, increments=increments)
    assert moved.stats["steps"] == 2
    with pytest.raises(ValueError, match="increments must come without"):
        dln.brownian_motion(POINT, t_end=0.1, increments=increments, generator=3)
