from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import torch

import dln_geometry as dln
from dln_geometry.geometry.metric import log_stiefel_volume
from dln_geometry.testing import assert_close, assert_mean
from tests.geometry.metric.routes import diagonal_point

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


@pytest.mark.parametrize("depth", [2, 3, 5, 8, 13, 64])
@pytest.mark.parametrize("d", [2, 9, 200, 513])
@pytest.mark.parametrize("dtype", DTYPES)
def test_entropy_of_large_matrices_is_the_sum_over_all_pairs(depth, d, dtype, generator):
    """Integer depths sum over layers; equal and tiny values, sizes that no strip divides."""
    s = torch.rand(d, generator=generator, dtype=torch.float64) ** 3 * 10
    s[-1] = s[0]
    s[-2] = 1e-30
    s = s.sort(descending=True).values.to(dtype)
    eye = torch.eye(d, dtype=dtype)
    point = dln.EndToEnd(eye, s, eye, depth, check=False)
    log_kernel = dln.log_depth_kernel(s.double(), depth).triu(1)
    constant = (depth - 1) * log_stiefel_volume(d, d)
    expected = constant + 0.5 * log_kernel.sum()
    scale = abs(constant) + 0.5 * log_kernel.abs().sum()
    assert_close(dln.entropy(point), expected.to(dtype), ops=30, scale=scale)


def test_entropy_of_two_zeros_is_minus_infinity_at_every_size():
    for d in (3, 40, 300):
        s = torch.linspace(2.0, 1.0, d, dtype=torch.float64)
        s[-2:] = 0.0
        eye = torch.eye(d, dtype=torch.float64)
        assert dln.entropy(dln.EndToEnd(eye, s, eye, 3, check=False)) == -math.inf
