from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

import dln_geometry as dln
from dln_geometry.dynamics.flows import FlowError, FreeEnergy, free_energy_flow
from dln_geometry.dynamics.noise import brownian_motion, langevin
from dln_geometry.geometry.metric import thin_svd
from dln_geometry.testing import assert_close, assert_mean, assert_order

SIMULATION = "dln_geometry.dynamics.noise.simulation"
F64 = torch.float64
BETA, KAPPA = 1.7, 0.6
CASES = [(3, (3, 3), 3), (4, (4, 3), 3), (2.7, (3, 4), 2), (math.inf, (3, 3), 3), (3, (4, 4), 2)]


class Ridge:
    """``N/2 sum s^{2/N}``, half the squared norm in rho: a Gaussian at every depth."""

    def __init__(self, depth):
        self.depth = depth

    def value(self, x):
        return self.depth / 2 * (torch.linalg.svdvals(x) ** (2 / self.depth)).sum(-1)

    def gradient(self, x):
        raise AssertionError("flows of two methods contract")

    def evaluate(self, x):
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        return self.value(x), (u * self._slope(s).unsqueeze(-2)) @ vh

    def contract(self, left, right):
        u, s, vh = thin_svd(left, right.mT, left.shape[-1])
        slope = self._slope(s).unsqueeze(-1)
        value = self.depth / 2 * (s ** (2 / self.depth)).sum(-1)
        return value, u @ (slope * (vh @ right)), vh.mT @ (slope * (u.mT @ left))

    def _slope(self, s):
        return s.clamp_min(1e-300) ** (2 / self.depth - 1)


def _start(shape, rank, depth, generator, chains=None, dtype=F64, spectrum=(1.4, 1.0, 0.5)):
    options = {"spectrum": spectrum[:rank], "generator": generator, "dtype": dtype}
    p = dln.Collapsed.random(shape, rank, depth, **options)
    return p if chains is None else _many(p, chains)


def _many(p, chains):
    return dln.Collapsed(p.L.expand(chains, -1, -1), p.R.expand(chains, -1, -1), p.depth)


def _quadratic(shape, generator, dtype=F64):
    return dln.losses.Quadratic(torch.randn(*shape, generator=generator, dtype=dtype))


def _both_ways(loss, start, shape, h, chains, generator, **options):
    """One step with increments of both signs: even and odd part of the motion."""
    dw = math.sqrt(h) * torch.randn(1, chains, *shape, generator=generator, dtype=F64)
    plus, minus = (
        langevin(loss, start, beta=BETA, kappa=KAPPA, t_end=h, increments=z, **options).final.matrix
        for z in (dw, -dw)
    )
    return (plus + minus) / 2, (plus - minus) / 2


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize(
    ("depth", "shape", "rank"),
    [*CASES, (1.5, (3, 3), 3), (2, (2, 4), 1), (12, (3, 3), 3), (math.inf, (4, 5), 2)],
    ids=str,
)
def test_generator_of_one_step(depth, shape, rank, entropy, generator):
    """Drift and covariance of theory, every parameter generic."""
    chains, h = 8000, 1e-4
    p = _start(shape, rank, depth, generator)
    loss = _quadratic(shape, generator)
    even, odd = _both_ways(
        loss, _many(p, chains), shape, h, chains, generator, entropy=entropy, widths=rank
    )
    layers = 1.0 if math.isinf(depth) else depth - 1.0
    q = p.point()
    drift = -dln.cometric(q, loss.gradient(q.matrix))
    drift = drift + KAPPA / BETA * layers * (q.u * q.s ** (1 - 2 / depth)) @ q.vh
    if entropy:
        drift = drift + dln.cometric(q, dln.entropy_gradient(q, widths=rank)) / BETA
    assert_mean((even - p.matrix) / h, drift, sigmas=4.5)
    m, n = shape
    basis = torch.eye(m * n, dtype=F64).reshape(-1, m, n)
    covariance = 2 * KAPPA / BETA * dln.cometric(q, basis).flatten(1)
    moved = odd.flatten(1) / math.sqrt(h)
    samples = moved.unsqueeze(-1) * moved.unsqueeze(-2)
    # What has no noise has only the rounding of X over sqrt(h).
    error = (samples.mean(0) - covariance).abs()
    assert bool((error < 5 * samples.std(0) / chains**0.5 + 1e-9).all())


def test_depth_one_is_plain_langevin(generator):
    p = _start((3, 2), 2, 1, generator, chains=4)
    loss = _quadratic((3, 2), generator)
    dw = torch.randn(5, 4, 3, 2, generator=generator, dtype=F64) * math.sqrt(0.02)
    path = langevin(loss, p, beta=BETA, kappa=KAPPA, t_end=0.1, increments=dw)
    x = p.matrix
    for z in dw:
        x = x - 0.02 * loss.gradient(x) + math.sqrt(2 * KAPPA / BETA) * z
    assert_close(path.final.matrix, x)
    assert path.loss.shape == (6, 4)


def test_hidden_widths_add_their_drift(generator):
    """At rank r in width d: ``sum_p (d_p - r) U Sigma^{1-2/N} V^T / beta``."""
    p = _start((4, 4), 2, 3, generator)
    h, zero = 1e-6, torch.zeros(1, 4, 4, dtype=F64)
    narrow, wide = (
        langevin(None, p, beta=BETA, t_end=h, increments=zero, widths=d).final.matrix
        for d in (2, (4, 3, 7, 4))
    )
    q = p.point()
    drift = (1 + 5) / BETA * (q.u * q.s ** (1 / 3)) @ q.vh
    assert float(((wide - narrow) / h - drift).abs().max()) < 1e-4


@pytest.mark.parametrize("depth", [3, 2.7, 5])
def test_brownian_motion_in_rho_is_that_of_a_matrix(depth, generator):
    chains, t = 3000, 0.3
    start = _start((3, 2), 2, depth, generator, chains)
    path = brownian_motion(start, t_end=t, dt=0.01, generator=generator, save_at=[t])
    rho = math.sqrt(depth) * path.singular_values[-1] ** (1 / depth)
    first = torch.zeros(3, 2, dtype=F64)
    first[:2] = torch.diag(math.sqrt(depth) * start.singular_values()[0] ** (1 / depth))
    exact = torch.linalg.svdvals(
        first + math.sqrt(t) * torch.randn(chains, 3, 2, generator=generator, dtype=F64)
    )
    for k in range(2):
        assert stats.ks_2samp(rho[:, k], exact[:, k]).pvalue > 1e-3


def test_logarithms_at_infinite_depth_are_dyson_of_index_one(generator):
    """``du_i = sqrt(2/beta) dB_i + (1/beta) sum_j dt/(u_i - u_j)``."""
    chains, h = 20000, 1e-4
    start = _start((3, 3), 3, math.inf, generator, chains)
    dw = math.sqrt(h) * torch.randn(1, chains, 3, 3, generator=generator, dtype=F64)
    u0 = start.singular_values()[0].log()
    plus, minus = (
        langevin(None, start, beta=BETA, entropy=False, t_end=h, increments=z)
        .singular_values[-1]
        .log()
        for z in (dw, -dw)
    )
    gap = u0.unsqueeze(-1) - u0 + torch.diag(torch.full((3,), math.inf, dtype=F64))
    assert_mean(((plus + minus) / 2 - u0) / h, (1 / gap).sum(-1) / BETA)
    odd = (plus - minus) / 2 / math.sqrt(h)
    expected = 2 / BETA * torch.eye(3, dtype=F64)
    assert_mean(odd.unsqueeze(-1) * odd.unsqueeze(-2), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "rank", "depth", "beta", "entropy", "exact"),
    [
        ((2, 2), 2, 3, 1.0, False, 4.0),
        ((2, 2), 2, 3, 1.0, True, 6.0),
        ((3, 3), 3, 4, 2.5, True, 7.2),
        ((4, 3), 2, 3, 1.3, False, 10 / 1.3),
        ((2, 2), 2, 2.7, 1.0, False, 4.0),
    ],
)
def test_equilibria_after_extrapolation(shape, rank, depth, beta, entropy, exact, generator):
    """``E|rho|^2`` is the dimension over beta; the error at step h is of the first order."""
    chains, means = 800, []
    sizes = [0.04, 0.02, 0.01]
    spectrum = tuple((exact / depth / rank) ** (depth / 2) for _ in range(rank))
    for dt in sizes:
        start = _start(shape, rank, depth, generator, chains, spectrum=spectrum)
        path = langevin(
            Ridge(depth), start, beta=beta, entropy=entropy, t_end=4.0, dt=dt, generator=generator
        )
        rho2 = depth * (path.singular_values ** (2 / depth)).sum(-1)
        means.append(rho2[30:].mean(0))
    # The line through three steps, at zero: 2 m(h/4) - ... by least squares.
    h = torch.tensor(sizes, dtype=F64)
    weights = 1 / 3 - (h - h.mean()) * h.mean() / ((h - h.mean()) ** 2).sum()
    value = sum(w * m.mean() for w, m in zip(weights, means, strict=True))
    error = math.sqrt(
        sum(float(w**2 * m.var() / chains) for w, m in zip(weights, means, strict=True))
    )
    assert abs(float(value) - exact) < 4 * error
    for dt, m in zip(sizes, means, strict=True):
        # No worse than a step's own share.
        assert abs(float(m.mean()) - exact) < 4 * float(m.std()) / chains**0.5 + 3 * dt * exact


@pytest.mark.slow
@pytest.mark.parametrize("depth", [3, 2.7])
def test_weak_order_one_and_refinement_by_shared_increments(depth, generator):
    chains, t, levels = 4000, 0.6, 5
    p = _start((3, 3), 3, depth, generator, chains)
    loss = _quadratic((3, 3), generator)
    finest = 8 * 2**levels
    dw = math.sqrt(t / finest) * torch.randn(finest, chains, 3, 3, generator=generator, dtype=F64)
    means, ends = [], []
    for _ in range(levels):
        options = {"beta": BETA, "kappa": KAPPA, "t_end": t, "save_at": [t]}
        path = langevin(loss, p, increments=dw, **options)
        means.append((path.singular_values[-1] ** (2 / depth)).sum(-1))
        ends.append(path.final.matrix)
        dw = dw[0::2] + dw[1::2]
    weak = [float((a - b).mean().abs()) for a, b in pairwise(means)]
    strong = [float((a - b).square().mean().sqrt()) for a, b in pairwise(ends)]
    steps = [t / finest * 2**k for k in range(1, levels)]
    assert_order(steps, weak, 1, tol=0.35)
    assert_order(steps, strong, 0.5, tol=0.15, at_least=True)


@pytest.mark.parametrize(("depth", "shape", "rank"), CASES, ids=str)
def test_without_noise_across_it_is_the_flow_of_the_free_energy(depth, shape, rank, generator):
    p = _start(shape, rank, depth, generator)
    loss = _quadratic(shape, generator)
    path = langevin(loss, p, beta=BETA, kappa=0.0, t_end=0.3)
    assert path.loss.diff().max() < 0
    # The product step with ever less noise, which still has its entropic drift.
    steps, errors = [], []
    for count in (20, 40, 80, 160):
        zero = torch.zeros(count, *shape, dtype=F64)
        small = langevin(loss, p, beta=BETA, kappa=1e-12, t_end=0.3, increments=zero)
        steps.append(0.3 / count)
        errors.append(float((small.final.matrix - path.final.matrix).norm()))
    assert_order(steps, errors, 1)


def test_equal_singular_values_follow_the_hyperbolic_tangent(generator):
    """``E = |X|^2/2`` at depth 2: ``s(t) = s* tanh(2 s* t + c)``, ``s*^2 = (d-1)/(4 beta)``."""
    d, t = 3, torch.linspace(0.1, 2.0, 5, dtype=F64)
    p = dln.Collapsed.random((d, d), d, 2, scale=0.1, generator=generator, dtype=F64)
    path = free_energy_flow(
        dln.losses.Quadratic(torch.zeros(d, d)), p, beta=BETA, t_end=2.0, save_at=t
    )
    end = math.sqrt((d - 1) / (4 * BETA))
    exact = end * torch.tanh(2 * end * t + math.atanh(0.1 / end))
    assert float((path.singular_values - exact.unsqueeze(-1)).abs().max()) < 1e-6
    energy = FreeEnergy(dln.losses.Quadratic(torch.zeros(d, d)), BETA, 2, (d, d))
    assert_close(energy.value(path.final.matrix), path.loss[-1])


@pytest.mark.parametrize("widths", [None, 4])
def test_gradient_of_the_free_energy(widths, generator):
    x = torch.randn(4, 3, generator=generator, dtype=F64)
    energy = FreeEnergy(_quadratic((4, 3), generator), BETA, 2.7, (4, 3), widths=widths)
    direction = torch.randn(4, 3, generator=generator, dtype=F64)
    steps = [0.02 / 2**k for k in range(4)]
    slope = float((energy.gradient(x) * direction).sum())
    errors = [
        abs(
            float(energy.value(x + h * direction) - energy.value(x - h * direction)) / (2 * h)
            - slope
        )
        for h in steps
    ]
    assert_order(steps, errors, 2)
    left, right = (torch.randn(d, 3, generator=generator, dtype=F64) for d in (4, 3))
    value, gr, gl = energy.contract(left, right)
    y = left @ right.mT
    assert_close(value, energy.value(y), ops=1000)
    assert_close(gr, energy.gradient(y) @ right, ops=1000)
    assert_close(gl, energy.gradient(y).mT @ left, ops=1000)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_sparse_completion_of_low_rank(dtype, generator):
    loss = dln.losses.Completion([0, 3, 7], [1, 1, 5], [1.0, -2.0, 0.5], shape=(10, 8))
    p = dln.Collapsed.random((10, 8), 2, 3, generator=generator, dtype=dtype)
    path = langevin(loss, p, beta=20.0, t_end=0.5, dt=0.05, generator=generator, chains=7)
    assert isinstance(path.final, dln.Collapsed)
    assert path.final.L.shape == (7, 10, 2)
    assert path.final.L.dtype == dtype
    assert path.loss.shape == (11, 7)
    assert_close(path.loss[-1], loss.value(path.final), ops=1000)
    assert bool(path.loss[-1].mean() < path.loss[0].mean())


def test_the_determinant_keeps_its_sign_at_even_depths_alone(generator):
    for depth, kept in ((2, True), (4, True), (3, False), (2.7, False), (math.inf, True)):
        p = _start((2, 2), 2, depth, generator, chains=50, spectrum=(1.0, 0.2))
        path = brownian_motion(p, t_end=2.0, dt=0.02, generator=generator)
        signs = torch.linalg.det(path.final.matrix).sign()
        assert (len(signs.unique()) == 1) == kept, depth


def test_runs_repeat_and_leave_the_global_generator_alone(generator):
    p = _start((3, 3), 3, 3, generator)
    before = torch.get_rng_state()
    first, second = (
        brownian_motion(p.point(), t_end=0.1, dt=0.02, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert torch.equal(first.final.s, second.final.s)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(first.final, dln.EndToEnd)
    assert first.stats["steps"] == 5


def test_a_killed_run_continues_to_the_same_bits(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{SIMULATION}._SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    p = _start((3, 3), 3, 3, generator, chains=2)
    loss = _quadratic((3, 3), generator)
    options = {
        "beta": 3.0,
        "t_end": 1.0,
        "dt": 0.05,
        "keep_points": True,
        "save_at": [0.0, 0.5, 1.0],
    }
    whole = langevin(loss, p, generator=torch.Generator().manual_seed(1), **options)
    seen = []

    def kill(fraction, info):
        seen.append(fraction)
        if fraction >= 0.5:
            raise KeyboardInterrupt

    store = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        langevin(
            loss,
            p,
            generator=torch.Generator().manual_seed(1),
            progress=kill,
            store=store,
            **options,
        )
    again = langevin(loss, p, generator=torch.Generator().manual_seed(99), store=store, **options)
    assert torch.equal(whole.singular_values, again.singular_values)
    assert torch.equal(whole.final.L, again.final.L)
    assert len(again.points) == 3
    assert seen == [0.0, 0.5]
    with pytest.raises(ValueError, match="store must belong to the same run"):
        langevin(loss, p, generator=generator, store=store, **{**options, "beta": 4.0})
    other = _quadratic((3, 3), generator)
    for energy, change in ((other, {}), (loss, {"widths": 4})):
        with pytest.raises(ValueError, match="store must belong to the same run"):
            langevin(energy, p, generator=generator, store=store, **options, **change)


def test_saved_times_are_met(generator):
    p = _start((2, 2), 2, 3, generator)
    path = brownian_motion(p, t_end=1.0, dt=0.3, generator=generator, save_at=[0.1, 0.5, 0.95])
    assert_close(path.t, torch.tensor([0.1, 0.5, 0.95], dtype=F64))
    assert path.stats["steps"] == 1 + 2 + 2
    assert len(brownian_motion(p, t_end=1.0, dt=1e-3, generator=generator)) == 101


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
        ({"generator": None}, ValueError, "generator or increments must be given"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator"),
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
        "start": _start((3, 3), 3, 3, generator),
        "beta": 1.0,
        "t_end": 0.1,
        "dt": 0.01,
        "generator": generator,
    }
    with pytest.raises(error, match=message):
        langevin(**{**good, **options})


def test_bad_increments_and_ranks(generator):
    p = _start((3, 3), 3, 3, generator)
    with pytest.raises(ValueError, match=r"increments must have shape \(steps, 3, 3\)"):
        brownian_motion(p, t_end=0.1, increments=torch.zeros(4, 2, 3))
    with pytest.raises(ValueError, match="save_at must hold multiples"):
        brownian_motion(p, t_end=0.1, increments=torch.zeros(4, 3, 3), save_at=[0.03])
    low = dln.Collapsed.random((4, 3), 2, 3, spectrum=[1.0, 0.0], generator=generator)
    with pytest.raises(ValueError, match="start must have the rank 2 of its manifold, got 1"):
        brownian_motion(low, t_end=0.1, dt=0.01, generator=generator)
    with pytest.raises(ValueError, match="start must have positive singular values"):
        free_energy_flow(dln.losses.Quadratic(torch.zeros(4, 3)), low, beta=1.0, t_end=1.0)
    with pytest.raises(TypeError, match="start must be a Collapsed or an EndToEnd"):
        free_energy_flow(dln.losses.Quadratic(torch.eye(3)), torch.eye(3), beta=1.0, t_end=1.0)


def test_a_loss_that_is_not_finite_says_so(generator):
    loss = dln.losses.from_callable(lambda x: torch.log(x[0, 0]))
    start = dln.EndToEnd.of(torch.eye(2, dtype=F64), 3)
    with pytest.raises(FlowError, match="loss must be finite with a finite gradient") as caught:
        langevin(loss, start, beta=0.05, t_end=2.0, dt=0.05, generator=generator, chains=20)
    assert set(caught.value.trajectory.status) == {"failed", "unfinished"}
    assert len(caught.value.trajectory) > 0


def test_a_step_that_is_too_large_warns_and_names_the_remedy(generator):
    loss = dln.losses.Quadratic(100 * torch.eye(3, dtype=F64))
    start = _start((3, 3), 3, 4, generator)
    with pytest.warns(UserWarning, match="dt = 0.5 is too large .* take a smaller dt"):
        langevin(loss, start, beta=1.0, t_end=1.0, dt=0.5, generator=generator)


@pytest.mark.parametrize("method", ["product", "splitting"])
def test_a_gradient_that_overflows_is_no_gradient_of_zero(method, generator):
    """Squares of single precision overflow long before the matrices do."""
    start = _start((3, 3), 3, 3, generator, dtype=torch.float32)
    loss = _quadratic((3, 3), generator, torch.float32)
    with pytest.raises(FlowError, match="got overflow: take dt below"):
        langevin(loss, start, beta=1e-12, t_end=0.2, dt=0.05, generator=generator, method=method)
