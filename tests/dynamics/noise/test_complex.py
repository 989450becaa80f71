"""Brownian motion and Langevin dynamics of complex matrices against exact moments."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.dynamics.noise import Gaussians, SplittingSteps, Thermostat
from dln_geometry.testing import assert_close, assert_mean, assert_order
from tests.dynamics.noise.routes import BETA, KAPPA, assert_same_law
from tests.geometry.realified import C128, complex_normal


class Ridge:
    """``E = (N/2) sum s^{2/N}``, the smallest ridge energy of the layers."""

    def __init__(self, depth):
        self.depth = depth

    def value(self, x):
        return 0.5 * self.depth * torch.linalg.svdvals(x).pow(2 / self.depth).sum(-1)

    def gradient(self, x):
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        return (u * s.pow(2 / self.depth - 1).unsqueeze(-2)) @ vh


def second_moments(depth, shape, rank, beta, entropy, generator):
    """Return ``|rho|^2 = N sum s^{2/N}`` of many chains near equilibrium."""
    start = dln.Collapsed.random(shape, rank, depth, dtype=C128, generator=generator)
    path = dln.langevin(
        Ridge(depth), start, beta=beta, entropy=entropy, t_end=4.0, dt=0.04, save_at=[4.0],
        chains=500, generator=generator,
    )  # fmt: skip
    return depth * path.singular_values[-1].pow(2 / depth).sum(-1)


@pytest.mark.parametrize("depth", [2, 3])
def test_equipartition(depth, generator):
    """``E|rho|^2`` is the dimension over beta: of the matrices, or of the balanced manifold."""
    beta = 1.3
    rho = second_moments(depth, (2, 2), 2, beta, False, generator)
    error = float(rho.std()) / math.sqrt(len(rho))
    assert abs(float(rho.mean()) - 8.0 / beta) < 4.0 * error + 0.03 * 8.0 / beta
    rho = second_moments(depth, (2, 2), 2, beta, True, generator)
    exact = (8.0 + 4.0 * (depth - 1)) / beta
    error = float(rho.std()) / math.sqrt(len(rho))
    assert abs(float(rho.mean()) - exact) < 4.0 * error + 0.03 * exact


def test_brownian_motion_of_a_complex_number_is_flat():
    """``rho e^{i theta/N}`` is plane Brownian motion: ``E rho^2 = rho_0^2 + 2 t``."""
    start = dln.EndToEnd.of(torch.tensor([[1.1 + 0.4j]], dtype=C128), 3)
    path = dln.brownian_motion(
        start.expand((4000,)), t_end=0.5, dt=0.05, save_at=[0.0, 0.5], generator=3
    )
    rho = 3 * path.singular_values[..., 0].pow(2 / 3)
    assert_mean(rho[1] - rho[0], 1.0)


def test_increments_and_depth_one(generator):
    dw = torch.randn(4, 2, 2, generator=generator, dtype=C128)
    start = dln.EndToEnd.of(torch.eye(2, dtype=C128), 1)
    path = dln.brownian_motion(start, t_end=1.0, increments=dw)
    assert float((path.final.matrix - start.matrix - dw.sum(0)).abs().max()) < 1e-12
    deep = dln.EndToEnd.of(torch.eye(2, dtype=C128), 4)
    path = dln.brownian_motion(deep, t_end=1.0, increments=0.1 * dw)
    assert path.final.dtype == C128


@pytest.mark.parametrize(
    ("depth", "shape", "rank", "entropy"),
    [(2, (2, 2), 2, False), (2.7, (2, 3), 1, True), (math.inf, (3, 2), 2, False)],
    ids=str,
)
def test_drift_of_splitting_is_the_gradient_flow(depth, shape, rank, entropy, generator):
    p = dln.Collapsed.random(
        shape, rank, depth, spectrum=[1.4, 1.0, 0.5][:rank], dtype=C128, generator=generator
    )
    loss, t = dln.losses.Quadratic(complex_normal(generator, *shape)), 0.15
    options = {"widths": None if rank == min(shape) else rank, "t_end": t, "save_at": [t]}
    exact = (
        dln.langevin(loss, p, beta=BETA, kappa=0.0, **options)
        if entropy
        else dln.gradient_flow(loss, p, t_end=t, save_at=[t], rtol=1e-11)
    ).final.matrix
    drive, start, steps, errors = Thermostat(loss, BETA, 0.0, entropy, 0.0), p.point(), [], []
    for count in (4, 8, 16, 32):
        stepper = SplittingSteps(drive, Gaussians(None), start, True)
        state = (start.u, start.s, start.vh, torch.zeros(1, dtype=torch.float64))
        for _ in range(count):
            state = stepper.advance(state, t / count, 3)
        steps.append(t / count)
        errors.append(float((stepper.point(state).matrix - exact).norm()))
    assert_order(steps, errors, 2, tol=0.2)


@pytest.mark.parametrize(
    ("depth", "shape", "rank", "entropy"),
    [(3, (3, 3), 3, True), (1.5, (3, 3), 3, False), (2.7, (3, 4), 2, True), (3, (5, 4), 2, True),
     (math.inf, (3, 3), 3, True), (math.inf, (4, 5), 2, False)],
    ids=str,
)  # fmt: skip
def test_generator_of_one_splitting_step(depth, shape, rank, entropy, generator):
    """Drift without a term of Laplace and Beltrami, and covariance of X in real coordinates."""
    chains, h, (m, n) = 4000, 1e-4, shape
    p = dln.Collapsed.random(
        shape, rank, depth, spectrum=[1.4, 1.0, 0.5][:rank], dtype=C128, generator=generator
    ).point()
    loss = dln.losses.Quadratic(complex_normal(generator, m, n))
    drive, ends = Thermostat(loss, BETA, KAPPA, entropy, 0.0), []
    many = [x.expand(chains, *x.shape) for x in (p.u, p.s, p.vh)]
    for sign in (1, -1):
        stepper = SplittingSteps(drive, Mirrored(5, sign), p.expand((chains,)), False)
        state = stepper.advance((*many, torch.zeros(1, dtype=torch.float64)), h, 3)
        ends.append(stepper.point(state).matrix)
    even, odd = (ends[0] + ends[1]) / 2, (ends[0] - ends[1]) / 2
    drift = -dln.cometric(p, loss.gradient(p.matrix))
    if entropy:
        drift = drift + dln.cometric(p, dln.entropy_gradient(p, widths=rank)) / BETA
    assert_mean(torch.view_as_real((even - p.matrix) / h), torch.view_as_real(drift), sigmas=4.5)
    basis = torch.eye(m * n, dtype=C128).reshape(-1, m, n)
    rows = dln.cometric(p, torch.cat((basis, 1j * basis))).flatten(1)
    covariance = 2 * KAPPA / BETA * torch.cat((rows.real, rows.imag), -1)
    moved = odd.flatten(1) / math.sqrt(h)
    assert_covariance(torch.cat((moved.real, moved.imag), -1), covariance, 1e-9)


def assert_covariance(moved, covariance, rounding):
    """Within five standard errors, those of Gaussians with this covariance."""
    error = (moved.T @ moved / len(moved) - covariance).abs()
    own = covariance.diagonal()
    spread = ((own[:, None] * own + covariance.square()) / len(moved)).sqrt()
    assert bool((error < 5 * spread + rounding).all())


class Mirrored(Gaussians):
    """The same draws with both signs, for the even and the odd part of a step."""

    def __init__(self, seed, sign):
        super().__init__(torch.Generator().manual_seed(seed))
        self.sign = sign

    def draw(self, shape, like, scale):
        return self.sign * super().draw(shape, like, scale)


@pytest.mark.parametrize(("widths", "rank"), [((3, 2, 3), 2), ((2, 2, 3, 2), 2)], ids=str)
def test_noise_of_layers_has_the_covariance_of_both_parts(widths, rank, generator):
    """``2h/beta`` times the vertical projector plus kappa times the horizontal one."""
    chains, h = 3000, 1e-8
    layers = dln.random_balanced(
        widths, rank=rank, spectrum=[1.4, 0.5], generator=generator, dtype=C128
    )
    path = dln.langevin(
        None, [w.expand(chains, *w.shape) for w in layers], beta=BETA, kappa=KAPPA, t_end=h, dt=h,
        generator=generator, upstairs=True,
    )  # fmt: skip
    frames = (dln.vertical_frame(layers), dln.horizontal_frame(layers))
    along, across = (as_rows(*frame) for frame in frames)
    covariance = 2 / BETA * (along.T @ along + KAPPA * across.T @ across)
    moved = as_rows(*((a - b) for a, b in zip(path.final, layers, strict=True))) / math.sqrt(h)
    assert_covariance(moved, covariance, 100 * math.sqrt(h))
    assert bool(dln.is_balanced(path.final, rtol=1e-10).all())


def as_rows(*layers):
    """Return complex layers (k, ...) as k real vectors."""
    parts = [torch.view_as_real(w.resolve_conj().contiguous()).flatten(1) for w in layers]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("method", ["splitting", "upstairs"])
def test_equipartition_by_other_steps(method, generator):
    """``E|rho|^2`` is the dimension of the balanced manifold over beta."""
    depth, beta = 3, 1.3
    way = {"upstairs": True} if method == "upstairs" else {"method": method}
    start = dln.Collapsed.random((2, 2), 2, depth, dtype=C128, generator=generator)
    path = dln.langevin(
        Ridge(depth), start, beta=beta, t_end=4.0, dt=0.05, save_at=[4.0], chains=400,
        generator=generator, **way,
    )  # fmt: skip
    rho = depth * path.singular_values[-1].pow(2 / depth).sum(-1)
    exact, error = (8.0 + 4.0 * (depth - 1)) / beta, float(rho.std()) / math.sqrt(len(rho))
    assert abs(float(rho.mean()) - exact) < 4.0 * error + 0.02 * exact


def test_flat_motion_is_exact_in_one_splitting_step(generator):
    """Without loss and entropy ``|rho|^2`` has the law of a complex Brownian motion."""
    start = dln.Collapsed.random((3, 2), 2, 3, spectrum=[1.0, 0.2], dtype=C128, generator=generator)
    path = dln.brownian_motion(
        start, t_end=0.7, dt=0.7, save_at=[0.7], chains=4000, method="splitting",
        generator=generator,
    )  # fmt: skip
    rho = math.sqrt(3) * path.singular_values[-1].pow(1 / 3)
    first = math.sqrt(3) * torch.tensor([1.0, 0.2], dtype=torch.float64).pow(1 / 3)
    z = torch.zeros(4000, 3, 2, dtype=C128)
    z[:, [0, 1], [0, 1]] = first.to(C128)
    z = z + math.sqrt(2.0 * 0.7) * torch.randn(4000, 3, 2, generator=generator, dtype=C128)
    assert_same_law(rho, torch.linalg.svdvals(z))


def test_gauge_noise_of_balanced_layers_follows_the_entropy(generator):
    """In one step: X moves by ``(1/beta) grad S`` in the mean, and layers stay balanced."""
    s, beta, h = torch.tensor([1.3, 0.6], dtype=torch.float64), 2.0, 1e-3
    p = dln.EndToEnd.of(torch.diag(s).to(C128), 2)
    layers = dln.balanced_factors(p, gauge="haar", generator=generator)
    many = [w.expand(20_000, *w.shape) for w in layers]
    path = dln.gauge_noise(many, beta=beta, t_end=h, steps=1, generator=generator)
    assert float(path.observed["moment"].max()) < 1e-12
    drift = dln.cometric(p, dln.entropy_gradient(p)) / beta
    moved = (path.final.matrix - p.matrix) / h
    assert_mean(torch.view_as_real(moved), torch.view_as_real(drift))
    free = [complex_normal(generator, 20, *shape) for shape in ((3, 4), (3, 3))]
    path = dln.gauge_noise(free, beta=1.5, t_end=0.2, steps=20, generator=generator)
    assert_close(dln.gauge_eigenvalues(path.final), dln.gauge_eigenvalues(free), ops=1e5)


def test_quaternions_stay_quaternions(generator):
    """Brownian motion of one in its complex representation: ``E rho^2 = rho_0^2 + 4 t``."""

    def representation(*shape):
        a, b = torch.randn(2, *shape, 1, 1, generator=generator, dtype=C128) * math.sqrt(2.0)
        return torch.cat((torch.cat((a, b), -1), torch.cat((-b.conj(), a.conj()), -1)), -2)

    start = dln.EndToEnd.of(representation(), 3).expand((3000,))
    # Each part of an increment has the variance of a step.
    dw = math.sqrt(0.5 / 8) * representation(8, 3000)
    path = dln.brownian_motion(start, t_end=0.5, increments=dw, save_at=[0.0, 0.5])
    x = path.final.matrix
    assert_close(x[:, 0, 0], x[:, 1, 1].conj(), ops=1e5)
    assert_close(x[:, 0, 1], -x[:, 1, 0].conj(), ops=1e5)
    rho = 3 * path.singular_values[..., 0].pow(2 / 3)
    assert_mean(rho[1] - rho[0], 2.0)
