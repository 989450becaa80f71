from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

import dln_geometry as dln
from dln_geometry.dynamics.flows import FlowError
from dln_geometry.dynamics.noise import (
    DeepSplitting,
    Gaussians,
    Splitting,
    Thermostat,
    brownian_motion,
    deep_rates,
    excess_rates,
    langevin,
    polished,
    rotated,
    rotates_first,
)
from dln_geometry.geometry.metric import thin_svd
from dln_geometry.testing import assert_close, assert_mean, assert_order

SIMULATION = "dln_geometry.dynamics.noise.simulation"
F64 = torch.float64
BETA, KAPPA = 1.7, 0.6
SPECTRUM = (1.4, 1.0, 0.6)


class Ridge:
    """``N/2 sum s^{2/N}``, half the squared norm in rho: a Gaussian at every depth."""

    def __init__(self, depth):
        self.depth = depth

    def value(self, x):
        return self.depth / 2 * (torch.linalg.svdvals(x) ** (2 / self.depth)).sum(-1)

    def gradient(self, x):
        raise AssertionError("steps of two methods contract")

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


def _start(shape, rank, depth, generator, spectrum=SPECTRUM):
    options = {"spectrum": spectrum[:rank], "generator": generator, "dtype": F64}
    return dln.Collapsed.random(shape, rank, depth, **options)


def _quadratic(shape, generator):
    return dln.losses.Quadratic(torch.randn(*shape, generator=generator, dtype=F64))


def _off(x):
    return x - x.diagonal(dim1=-2, dim2=-1).diag_embed()


@pytest.mark.parametrize("depth", [1, 1.5, 2, 2.7, 3, 8, 40])
def test_rotations_make_up_what_flat_noise_lacks(depth):
    """The sum with flat rotations is ``2 a / (s_i -+ s_j)^2``, what ``sqrt(a_ij) dB_ij`` does."""
    rho = torch.tensor([3.0, 2.9, 2.0, 0.7, 0.02], dtype=F64)
    s = (rho / depth**0.5) ** depth
    variance = 0.3
    rates = excess_rates(rho, depth, variance, left=depth - 1.0, right=depth)
    kernel = dln.depth_kernel(s, depth)
    eye = torch.diag(torch.full((5,), math.inf, dtype=F64))

    def total(sign):
        return 2 * variance * kernel / (s[:, None] + sign * s + eye) ** 2

    def flat(sign):
        return 2 * variance / (rho[:, None] + sign * rho + eye) ** 2

    for got, sign in ((rates.plus, -1), (rates.minus, 1)):
        # The poles of neighbours cancel here, not in the rates.
        assert_close(got + flat(sign), _off(total(sign)), ops=1000, condition=1e3)
        assert bool((got >= -1e-12).all())
    assert_close(rates.left + variance / rho**2, variance * depth / rho**2)


def test_rates_are_smooth_where_values_collide():
    """``(N^2 - 1)/(6 rho^2)`` and ``(N^2 - 1)/(2 rho^2)`` times the variance, by the series."""
    rho, depth = torch.tensor([2.0, 2.0, 2.0 - 1e-9], dtype=F64), 3.0
    rates = excess_rates(rho, depth, 1.0, left=0.0, right=0.0)
    off = 1 - torch.eye(3, dtype=F64)
    assert float((rates.plus - off * 8 / 24).abs().max()) < 1e-6
    assert float((rates.minus - off * 8 / 8).abs().max()) < 1e-6


def test_infinite_depth_is_the_limit_of_rates():
    """Flat motion apart, which is one of symmetric matrices there: the sums are compared."""
    u, depth, variance = torch.tensor([0.9, 0.4, 0.37, -1.3], dtype=F64), 1e5, 0.3
    deep = deep_rates(u, variance)
    rho = math.sqrt(depth) * (u / depth).exp()
    # In the metric without 1/N everything is N times as fast.
    near = excess_rates(rho, depth, variance / depth, left=0.0, right=0.0)
    inf = torch.diag(torch.full((4,), math.inf, dtype=F64))
    gap, sums = rho[:, None] - rho + inf, rho[:, None] + rho + inf
    plus = near.plus + 2 * variance / depth / gap**2
    minus = near.minus + 2 * variance / depth / sums**2
    symmetric = 2 * variance / (u[:, None] - u + inf) ** 2
    for a, b in ((deep.plus + symmetric, plus), (deep.minus, minus)):
        assert float((a - b).abs().max()) < 20 / depth * float(a.abs().max())


def test_the_sign_of_a_value_behind_zero_exchanges_flat_rotations():
    rho, depth, eps = torch.tensor([2.0, 1.0, -0.5], dtype=F64), 4, 1e-7
    signed = excess_rates(rho, depth, 1.0, left=0.0, right=0.0, signed=True)
    plain = excess_rates(rho.abs(), depth, 1.0, left=0.0, right=0.0)
    gap = 2 / (2.0 - 0.5) ** 2 - 2 / (2.0 + 0.5) ** 2
    assert_close(signed.plus[0, 2] - plain.plus[0, 2], gap)
    assert_close(signed.plus[:2, :2], plain.plus[:2, :2])
    both = [
        excess_rates(
            torch.tensor([2.0, 1.0, x], dtype=F64), depth, 1.0, left=0, right=0, signed=True
        )
        for x in (-eps, eps)
    ]
    assert float((both[0].plus - both[1].plus).abs().max()) < 10 * eps


def _expected_turn(plus, minus, r):
    """E of ``P (x) Q`` exactly: the exponential of half the sum of squares of the generators."""
    eye = torch.eye(r, dtype=F64)
    total = torch.zeros(r * r, r * r, dtype=F64)
    for i in range(r):
        for j in range(i + 1, r):
            e = torch.zeros(r, r, dtype=F64)
            e[i, j], e[j, i] = 1.0, -1.0
            for rate, sign in ((plus[i, j], 1), (minus[i, j], -1)):
                # Half of the sum of angles each, or half of the difference with both signs.
                g = 0.5 * (torch.kron(e, eye) + sign * torch.kron(eye, e))
                total += 0.5 * rate * g @ g
    return torch.linalg.matrix_exp(total)


def test_rotations_have_weak_order_two(generator):
    """One step of a flow of constant rates against its exact expectation; order 3 in the rates."""
    r, count = 3, 200_000
    rho = torch.tensor([2.0, 1.4, 0.8], dtype=F64)
    eye = torch.eye(r, dtype=F64).expand(count, r, r)
    sizes, errors = [], []
    for variance in (0.32, 0.24, 0.16, 0.12):
        rates = excess_rates(rho, 3, variance, left=0.0, right=0.0)
        p, q = rotated(eye, eye, rates, lambda d: torch.randn(d, generator=generator, dtype=F64))
        mean = torch.einsum("bij,bkl->ikjl", p, q).reshape(r * r, r * r) / count
        error = mean - _expected_turn(rates.plus, rates.minus, r)
        sizes.append(variance)
        errors.append(float(error.norm()))
    assert_order(sizes, errors, 3, tol=0.6)


@pytest.mark.parametrize(("shape", "rank"), [((3, 3), 3), ((6, 4), 3)])
def test_rotations_keep_frames_orthonormal_and_are_tamed(shape, rank, generator):
    p = _start(shape, rank, 3, generator).point()
    rho = torch.tensor([2.0, 1e-3, 1e-9], dtype=F64)
    rates = excess_rates(rho, 3, 0.1, left=2.0, right=3.0)
    draw = lambda d: torch.randn(d, generator=generator, dtype=F64)  # noqa: E731
    for frame in rotated(p.u, p.vh.mT, rates, draw):
        assert_close(frame.mT @ frame, torch.eye(rank, dtype=F64))
    rough = p.u + 1e-5 * torch.randn(p.u.shape, generator=generator, dtype=F64)
    better = polished(rough)
    assert float((better.mT @ better - torch.eye(rank, dtype=F64)).norm()) < 1e-8


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize(
    ("depth", "shape", "rank"),
    [(1.5, (3, 3), 3), (2, (3, 3), 3), (3, (4, 3), 3), (4, (3, 4), 3), (2.7, (5, 4), 2),
     (3, (4, 5), 2), (math.inf, (3, 3), 3), (math.inf, (4, 5), 3)],
    ids=str,
)  # fmt: skip
def test_the_drift_is_the_gradient_flow(depth, shape, rank, entropy, generator):
    """Without noise, against the adaptive flow: of second order, loss and entropy alike."""
    p = _start(shape, rank, depth, generator)
    loss, t = _quadratic(shape, generator), 0.15
    drive = Thermostat(loss, BETA, 0.0, entropy, 0.0)
    kind = DeepSplitting if math.isinf(depth) else Splitting
    start = p.point()
    exact = (
        langevin(
            loss, p, beta=BETA, kappa=0.0, t_end=t, widths=None if rank == min(shape) else rank
        )
        if entropy
        else dln.gradient_flow(loss, p, t_end=t, rtol=1e-11)
    ).final.matrix
    steps, errors = [], []
    for count in (8, 16, 32, 64):
        stepper = kind(drive, Gaussians(None), start, True)
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
    p = _start(shape, rank, depth, generator).point()
    p = dln.EndToEnd(p.u, p.s, p.vh, depth, normalized)
    loss = _quadratic(shape, generator)
    drive = Thermostat(loss, BETA, KAPPA, entropy, 0.0)
    kind = DeepSplitting if math.isinf(depth) else Splitting
    many = [x.expand(chains, *x.shape) for x in (p.u, p.s, p.vh)]
    ends = []
    for sign in (1, -1):
        start = dln.EndToEnd(*many, depth, normalized)
        stepper = kind(drive, _Mirrored(5, sign), start, False)
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


def _coupled(kind):
    class Coupled(kind):
        """The noise from matrices in fixed frames, so that refinement meets the same path."""

        step = 0

        def _noise(self, p, q, shape, h):
            z = self.drive.amplitude * self.noise.flat[self.step]
            if kind is DeepSplitting:
                return 0.5 * q.mT @ z @ q
            z = z.mT if self.swapped else z
            return z if self.whole else z @ q

        def _draw(self, p, q):
            # Standard normal numbers are asked for: the size of the step is in the rates.
            size = self.noise.size**-0.5
            w = self.noise.turns[self.step]

            def draw(shape):
                z = w[0] if shape[-2] == shape[-1] else w[1]
                z = size * (z.mT if kind is Splitting and self.swapped else z)
                if shape[-2] == shape[-1]:
                    return p.mT @ z @ q
                return z @ q if shape[-2] == p.shape[-2] else z.mT @ p

            return draw

    return Coupled


def _weak_errors(kind, loss, start, shape, t, finest, chains, generator, depth):
    """Differences of expectations of steps and their halves, with the same noise."""
    h = t / finest
    m, n = shape
    size = (n, n) if kind is DeepSplitting else shape

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
        stepper = _coupled(kind)(drive, noise, dln.EndToEnd(*many, depth, p.normalized), True)
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
    kind = DeepSplitting if math.isinf(depth) else Splitting
    start, loss = _start(shape, rank, depth, generator), _quadratic(shape, generator)
    # The wall of lower ranks makes the first steps coarse ones.
    finest = 16 if rank == min(shape) else 32
    errors = _weak_errors(kind, loss, start, shape, t, finest, 8000, generator, depth)
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
    start, loss = _start(shape, rank, depth, generator), _quadratic(shape, generator)
    t = 0.4 if math.isinf(depth) else 0.5 / depth
    options = {
        "beta": BETA, "kappa": KAPPA, "entropy": entropy, "t_end": t, "save_at": [t],
        "generator": generator, "chains": chains,
    }  # fmt: skip
    direction = torch.randn(*shape, generator=generator, dtype=F64)
    figures = []
    for method, count in (("product", 50), ("splitting", 8)):
        path = langevin(loss, start, dt=t / count, method=method, **options)
        x = path.final.matrix
        assert_close(path.loss[-1], loss.value(x), ops=1000)
        along = (x * direction).sum((-2, -1))
        figures.append([*path.singular_values[-1].unbind(-1), along, path.loss[-1]])
    for a, b in zip(*figures, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3


@pytest.mark.parametrize(("depth", "shape"), [(2, (3, 3)), (2.7, (3, 2)), (5, (2, 4))])
def test_singular_values_of_brownian_motion_are_exact_in_one_step(depth, shape, generator):
    chains, t, r = 3000, 1.3, min(shape)
    start = _start(shape, r, depth, generator)
    path = brownian_motion(
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
    start = _start(shape, rank, depth, generator, spectrum)
    for dt in sizes:
        path = langevin(
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
        p = _start((2, 2), 2, depth, generator, (1.0, 0.2))
        path = brownian_motion(
            p, t_end=2.0, dt=0.1, generator=generator, chains=50, method="splitting"
        )
        signs = torch.linalg.det(path.final.matrix).sign()
        assert (len(signs.unique()) == 1) == kept, depth


@pytest.mark.slow
def test_even_depths_reflect_with_the_right_law(generator):
    """Through ``det = 0`` of Y and back, against product steps of a tenth of the size."""
    loss = dln.losses.Quadratic(torch.tensor([[0.5, 0.3], [-0.2, 0.4]], dtype=F64))
    start = _start((2, 2), 2, 2, generator, (0.5, 0.02))
    options = {"beta": 2.0, "t_end": 0.6, "save_at": [0.6], "generator": generator, "chains": 4000}
    a = langevin(loss, start, dt=0.003, **options)
    b = langevin(loss, start, dt=0.03, method="splitting", **options)
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
    path = langevin(
        loss, p, beta=5.0, t_end=1.0, dt=0.05, generator=generator, chains=20, method="splitting"
    )
    assert path.final.matrix.dtype == dtype
    assert bool(torch.isfinite(path.final.matrix).all())
    assert bool((path.singular_values.diff(dim=-1) <= 0).all())
    if depth > 1:
        assert float(path.final.defect().max()) < 1000 * torch.finfo(dtype).eps


def test_a_killed_run_continues_to_the_same_bits(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{SIMULATION}._SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    p, loss = _start((3, 3), 3, 4, generator), _quadratic((3, 3), generator)
    options = {"beta": 3.0, "t_end": 0.5, "dt": 0.1, "chains": 2, "method": "splitting"}
    whole = langevin(loss, p, generator=torch.Generator().manual_seed(1), **options)

    def kill(fraction, info):
        if fraction >= 0.6:
            raise KeyboardInterrupt

    store = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        langevin(
            loss,
            p,
            generator=torch.Generator().manual_seed(1),
            store=store,
            progress=kill,
            **options,
        )
    again = langevin(loss, p, generator=torch.Generator().manual_seed(9), store=store, **options)
    assert torch.equal(whole.singular_values, again.singular_values)
    with pytest.raises(ValueError, match="store must belong to the same run"):
        langevin(loss, p, generator=generator, store=store, **{**options, "method": "product"})


@pytest.mark.parametrize("method", ["product", "splitting"])
@pytest.mark.parametrize("depth", [1, 3, math.inf])
def test_the_chains_that_diverge_are_named_and_the_others_kept(method, depth, generator):
    """One of the losses of a batch is infinite beyond a bound."""

    class Cliff:
        def value(self, x):
            return 0.5 * x.square().sum((-2, -1))

        def gradient(self, x):
            g = x.clone()
            g[2] = math.nan if bool(x[2].norm() > 0) and self.late() else g[2]
            return g

        def late(self):
            self.calls = getattr(self, "calls", 0) + 1
            return self.calls > 10

    start = dln.EndToEnd.of(torch.eye(2, dtype=F64).expand(4, 2, 2), depth)
    with pytest.raises(FlowError, match=r"in sample 2 of 4") as caught:
        langevin(Cliff(), start, beta=9.0, t_end=1.0, dt=0.02, generator=generator, method=method)
    reached = caught.value.trajectory
    assert reached.status == ["unfinished", "unfinished", "failed", "unfinished"]
    assert bool(torch.isfinite(reached.final.matrix).all())
    assert len(reached) > 0


def test_bad_input(generator):
    p = _start((3, 3), 3, 3, generator)
    with pytest.raises(ValueError, match="method must be one of product, splitting, got 'euler'"):
        brownian_motion(p, t_end=1.0, dt=0.1, generator=generator, method="euler")
    with pytest.raises(ValueError, match='method must be "product" upstairs and with increments'):
        brownian_motion(
            p, t_end=1.0, dt=0.1, generator=generator, method="splitting", upstairs=True
        )
    loss = dln.losses.Quadratic(100 * torch.eye(3, dtype=F64))
    with pytest.warns(UserWarning, match="dt = 0.5 is too large .* take a smaller dt"):
        langevin(loss, p, beta=1.0, t_end=1.0, dt=0.5, generator=generator, method="splitting")


@pytest.mark.parametrize("method", ["product", "splitting"])
@pytest.mark.parametrize("depth", [3, 2.7])
def test_the_normalized_metric_takes_n_times_as_long(method, depth, generator):
    p = _start((4, 3), 3, depth, generator).point()
    q = dln.EndToEnd(p.u, p.s, p.vh, p.depth, True)
    loss = _quadratic((4, 3), generator)
    ends = []
    for point, slow in ((p, 1.0), (q, depth)):
        path = langevin(
            loss, point, beta=BETA, kappa=KAPPA, t_end=0.1 * slow, dt=0.02 * slow, method=method,
            generator=torch.Generator().manual_seed(3),
        )  # fmt: skip
        ends.append(path.final.matrix)
    assert_close(ends[1], ends[0], ops=1000, condition=10)
