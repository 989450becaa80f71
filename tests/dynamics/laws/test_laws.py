from __future__ import annotations

import math

import pytest
import torch
from scipy.special import roots_genlaguerre, roots_hermitenorm

import dln_geometry as dln
from dln_geometry import laws
from dln_geometry.testing import assert_close, assert_mean
from tests.dynamics.noise.routes import assert_same_law

F64 = torch.float64


@pytest.mark.parametrize("index", [1, 2])
def test_hermite_ensembles_are_the_eigenvalues_of_dense_matrices(index, generator):
    t, n, count = 1.7, 5, 4000
    parts = torch.randn(index, count, n, n, generator=generator, dtype=F64)
    dense = torch.complex(parts[0], parts[1]) if index == 2 else parts[0]
    # Off-diagonal entries of variance t for both, diagonal ones 2t/b.
    dense = (dense + dense.mH) * math.sqrt(t / (2 * index))
    sample = laws.beta_hermite(n, index, t=t, size=count, generator=generator)
    assert_same_law(sample, torch.linalg.eigvalsh(dense))


@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("shape", [(3, 3), (4, 7)])
def test_laguerre_ensembles_are_the_singular_values_of_dense_matrices(index, shape, generator):
    t, count = 0.6, 4000
    parts = torch.randn(index, count, *shape, generator=generator, dtype=F64)
    dense = torch.complex(parts[0], parts[1]) if index == 2 else parts[0]
    sample = laws.beta_laguerre(shape, index, t=t, size=count, generator=generator)
    assert_same_law(sample, torch.linalg.svdvals(dense * math.sqrt(t / index)).flip(-1))


@pytest.mark.parametrize("index", [0.7, 1, 3.3])
@pytest.mark.parametrize("n", [3, 70])
def test_second_moments_for_every_index(index, n, generator):
    """n = 70 takes the tridiagonal solver, 3 the dense one."""
    t, count = 1.3, 300
    x = laws.beta_hermite(n, index, t=t, size=(count // 3, 3), generator=generator)
    assert x.shape == (count // 3, 3, n)
    squares = x.square().sum(-1).flatten()
    assert_mean(squares, t * (n * (n - 1) + 2 * n / index))
    s = laws.beta_laguerre((n + 2, n), index, t=t, size=count, generator=generator)
    assert_mean(s.square().sum(-1), t * n * (n + 2))
    assert (x.diff(dim=-1) >= 0).all()
    assert (s.diff(dim=-1) >= 0).all()


def test_infinite_index_is_the_zeros_of_polynomials():
    assert_close(laws.hermite_zeros(9), roots_hermitenorm(9)[0])
    assert_close(laws.laguerre_zeros(6, 2.5), roots_genlaguerre(6, 2.5)[0])
    x = laws.beta_hermite(6, math.inf, t=2.5, size=(2, 3), dtype=torch.float32)
    assert x.shape == (2, 3, 6)
    assert x.dtype == torch.float32
    assert_close(x[0, 1], 2.5**0.5 * roots_hermitenorm(6)[0])
    s = laws.beta_laguerre((5, 8), math.inf, t=2.5)
    assert_close(s.square(), 2.5 * roots_genlaguerre(5, 3)[0])


def test_large_index_is_close_to_the_zeros(generator):
    index = 1e8
    x = laws.beta_hermite(6, index, generator=generator)
    assert (x - laws.hermite_zeros(6)).abs().max() < 10 / index**0.5


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (3, 11)])
def test_densities_integrate_to_their_distribution_functions(shape):
    """By Gauss-Chebyshev sums, for which the roots at the edges are no obstacle."""
    t, count = 1.7, 4000
    angles = (torch.arange(count, dtype=F64) + 0.5) * math.pi / count

    def area(density, low, high, at):
        middle, half = (low + high) / 2, (high - low) / 2
        x = middle + half * angles.cos()
        return (density(x) * half * angles.sin() * (x <= at)).sum() * math.pi / count

    low, high = laws.marchenko_pastur_edges(shape, t)
    for s in (low, 0.7 * low + 0.3 * high, high, high + 1):
        got = laws.marchenko_pastur_distribution(torch.tensor(s, dtype=F64), shape, t)
        wanted = area(lambda x: laws.marchenko_pastur_density(x, shape, t), low, high, s)
        assert abs(wanted - got) < 2 / count
    for s in (-3.5, -1.0, 0.3, 3.0):
        got = laws.semicircle_distribution(torch.tensor(s, dtype=F64), 3.0)
        wanted = area(lambda x: laws.semicircle_density(x, 3.0), -3.0, 3.0, s)
        assert abs(wanted - got) < 2 / count


@pytest.mark.parametrize("index", [0.7, 3.3])
def test_many_particles_fill_the_limiting_densities(index, generator):
    """The counting function of an ensemble deviates by O(log n) from its limit, not sqrt(n)."""
    n, t = 300, 1.9
    x = laws.beta_hermite(n, index, t=t, generator=generator)
    count = torch.arange(1, n + 1, dtype=F64)
    radius = laws.semicircle_radius(n, t)
    bound = 3 * math.log(n) / min(index, 1)
    assert (n * laws.semicircle_distribution(x, radius) - count).abs().max() < bound
    for shape in ((n, n), (2 * n, n)):
        s = laws.beta_laguerre(shape, index, t=t, generator=generator)
        assert (n * laws.marchenko_pastur_distribution(s, shape, t) - count).abs().max() < bound
        high = laws.marchenko_pastur_edges(shape, t)[1]
        assert abs(float(s[-1]) / high - 1) < 4 * n ** (-2 / 3) / min(index, 1)


@pytest.mark.parametrize(("shape", "rank", "depth"), [((3, 3), 3, 4), ((4, 3), 2, 3)])
def test_ridge_mean_square_is_a_dimension(shape, rank, depth):
    m, n = shape
    widths = (n, *(min(m, n),) * (depth - 1), m)
    dimension = dln.balanced_dimension(widths, rank)
    assert laws.ridge_mean_square(shape, rank, depth, beta=2.5) == pytest.approx(dimension / 2.5)
    free = laws.ridge_mean_square(shape, rank, depth, beta=2.5, kappa=0.4, entropy=False)
    assert free == pytest.approx(0.4 * rank * (m + n - rank) / 2.5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: laws.beta_hermite(0, 1), ValueError, "n must be at least 1"),
        (lambda: laws.beta_hermite(2.0, 1), TypeError, "n must be an integer"),
        (lambda: laws.beta_hermite(3, 0), ValueError, "dyson_index must be positive"),
        (lambda: laws.beta_hermite(3, "two"), TypeError, "dyson_index must be a real number"),
        (lambda: laws.beta_hermite(3, math.nan), ValueError, "dyson_index must be positive"),
        (lambda: laws.beta_hermite(3, 1, t=-1.0), ValueError, "t must be non-negative"),
        (lambda: laws.beta_hermite(3, 1, t="now"), TypeError, "t must be"),
        (lambda: laws.beta_laguerre((3, 2), 1, t=[1.0, math.inf]), ValueError, "t must be finite"),
        (lambda: laws.semicircle_density(0.0, [1.0, 0.0]), ValueError, "radius must be positive"),
        (lambda: laws.beta_laguerre(3, 1), TypeError, "shape must be a pair"),
        (lambda: laws.laguerre_zeros(3, -1), ValueError, "excess must be finite and above -1"),
        (lambda: laws.semicircle_density(0.0, 0.0), ValueError, "radius must be positive"),
        (
            lambda: laws.ridge_mean_square((2, 2), 3, 2, beta=1.0),
            ValueError,
            "rank must be at most 2",
        ),
        (lambda: laws.laguerre_zeros(3, "a"), TypeError, "excess must be a real number"),
        (lambda: laws.laguerre_zeros(3, math.inf), ValueError, "excess must be finite"),
        (lambda: laws.beta_hermite(3, 1, size=2.5), TypeError, "size must be an integer"),
        (lambda: laws.beta_hermite(3, 1, dtype=torch.int64), TypeError, "dtype must be a real"),
        (lambda: laws.beta_laguerre((3, 2), 1, dtype=torch.int64), TypeError, "dtype must be"),
        (lambda: laws.beta_hermite(3, 1, generator=0.0), TypeError, "generator must be"),
    ],
)
def test_errors_say_what_was_required(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_edges_at_time_zero_and_at_several_times():
    times = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    edges = dln.laws.semicircle_radius(5, times)
    assert edges.tolist() == pytest.approx([dln.laws.semicircle_radius(5, float(t)) for t in times])
    assert dln.laws.semicircle_radius(5, 0.0) == 0.0
    assert dln.laws.marchenko_pastur_edges((5, 3), 0.0) == (0.0, 0.0)
    for bad in (-1.0, [0.0, -1.0], [math.nan]):
        with pytest.raises(ValueError, match="t must be"):
            dln.laws.semicircle_radius(5, bad)
    with pytest.raises(ValueError, match="t must be positive"):
        dln.laws.marchenko_pastur_density([1.0], (5, 3), 0.0)


@pytest.mark.parametrize("shape", [(4, 4), (3, 7)])
def test_laws_are_broadcast_over_times_and_shrink_to_a_point(shape):
    times = torch.tensor([0.0, 0.4, 2.3], dtype=F64)
    x = torch.tensor([-1.2, -0.1, 0.0, 0.3, 1.9, 4.0], dtype=F64)
    low, high = laws.marchenko_pastur_edges(shape, times)
    for k, t in enumerate(times.tolist()):
        assert (float(low[k]), float(high[k])) == pytest.approx(
            laws.marchenko_pastur_edges(shape, t)
        )
    calls = {
        "semicircle": (laws.semicircle_distribution, laws.semicircle_density, times),
        "singular values": (
            lambda s, t: laws.marchenko_pastur_distribution(s, shape, t),
            lambda s, t: laws.marchenko_pastur_density(s, shape, t),
            times,
        ),
    }
    for distribution, density, scales in calls.values():
        found = distribution(x, scales[:, None])
        for k, t in enumerate(scales.tolist()):
            assert_close(found[k], distribution(x, t))
        # A point at 0, and what short times come to.
        assert found[0].tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
        away = x[x != 0]
        assert_close(distribution(away, 1e-12), distribution(away, 0.0))
        found = density(x, scales[1:, None])
        for k, t in enumerate(scales[1:].tolist()):
            assert_close(found[k], density(x, t))
        with pytest.raises(ValueError, match="must be positive and finite"):
            density(x, scales[:, None])


@pytest.mark.parametrize("index", [1.7, math.inf])
def test_ensembles_at_several_times_are_independent_samples_of_each(index, generator):
    times = torch.tensor([[0.0], [0.5], [3.0]], dtype=F64)
    count, n, m = 3000, 3, 5
    x = laws.beta_hermite(n, index, t=times, size=count, generator=generator)
    s = laws.beta_laguerre((m, n), index, t=times, size=count, generator=generator)
    assert x.shape == s.shape == (count, 3, 1, n)
    for k, t in enumerate(times.flatten().tolist()):
        squares, both = x[:, k].square().sum((-2, -1)), s[:, k].square().sum((-2, -1))
        if t == 0 or math.isinf(index):
            assert_close(squares, torch.full_like(squares, t * n * (n - 1)))
            assert_close(both, torch.full_like(both, t * m * n))
        else:
            assert_mean(squares, t * (n * (n - 1) + 2 * n / index))
            assert_mean(both, t * m * n)
            a, b = (laws.beta_hermite(n, index, t=u, size=4, generator=5) for u in (t, [t]))
            assert_close(a, b[:, 0])
    assert not bool(laws.beta_laguerre((m, n), index, t=0.0, size=2).any())
