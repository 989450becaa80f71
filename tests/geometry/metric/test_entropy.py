from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
import scipy.integrate
import torch

import dln_geometry as dln
from dln_geometry.geometry.metric import entropy_pull, entropy_slope, log_stiefel_volume
from dln_geometry.testing import assert_close, assert_mean

DTYPES = [torch.float64, torch.float32]
# Widths (d_0, ..., d_N), rank and spectrum of X.
NETWORKS = [
    ((3, 3), 3, (1.5, 0.7, 0.2)),
    ((3, 3, 3), 3, (1.5, 0.7, 0.2)),
    ((3, 3, 3, 3, 3), 3, (1.4, 1.4, 0.6)),
    ((2, 2, 2, 2), 2, (0.9, 0.9)),
    ((4, 3, 5), 3, (1.9, 0.6, 0.3)),
    ((4, 5, 3, 4), 3, (1.2, 1.2 - 1e-9, 0.4)),
    ((4, 3, 5, 2, 4), 2, (2.2, 0.3)),
    ((3, 2, 4, 3), 1, (0.6,)),
    ((2, 4, 2, 3, 2, 2, 2, 3, 3), 2, (1.1, 0.05)),
]
IDS = ["x".join(map(str, widths)) + f"-r{r}" for widths, r, _ in NETWORKS]
network = pytest.mark.parametrize(("widths", "rank", "spectrum"), NETWORKS, ids=IDS)


def diagonal_point(spectrum, depth, shape=None, normalized=None):
    """Return a point with the given spectrum and canonical singular vectors."""
    s = torch.as_tensor(spectrum, dtype=torch.float64)
    r = s.shape[-1]
    m, n = shape or (r, r)
    u, vh = torch.eye(m, r, dtype=torch.float64), torch.eye(r, n, dtype=torch.float64)
    normalized = math.isinf(depth) if normalized is None else normalized
    return dln.EndToEnd(u, s, vh, depth, normalized)


def stiefel_basis(d, r):
    """Return orthonormal tangent vectors of the frames at the first r columns of the identity."""
    basis = []
    for i, j in itertools.product(range(d), range(r)):
        if i >= r or i < j:
            e = torch.zeros(d, r, dtype=torch.float64)
            e[i, j] = 1.0
            if i < r:
                e[j, i] = -1.0
            basis.append(e / e.norm())
    return basis


def log_volume_by_gaussian_integral(d, r):
    """Return log vol St(d, r) from 1 = int of a Gaussian d x r matrix Z = Q R.

    dZ = dQ prod_i R_ii^{d-i} dR with unit generators of the rotations among the r columns, which
    are sqrt 2 long in the Frobenius norm.
    """
    log_total = 0.5 * d * r * math.log(2 * math.pi)
    log_total -= 0.25 * r * (r - 1) * math.log(2 * math.pi)
    for i in range(1, r + 1):
        value, _ = scipy.integrate.quad(
            lambda t, k=d - i: t**k * math.exp(-0.5 * t * t), 0, 40, epsabs=0, epsrel=1e-13
        )
        log_total -= math.log(value)
    return log_total + 0.25 * r * (r - 1) * math.log(2.0)


@pytest.mark.parametrize(("d", "r"), [(d, r) for d in range(1, 7) for r in range(1, d + 1)])
def test_stiefel_volume_by_quadrature(d, r):
    assert_close(
        log_stiefel_volume(d, r), log_volume_by_gaussian_integral(d, r), ops=1000, scale=10
    )


def test_known_volumes():
    # c_1..c_4 of the theory, with as many digits as are printed there.
    for d, printed in enumerate(("2", "17.7715", "446.647", "24936.73"), start=1):
        digits = len(printed.partition(".")[2])
        assert f"{math.exp(log_stiefel_volume(d, d)):.{digits}f}" == printed
    assert_close(math.exp(log_stiefel_volume(3, 1)), 4 * math.pi)
    with pytest.raises(ValueError, match="r must lie between 1 and d = 3, got 4"):
        log_stiefel_volume(3, 4)


@network
@pytest.mark.parametrize("pick", ["canonical", "haar"])
def test_entropy_is_the_gram_determinant_of_the_gauge_directions(
    widths, rank, spectrum, pick, generator
):
    """Volume of the frames times the Jacobian of (Q_1, ..., Q_{N-1}) -> W, the same everywhere."""
    depth = len(widths) - 1
    shape = (widths[-1], widths[0])
    point = diagonal_point(spectrum, depth, shape)
    lam = point.s ** (1 / depth)
    hidden = widths[1:-1]
    turns = []
    for d in hidden:
        a = torch.randn(d, d, generator=generator, dtype=torch.float64)
        turns.append(torch.linalg.matrix_exp(a - a.mT))
    if pick == "canonical":
        turns = [torch.eye(d, dtype=torch.float64) for d in hidden]

    def layers(frames):
        chain = [point.vh.mT, *frames, point.u]
        return torch.cat([((b * lam) @ a.mT).flatten() for a, b in itertools.pairwise(chain)])

    frames = [t[:, :rank] for t in turns]
    directions = []
    for p, d in enumerate(hidden):
        for e in stiefel_basis(d, rank):
            moves = [torch.zeros_like(q) for q in frames]
            moves[p] = turns[p] @ e
            _, pushed = torch.func.jvp(lambda *f: layers(f), tuple(frames), tuple(moves))
            directions.append(pushed)
    volumes = sum(log_volume_by_gaussian_integral(d, rank) for d in hidden)
    expected = torch.tensor(volumes, dtype=torch.float64)
    if directions:
        directions = torch.stack(directions)
        expected = expected + 0.5 * torch.linalg.slogdet(directions @ directions.mT).logabsdet
    condition = 10 * (spectrum[0] / spectrum[-1]) ** (2 / depth)
    actual = dln.entropy(point, widths=widths)
    assert_close(actual, expected, scale=max(1, len(directions)), condition=condition)


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_entropy_of_full_rank_is_the_ratio_of_vandermondes(depth, dtype, generator):
    x = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    s = torch.linalg.svdvals(x)
    i, j = torch.triu_indices(4, 4, 1)
    ratio = (s[:, i] ** 2 - s[:, j] ** 2) / (s[:, i] ** (2 / depth) - s[:, j] ** (2 / depth))
    expected = (depth - 1) * log_stiefel_volume(4, 4) + 0.5 * ratio.log().sum(-1)
    actual = dln.entropy(dln.EndToEnd.of(x.to(dtype), depth))
    assert actual.dtype == dtype
    assert_close(actual, expected.to(dtype), condition=10)


def test_depth_one_has_no_entropy(generator):
    x = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    for widths in (None, (3, 4), 5):
        assert_close(dln.entropy(dln.EndToEnd.of(x, 1), widths=widths), [0.0, 0.0], scale=1)
    assert_close(dln.entropy_gradient(dln.EndToEnd.of(x, 1)), torch.zeros_like(x), scale=1)


def test_depth_two_is_the_sum_of_logarithms():
    s = (1.7, 0.6, 0.6)
    expected = log_stiefel_volume(3, 3) + 0.5 * (2 * math.log(2.3) + math.log(1.2))
    assert_close(dln.entropy(diagonal_point(s, 2)), expected)


def test_limit_of_infinite_depth():
    s = (2.0, 1.1, 1.1, 0.3)
    limit = dln.entropy(diagonal_point(s, math.inf))
    expected = 0.0
    for a, b in itertools.combinations(s, 2):
        mean = a**2 if a == b else (a**2 - b**2) / math.log(a**2 / b**2)
        expected += 0.5 * math.log(mean)
    assert_close(limit, expected)
    for depth in (10**3, 10**4, 10**5, 10**6):
        constant = (depth - 1) * log_stiefel_volume(4, 4) + 3 * math.log(depth)
        gap = float(dln.entropy(diagonal_point(s, depth)) - constant - limit)
        # Six pairs, each off by (log s_i + log s_j)/2N and less; the constant grows with N.
        rounding = 4 * torch.finfo(torch.float64).eps * constant
        assert abs(gap) <= 6 * 1.3 / depth + rounding


def test_normalisation_of_the_metric_does_not_enter():
    s = (2.0, 0.4)
    plain, divided = (diagonal_point(s, 3, normalized=flag) for flag in (False, True))
    assert_close(dln.entropy(plain), dln.entropy(divided), ops=1)


def test_rank_drops():
    near, at = (dln.entropy(diagonal_point((1.5, 0.8, e), 3)) for e in (1e-30, 0.0))
    # Two pairs, each 1/2 log(1 + (e/s)^{2/3} + ...).
    assert abs(float(near - at)) <= 2 * (1e-30 / 0.8) ** (2 / 3) + 1e-14
    assert bool(torch.isneginf(dln.entropy(diagonal_point((1.5, 0.0, 0.0), 3))))


def test_every_singular_value_raises_the_entropy(generator):
    for depth in (1.5, 2, 4, math.inf):
        s = torch.rand(20, 5, generator=generator, dtype=torch.float64)
        assert bool((entropy_slope(s, depth) > 0).all())


@pytest.mark.parametrize("depth", [1.5, 2, 2.7, 3, 8, math.inf])
@pytest.mark.parametrize(
    "s", [(1.5, 0.8, 0.3), (1.2, 1.2, 0.4), (0.7, 0.7, 0.7), (1.0 + 1e-9, 1.0, 0.2)]
)
def test_gradient_in_the_spectrum(s, depth):
    s = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    value = lambda s: dln.entropy(diagonal_point(s, depth))  # noqa: E731
    assert torch.autograd.gradcheck(value, s)
    assert torch.autograd.gradgradcheck(value, s)
    (by_autograd,) = torch.autograd.grad(value(s), s)
    slope = entropy_slope(s.detach(), depth)
    assert_close(slope, by_autograd)
    closed = dln.entropy_gradient(diagonal_point(s.detach(), depth))
    assert_close(closed, torch.diag(slope))
    assert torch.autograd.gradcheck(lambda s: entropy_slope(s, depth), s)


@pytest.mark.parametrize("gap", [0.0, 1e-16, 1e-12, 1e-8, 1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("depth", [1.5, 2, 3, 64, math.inf])
def test_slope_is_accurate_at_every_gap(depth, gap):
    s = torch.tensor([1.3 * (1 + gap), 1.3, 0.2], dtype=torch.float64)
    slope = entropy_slope(s, depth)
    with mpmath.workdps(80):
        x = [mpmath.mpf(v) for v in s.tolist()]
        power = 0 if math.isinf(depth) else mpmath.mpf(2) / mpmath.mpf(depth)

        def term(a, b):
            if a == b:
                return (1 - power / 2) / (2 * a)
            if power == 0:
                return a / (a**2 - b**2) - 1 / (a * mpmath.log(a**2 / b**2))
            return a / (a**2 - b**2) - power / 2 * a ** (power - 1) / (a**power - b**power)

        exact = [sum(term(a, b) for k, b in enumerate(x) if k != i) for i, a in enumerate(x)]
    assert_close(slope, [float(v) for v in exact], ops=100)


@pytest.mark.parametrize("widths", [None, 3, 6])
@pytest.mark.parametrize("depth", [2, 3, 2.5])
def test_gradient_along_the_matrices(widths, depth, generator):
    x = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    value = dln.entropy(dln.EndToEnd.of(x, depth), widths=widths)
    (by_autograd,) = torch.autograd.grad(value.sum(), x)
    closed = dln.entropy_gradient(dln.EndToEnd.of(x.detach(), depth), widths=widths)
    assert_close(closed, by_autograd, condition=10)
    assert torch.autograd.gradcheck(
        lambda x: dln.entropy(dln.EndToEnd.of(x, depth), widths=widths), x
    )
    assert torch.autograd.gradcheck(
        lambda x: dln.entropy_gradient(dln.EndToEnd.of(x, depth), widths=widths), x
    )


def test_gradient_at_lower_rank_and_unequal_widths(generator):
    """Along the matrices of rank 2, by moving the thin factors of X."""
    left = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    right = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    widths = (3, 5, 2, 4)
    point = dln.EndToEnd.of(left @ right, 3, rank=2)
    gradient = dln.entropy_gradient(point, widths=widths)
    dl = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    dr = torch.randn(2, 3, generator=generator, dtype=torch.float64)

    def value(t):
        x = (left + t * dl) @ (right + t * dr)
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        # Only the spectrum enters.
        held = dln.EndToEnd(u[:, :2].detach(), s[:2], vh[:2].detach(), 3, False)
        return dln.entropy(held, widths=widths)

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(t), t)
    assert_close(slope, (gradient * (dl @ right + left @ dr)).sum(), condition=10)


@pytest.mark.parametrize("depth", [2, 2.7, 4])
def test_riemannian_gradient(depth):
    """grad S = U diag(N s^{2-2/N} dS/ds) V^T."""
    point = diagonal_point((1.6, 0.9, 0.9), depth)
    slope = entropy_slope(point.s, depth)
    expected = torch.diag(depth * point.s ** (2 - 2 / depth) * slope)
    assert_close(dln.cometric(point, dln.entropy_gradient(point)), expected)


def test_gradient_at_zero_singular_values():
    # At depth 2 the entropy is 1/2 sum log(s_i + s_j), smooth up to one zero.
    at = dln.entropy_gradient(diagonal_point((1.5, 0.0), 2))
    assert_close(at, [[0.5 / 1.5, 0.0], [0.0, 0.5 / 1.5]])
    # Below depth 2 the kernel starts with a power of s_i above 1.
    below = dln.entropy_gradient(diagonal_point((1.5, 0.0), 1.5))
    assert_close(below, [[(1 - 1 / 1.5) / 1.5, 0.0], [0.0, 0.0]])
    message = "point must have positive singular values for the entropy gradient, got a zero"
    for s, depth in (((1.5, 0.0), 3), ((1.5, 0.0), math.inf), ((1.5, 0.0, 0.0), 2)):
        with pytest.raises(ValueError, match=message):
            dln.entropy_gradient(diagonal_point(s, depth))
    with pytest.raises(ValueError, match=message):
        dln.entropy_gradient(diagonal_point((1.5, 0.0), 2), widths=3)


def test_one_hidden_width_at_every_real_depth():
    s = (1.5, 0.4)
    point = diagonal_point(s, 3, (3, 4))
    assert_close(dln.entropy(point), dln.entropy(point, widths=(4, 3, 3, 3)))
    assert_close(dln.entropy(point, widths=5), dln.entropy(point, widths=(4, 5, 5, 3)))
    assert_close(dln.entropy(point, widths=np.int64(5)), dln.entropy(point, widths=5))
    five = dln.entropy(diagonal_point(s, 2.5), widths=5)
    assert_close(dln.entropy(diagonal_point(s, 2.5), widths=np.int64(5)), five)
    real = [dln.entropy(diagonal_point(s, n, (3, 4)), widths=5) for n in (2.9, 3.0, 3.1)]
    # Nearly linear in N between integers.
    assert abs(float(real[2] - 2 * real[1] + real[0])) < 0.01 * abs(float(real[2] - real[0]))


@pytest.mark.parametrize("beta", [0.4, 3.0])
def test_free_energy(beta, generator):
    class Half:
        def value(self, x):
            x = x.matrix if isinstance(x, dln.Collapsed) else x
            return 0.5 * x.square().sum((-2, -1))

    d, depth = 3, 4
    # The theory's minimiser of |X|^2/2: multiples of orthogonal matrices.
    best = math.sqrt((d - 1) * (depth - 1) / (2 * beta * depth))
    q = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    x = (best * q).requires_grad_()
    point = dln.EndToEnd.of(x.detach(), depth)
    slope = point.matrix - dln.entropy_gradient(point) / beta
    assert_close(slope, torch.zeros(d, d, dtype=torch.float64), scale=best)
    value = dln.free_energy(point, Half(), beta)
    assert_close(value, 1.5 * best**2 - float(dln.entropy(point)) / beta)
    for _ in range(10):
        step = 0.1 * torch.randn(d, d, generator=generator, dtype=torch.float64)
        moved = dln.EndToEnd.of(x.detach() + step, depth)
        assert dln.free_energy(moved, Half(), beta) > value
    assert_close(dln.free_energy(point, Half(), math.inf), 1.5 * best**2)
    pair = dln.Collapsed.of(point)
    assert_close(dln.free_energy(pair, Half(), beta), value, scale=10)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(beta):
    with pytest.raises(ValueError, match="beta must be positive, got"):
        dln.free_energy(diagonal_point((1.0,), 2), None, beta)


@pytest.mark.parametrize(
    ("widths", "error", "message"),
    [
        (1, ValueError, "widths must all be at least the rank 2"),
        ((3, 3, 3), ValueError, r"widths must hold depth \+ 1 = 4 numbers"),
        ((2, 3, 3, 3), ValueError, "widths must start with 3"),
        ("3", TypeError, "widths must be a sequence"),
    ],
)
def test_bad_widths(widths, error, message):
    point = diagonal_point((1.0, 0.5), 3, (3, 3))
    for door in (dln.entropy, dln.entropy_gradient):
        with pytest.raises(error, match=message):
            door(point, widths=widths)


def test_widths_and_depth():
    with pytest.raises(ValueError, match="widths must equal the rank at infinite depth"):
        dln.entropy(diagonal_point((1.0, 0.5), math.inf), widths=3)
    with pytest.raises(ValueError, match="depth must be a finite integer where factors are made"):
        dln.entropy(diagonal_point((1.0, 0.5), 2.5), widths=(2, 2, 2))
    with pytest.raises(TypeError, match="point must be an EndToEnd or a Collapsed"):
        dln.entropy(torch.eye(2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widths", "spectrum"), [((2, 2, 2, 2), (1.3, 0.4)), ((2, 2, 3, 2), (1.1,))]
)
def test_orbit_volume_by_monte_carlo(widths, spectrum, generator):
    """Count random points of the orbit near a fixed one.

    The orbit is homogeneous, so Haar gauges are uniform on it, and a ball of radius e around a
    point holds the fraction ``|B_k| e^k / vol`` of it, up to curvature: O(e^2).
    """
    depth, rank = len(widths) - 1, len(spectrum)
    hidden = widths[1:-1]
    dimension = sum(d * rank - rank * (rank + 1) // 2 for d in hidden)
    point = diagonal_point(spectrum, depth, (widths[-1], widths[0]))
    base = dln.balanced_factors(point, widths=widths)
    radius, chunks, size = 0.5, 20, 100_000
    lam = point.s ** (1 / depth)
    inside = []
    for _ in range(chunks):
        frames = [point.vh.mT.expand(size, -1, -1)]
        for d in hidden:
            # Frames by Gram-Schmidt on Gaussian vectors, not by the library.
            columns: list[torch.Tensor] = []
            for _ in range(rank):
                z = torch.randn(size, d, generator=generator, dtype=torch.float64)
                for q in columns:
                    z = z - (z * q).sum(-1, keepdim=True) * q
                columns.append(z / z.norm(dim=-1, keepdim=True))
            frames.append(torch.stack(columns, -1))
        frames.append(point.u.expand(size, -1, -1))
        square = sum(
            ((b * lam) @ a.mT - w).square().sum((-2, -1))
            for (a, b), w in zip(itertools.pairwise(frames), base, strict=True)
        )
        inside.append(square < radius**2)
    ball = math.pi ** (dimension / 2) / math.gamma(dimension / 2 + 1) * radius**dimension
    assert_mean(
        torch.cat(inside).double(), ball / math.exp(float(dln.entropy(point, widths=widths)))
    )


@pytest.mark.parametrize("depth", [1, 2.5, 4, math.inf])
def test_entropy_of_a_matrix_is_that_of_its_point(depth, generator):
    x = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    p = dln.EndToEnd.of(x, depth)
    assert_close(dln.entropy(x, depth=depth), dln.entropy(p))
    assert_close(dln.entropy(dln.Collapsed.of(p)), dln.entropy(p))
    with pytest.raises(TypeError, match="given with its depth"):
        dln.entropy(x)
    with pytest.raises(ValueError, match="depth must be that of the point"):
        dln.entropy(p, depth=3.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("depth", [1, 1.5, 2, 2.7, 3, 40, 1e4, math.inf])
def test_the_pull_of_pairs_is_the_slope(depth, dtype):
    """Values apart, nearly equal, equal, and far below the others."""
    s = torch.tensor([[3.0, 2.999, 2.0, 0.7, 0.7], [5.0, 1e-3, 1e-9, 1e-18, 1e-18]], dtype=dtype)
    for excess in (0.0, 3.0):
        pull = entropy_pull(s.log(), depth, excess=excess)
        assert_close(pull, s * entropy_slope(s, depth, excess=excess), ops=30)


@pytest.mark.parametrize("depth", [1.5, 2.7, 40, math.inf])
@pytest.mark.parametrize("r", [5, 16, 17, 60])
def test_pull_is_the_slope_times_the_value_at_few_and_at_many_values(r, depth, generator):
    s = torch.rand(3, r, generator=generator, dtype=torch.float64).sort(descending=True).values
    s = s + 0.1
    assert_close(entropy_pull(s.log(), depth, excess=3.0), s * entropy_slope(s, depth, excess=3.0))
