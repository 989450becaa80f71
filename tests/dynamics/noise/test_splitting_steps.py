from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

import dln_geometry as dln
from dln_geometry.dynamics.noise import Gaussians, SplittingSteps, Thermostat, rotates_first
from dln_geometry.testing import assert_close, assert_mean, assert_order
from tests.dynamics.noise.routes import BETA, F64, KAPPA, Ridge, quadratic, start_at


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize(
    ("depth", "shape", "rank"),
    [(1.5, (3, 3), 3), (2, (3, 3), 3), (3, (4, 3), 3), (4, (3, 4), 3), (2.7, (5, 4), 2),
     (3, (4, 5), 2), (math.inf, (3, 3), 3), (math.inf, (4, 5), 3)],
    ids=str,
)  # fmt: skip
def test_the_drift_is_the_gradient_flow(depth, shape, rank, entropy, generator):
    """Without noise, against the adaptive flow: of second order, loss and entropy alike."""
    p = start_at(shape, rank, depth, generator)
    loss, t = quadratic(shape, generator), 0.15
    drive = Thermostat(loss, BETA, 0.0, entropy, 0.0)
    start = p.point()
    exact = (
        dln.langevin(
            loss, p, beta=BETA, kappa=0.0, t_end=t, widths=None if rank == min(shape) else rank
        )
        if entropy
        else dln.gradient_flow(loss, p, t_end=t, rtol=1e-11)
    ).final.matrix
    steps, errors = [], []
    for count in (8, 16, 32, 64):
        stepper = SplittingSteps(drive, Gaussians(None), start, True)
        state = (start.u, start.s, start.vh, torch.zeros(1, dtype=F64))
        for _ in range(count):
            state = stepper.advance(state, t / count, 3)
        steps.append(t / count)
        errors.append(float((stepper.point(state).matrix - exact).norm()))
    assert_order(steps, errors, 2, tol=0.2)


class _Mirrored(Gaussians):
    """The same draws with both signs, for the even and the odd part of a step."""

    def __init__(self, seed, sign):
        super().__init__(torch.Generator().manual_seed(seed))
        self.sign = sign

    def draw(self, shape, like, scale):
        return self.sign * super().draw(shape, like, scale)


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize(
    ("depth", "shape", "rank", "normalized"),
    [(1.5, (3, 3), 3, False), (2, (3, 3), 3, False), (3, (3, 3), 3, True), (3, (4, 3), 3, False),
     (2.7, (3, 4), 2, False), (3, (5, 4), 2, False), (40, (3, 3), 3, True),
     (math.inf, (3, 3), 3, True), (math.inf, (4, 5), 3, True)],
    ids=str,
)  # fmt: skip
def test_generator_of_one_step(depth, shape, rank, normalized, entropy, generator):
    """Flat motion, rotations and radial flow make drift and covariance in X, as one equation."""
    chains, h, (m, n) = 8000, 1e-4, shape
    p = start_at(shape, rank, depth, generator).point()
    p = p.replace(normalized=normalized)
    loss = quadratic(shape, generator)
    drive = Thermostat(loss, BETA, KAPPA, entropy, 0.0)
    many = [x.expand(chains, *x.shape) for x in (p.u, p.s, p.vh)]
    ends = []
    for sign in (1, -1):
        start = p.expand((chains,))
        stepper = SplittingSteps(drive, _Mirrored(5, sign), start, False)
        state = stepper.advance((*many, torch.zeros(1, dtype=F64)), h, 3)
        ends.append(stepper.point(state).matrix)
    even, odd = (ends[0] + ends[1]) / 2, (ends[0] - ends[1]) / 2
    slow = depth if normalized and not math.isinf(depth) else 1.0
    layers = 1.0 if math.isinf(depth) else (depth - 1.0) / slow
    drift = -dln.cometric(p, loss.gradient(p.matrix))
    drift = drift + KAPPA / BETA * layers * (p.u * p.s ** (1 - 2 / depth)) @ p.vh
    if entropy:
        drift = drift + dln.cometric(p, dln.entropy_gradient(p, widths=rank)) / BETA
    assert_mean((even - p.matrix) / h, drift, sigmas=4.5)
    basis = torch.eye(m * n, dtype=F64).reshape(-1, m, n)
    covariance = 2 * KAPPA / BETA * dln.cometric(p, basis).flatten(1)
    moved = odd.flatten(1) / math.sqrt(h)
    samples = moved.unsqueeze(-1) * moved.unsqueeze(-2)
    error = (samples.mean(0) - covariance).abs()
    assert bool((error < 5 * samples.std(0) / chains**0.5 + 1e-9).all())


class _Shared(Gaussians):
    """Increments of Brownian motions of m x n matrices, which coarser steps share."""

    def __init__(self, flat, turns):
        super().__init__(None)
        self.flat, self.turns = flat, turns


class _Coupled(SplittingSteps):
    """The noise from matrices in fixed frames, so that refinement meets the same path."""

    step = 0

    def flat_noise(self, p, q, like, h):
        z = self.drive.amplitude * self.noise.flat[self.step]
        if self.depth.infinite:
            return q.mT @ z @ q
        z = z.mT if self.swapped else z
        return z if self.whole else z @ q

    def normals(self, p, q):
        # Standard normal numbers are asked for: the size of the step is in the rates.
        size = self.noise.size**-0.5
        w = self.noise.turns[self.step]

        def draw(shape):
            z = w[0] if shape[-2] == shape[-1] else w[1]
            z = size * (z.mT if self.swapped else z)
            if shape[-2] == shape[-1]:
                return p.mT @ z @ q
            return z @ q if shape[-2] == p.shape[-2] else z.mT @ p

        return draw


def _weak_errors(loss, start, shape, t, finest, chains, generator, depth):
    """Differences of expectations of steps and their halves, with the same noise."""
    h = t / finest
    m, n = shape
    size = (n, n) if math.isinf(depth) else shape

    def randn(*d):
        return math.sqrt(h) * torch.randn(*d, generator=generator, dtype=F64)

    flat = randn(finest, chains, *size)
    turns = randn(finest, 2, 2, chains, m, n)
    means = []
    for _ in range(5):
        noise = _Shared(flat, turns)
        noise.size = t / len(flat)
        drive = Thermostat(loss, BETA, KAPPA, True, 0.0)
        p = start.point()
        many = [x.expand(chains, *x.shape) for x in (p.u, p.s, p.vh)]
        stepper = _Coupled(drive, noise, p.expand((chains,)), True)
        state = (*many, torch.zeros(1, dtype=F64))
        for k in range(len(flat)):
            stepper.step = k
            state = stepper.advance(state, noise.size, 3)
        x = stepper.point(state).matrix
        s = state[1] if depth == math.inf else state[1] ** (2 / depth)
        means.append(
            torch.stack(
                [
                    s.sum(-1),
                    (x - loss.target).square().sum((-2, -1)),
                    x[:, 0, 1],
                    x[:, 0, 1] * x[:, 1, 0],
                ],
                -1,
            )
        )
        flat = flat[0::2] + flat[1::2]
        turns = turns[0::2] + turns[1::2]
    return [float((a - b).mean(0).norm()) for a, b in pairwise(means)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "shape", "rank", "t"),
    [(3, (3, 3), 3, 0.4), (2, (3, 3), 3, 0.5), (2.7, (4, 3), 3, 0.3), (3, (5, 4), 2, 0.4),
     (math.inf, (3, 3), 3, 0.5)],
    ids=str,
)  # fmt: skip
def test_weak_order_two(depth, shape, rank, t, generator):
    start, loss = start_at(shape, rank, depth, generator), quadratic(shape, generator)
    # The wall of lower ranks makes the first steps coarse ones.
    finest = 16 if rank == min(shape) else 32
    errors = _weak_errors(loss, start, shape, t, finest, 8000, generator, depth)
    steps = [t / finest * 2**k for k in range(4)]
    assert_order(steps, errors, 2, tol=0.4)


@pytest.mark.parametrize(
    ("depth", "shape", "rank", "entropy"),
    [(1, (3, 3), 3, False), (2, (3, 3), 3, True), (3, (4, 3), 3, True), (2.7, (3, 4), 2, True),
     (math.inf, (3, 3), 3, True), (math.inf, (4, 3), 2, False)],
    ids=str,
)  # fmt: skip
def test_the_law_is_that_of_product_steps(depth, shape, rank, entropy, generator):
    chains = 1500
    start, loss = start_at(shape, rank, depth, generator), quadratic(shape, generator)
    t = 0.4 if math.isinf(depth) else 0.5 / depth
    options = {
        "beta": BETA, "kappa": KAPPA, "entropy": entropy, "t_end": t, "save_at": [t],
        "generator": generator, "chains": chains,
    }  # fmt: skip
    direction = torch.randn(*shape, generator=generator, dtype=F64)
    figures = []
    for method, count in (("product", 50), ("splitting", 8)):
        path = dln.langevin(loss, start, dt=t / count, method=method, **options)
        x = path.final.matrix
        assert_close(path.loss[-1], loss.value(x), ops=1000)
        along = (x * direction).sum((-2, -1))
        figures.append([*path.singular_values[-1].unbind(-1), along, path.loss[-1]])
    for a, b in zip(*figures, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3


@pytest.mark.parametrize(("depth", "shape"), [(2, (3, 3)), (2.7, (3, 2)), (5, (2, 4))])
def test_singular_values_of_brownian_motion_are_exact_in_one_step(depth, shape, generator):
    chains, t, r = 3000, 1.3, min(shape)
    start = start_at(shape, r, depth, generator)
    path = dln.brownian_motion(
        start, t_end=t, dt=t, generator=generator, chains=chains, method="splitting"
    )
    rho = math.sqrt(depth) * path.singular_values[-1] ** (1 / depth)
    first = torch.zeros(*shape, dtype=F64)
    first[:r, :r] = torch.diag(math.sqrt(depth) * start.singular_values() ** (1 / depth))
    noise = torch.randn(chains, *shape, generator=generator, dtype=F64)
    exact = torch.linalg.svdvals(first + math.sqrt(t) * noise)
    for k in range(r):
        assert stats.ks_2samp(rho[:, k], exact[:, k]).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "rank", "depth", "beta", "entropy"),
    [((2, 2), 2, 3, 1.0, True), ((3, 3), 3, 4, 2.5, True), ((4, 3), 2, 3, 1.3, False),
     ((3, 4), 2, 3, 1.3, True), ((2, 2), 2, 2.7, 1.0, False)],
)  # fmt: skip
def test_equilibria_at_three_step_sizes(shape, rank, depth, beta, entropy, generator):
    """``E|rho|^2`` is the dimension over beta; steps ten times those of product steps."""
    wanted = dln.laws.ridge_mean_square(shape, rank, depth, beta=beta, entropy=entropy)
    chains, means, sizes = 1500, [], [0.4, 0.2, 0.1]
    spectrum = tuple((wanted / depth / rank) ** (depth / 2) for _ in range(rank))
    start = start_at(shape, rank, depth, generator, spectrum=spectrum)
    for dt in sizes:
        path = dln.langevin(
            Ridge(depth), start, beta=beta, entropy=entropy, t_end=3.2, dt=dt, method="splitting",
            generator=generator, chains=chains, save_at=[1.6, 2.4, 3.2],
        )  # fmt: skip
        means.append(depth * (path.singular_values ** (2 / depth)).sum((0, -1)) / 3)
    for dt, mean in zip(sizes, means, strict=True):
        error = float(mean.std()) / chains**0.5
        assert abs(float(mean.mean()) - wanted) < 4 * error + 0.5 * dt**2 * wanted
    assert_mean((4 * means[2] - means[1]) / 3, wanted)


def test_the_determinant_keeps_its_sign_at_even_depths_alone(generator):
    for depth, kept in ((2, True), (4, True), (3, False), (2.7, False), (math.inf, True)):
        p = start_at((2, 2), 2, depth, generator, spectrum=(1.0, 0.2))
        path = dln.brownian_motion(
            p, t_end=2.0, dt=0.1, generator=generator, chains=50, method="splitting"
        )
        signs = torch.linalg.det(path.final.matrix).sign()
        assert (len(signs.unique()) == 1) == kept, depth


@pytest.mark.slow
def test_even_depths_reflect_with_the_right_law(generator):
    """Through ``det = 0`` of Y and back, against product steps of a tenth of the size."""
    loss = dln.losses.Quadratic(torch.tensor([[0.5, 0.3], [-0.2, 0.4]], dtype=F64))
    start = start_at((2, 2), 2, 2, generator, spectrum=(0.5, 0.02))
    options = {"beta": 2.0, "t_end": 0.6, "save_at": [0.6], "generator": generator, "chains": 4000}
    a = dln.langevin(loss, start, dt=0.003, **options)
    b = dln.langevin(loss, start, dt=0.03, method="splitting", **options)
    pairs = [
        (a.loss[-1], b.loss[-1]),
        *zip(a.final.matrix.flatten(1).T, b.final.matrix.flatten(1).T, strict=True),
    ]
    for x, y in pairs:
        assert stats.ks_2samp(x, y).pvalue > 1e-3


def test_the_order_of_two_flows_is_kept_in_balance():
    balance, seen = torch.zeros(1, dtype=F64), []
    for h in (0.1, 0.1, 0.1, 0.1, *(0.1, 0.2) * 10):
        before, balance = rotates_first(balance, h)
        seen.append(before)
        assert abs(float(balance)) <= 0.2**2 + 1e-15
    assert seen[:4] == [True, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("depth", [1, 2, 2.7, 3, 40, math.inf])
def test_small_and_equal_starts_are_no_obstacle(depth, dtype, generator):
    p = dln.Collapsed.random((4, 3), None, depth, scale=1e-4, generator=generator, dtype=dtype)
    loss = dln.losses.Quadratic(torch.eye(4, 3))
    path = dln.langevin(
        loss, p, beta=5.0, t_end=1.0, dt=0.05, generator=generator, chains=20, method="splitting"
    )
    assert path.final.matrix.dtype == dtype
    assert bool(torch.isfinite(path.final.matrix).all())
    assert bool((path.singular_values.diff(dim=-1) <= 0).all())
    if depth > 1:
        assert float(path.final.defect().max()) < 1000 * torch.finfo(dtype).eps
