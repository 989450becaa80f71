from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close
from tests.dynamics.noise.routes import BETA, F64, KAPPA, quadratic, start_at


def test_runs_repeat_and_leave_the_global_generator_alone(generator):
    p = start_at((3, 3), 3, 3, generator)
    before = torch.get_rng_state()
    first, second = (
        dln.brownian_motion(
            p.point(), t_end=0.1, dt=0.02, generator=torch.Generator().manual_seed(5)
        )
        for _ in range(2)
    )
    assert torch.equal(first.final.s, second.final.s)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(first.final, dln.EndToEnd)
    assert first.stats["steps"] == 5


@pytest.mark.parametrize("method", ["product", "splitting"])
@pytest.mark.parametrize("depth", [3, 2.7])
def test_the_normalized_metric_takes_n_times_as_long(method, depth, generator):
    p = start_at((4, 3), 3, depth, generator).point()
    q = p.replace(normalized=True)
    loss = quadratic((4, 3), generator)
    ends = []
    for point, slow in ((p, 1.0), (q, depth)):
        path = dln.langevin(
            loss, point, beta=BETA, kappa=KAPPA, t_end=0.1 * slow, dt=0.02 * slow, method=method,
            generator=torch.Generator().manual_seed(3),
        )  # fmt: skip
        ends.append(path.final.matrix)
    assert_close(ends[1], ends[0], ops=1000, condition=10)


def test_a_loss_that_is_not_finite_says_so(generator):
    loss = dln.losses.from_callable(lambda x: torch.log(x[0, 0]))
    start = dln.EndToEnd.of(torch.eye(2, dtype=F64), 3)
    with pytest.raises(dln.FlowError, match="loss must be finite with a finite gradient") as caught:
        dln.langevin(loss, start, beta=0.05, t_end=2.0, dt=0.05, generator=generator, chains=20)
    assert set(caught.value.trajectory.status) == {"failed", "unfinished"}
    assert len(caught.value.trajectory) > 0


@pytest.mark.parametrize("method", ["product", "splitting"])
def test_a_gradient_that_overflows_is_no_gradient_of_zero(method, generator):
    """Squares of single precision overflow long before the matrices do."""
    start = start_at((3, 3), 3, 3, generator, dtype=torch.float32)
    loss = quadratic((3, 3), generator, torch.float32)
    with pytest.raises(dln.FlowError, match="got overflow: take dt below"):
        dln.langevin(
            loss, start, beta=1e-12, t_end=0.2, dt=0.05, generator=generator, method=method
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"entropy": "no"}, TypeError, "entropy must be True or False"),
        ({"beta": 0.0}, ValueError, "beta must be positive"),
        ({"beta": math.inf}, ValueError, "beta must be positive and finite"),
        ({"beta": "cold"}, TypeError, "beta must be a real number"),
        ({"kappa": -1.0}, ValueError, "kappa must be non-negative"),
        ({"kappa": 0.0, "entropy": False}, ValueError, "kappa must be positive"),
        ({"dt": 0.0}, ValueError, "dt must be positive"),
        ({"dt": None}, ValueError, "dt must be given"),
        ({"t_end": -1.0}, ValueError, "t_end must be positive"),
        ({"generator": "3"}, TypeError, "generator must be a torch.Generator"),
        ({"generator": -3}, ValueError, "generator must be a seed"),
        ({"chains": 0}, ValueError, "chains must be at least 1"),
        ({"chains": 1.5}, TypeError, "chains must be an integer"),
        ({"save_at": [0.2, 0.1]}, ValueError, "save_at must be finite and strictly increasing"),
        ({"save_at": [5.0]}, ValueError, "save_at must lie in"),
        ({"save_at": []}, ValueError, "save_at must be a non-empty vector"),
        ({"increments": torch.zeros(4, 3, 3)}, ValueError, "increments must come without"),
        ({"start": torch.eye(3)}, TypeError, "start must be a Collapsed or an EndToEnd"),
        ({"loss": dln.losses.Quadratic(torch.eye(4))}, ValueError, "loss must be one of 3 x 3"),
        ({"loss": 3.0}, TypeError, "loss must have the methods"),
        ({"kappa": 0.0, "increments": torch.zeros(4, 3, 3)}, ValueError, "increments must be None"),
    ],
)
def test_bad_input(options, error, message, generator):
    good = {
        "loss": dln.losses.Quadratic(torch.eye(3)),
        "start": start_at((3, 3), 3, 3, generator),
        "beta": 1.0,
        "t_end": 0.1,
        "dt": 0.01,
        "generator": generator,
    }
    with pytest.raises(error, match=message):
        dln.langevin(**{**good, **options})


def test_bad_increments_and_ranks(generator):
    p = start_at((3, 3), 3, 3, generator)
    with pytest.raises(ValueError, match=r"increments must have shape \(steps, 3, 3\)"):
        dln.brownian_motion(p, t_end=0.1, increments=torch.zeros(4, 2, 3))
    with pytest.raises(ValueError, match="save_at must hold multiples"):
        dln.brownian_motion(p, t_end=0.1, increments=torch.zeros(4, 3, 3), save_at=[0.03])
    low = dln.Collapsed.random((4, 3), 2, 3, spectrum=[1.0, 0.0], generator=generator)
    with pytest.raises(ValueError, match="start must have the rank 2 of its manifold, got 1"):
        dln.brownian_motion(low, t_end=0.1, dt=0.01, generator=generator)
    with pytest.raises(ValueError, match="start must have positive singular values"):
        dln.free_energy_flow(dln.losses.Quadratic(torch.zeros(4, 3)), low, beta=1.0, t_end=1.0)
    with pytest.raises(TypeError, match="start must be a Collapsed or an EndToEnd"):
        dln.free_energy_flow(dln.losses.Quadratic(torch.eye(3)), torch.eye(3), beta=1.0, t_end=1.0)


def test_methods_and_what_goes_with_them(generator):
    p = start_at((3, 3), 3, 3, generator)
    with pytest.raises(
        ValueError, match='method must be one of "product", "splitting", got .euler'
    ):
        dln.brownian_motion(p, t_end=1.0, dt=0.1, generator=generator, method="euler")
    with pytest.raises(ValueError, match='method must be "product" upstairs and with increments'):
        dln.brownian_motion(
            p, t_end=1.0, dt=0.1, generator=generator, method="splitting", upstairs=True
        )
    loss = dln.losses.Quadratic(100 * torch.eye(3, dtype=F64))
    with pytest.warns(UserWarning, match="dt = 0.5 is too large .* take a smaller dt"):
        dln.langevin(loss, p, beta=1.0, t_end=1.0, dt=0.5, generator=generator, method="splitting")


def test_generators_are_optional_and_may_be_seeds(generator):
    start = start_at((3, 3), 3, 3, generator)
    loss = dln.losses.Quadratic(torch.eye(3, dtype=F64))
    runs = (
        lambda **g: dln.brownian_motion(start, t_end=0.1, dt=0.05, **g),
        lambda **g: dln.langevin(loss, start, beta=2.0, t_end=0.1, dt=0.05, **g),
        lambda **g: dln.sample_gibbs(loss, start, beta=2.0, draws=2, burn_in=2, **g),
    )
    before = torch.get_rng_state()
    for run in runs:
        one, two, other = (run(generator=seed).singular_values for seed in (5, 5, 6))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)
        assert torch.equal(one, run(generator=torch.Generator().manual_seed(5)).singular_values)
        assert not torch.equal(run().singular_values, run().singular_values)
    assert torch.equal(torch.get_rng_state(), before)
