from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

from dln_geometry.testing import assert_close, assert_mean, assert_order

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_close_holds_the_bound_of_the_dtype(dtype, generator):
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64).to(dtype)
    eps, scale = torch.finfo(dtype).eps, 7.0
    wide = x.to(torch.complex128 if dtype.is_complex else torch.float64)
    for condition in (1.0, 20.0):
        bound = 10 * eps * scale * condition
        for factor, passes in ((0.99, True), (1.01, False)):
            moved = wide.clone()
            moved[1, 3] += factor * bound
            kwargs = {"ops": 10, "scale": scale, "condition": condition}
            # The coarser of the two dtypes counts, on whichever side it stands.
            for pair in ((x, moved), (moved, x)):
                if passes:
                    assert_close(*pair, **kwargs)
                else:
                    with pytest.raises(AssertionError, match=r"index \(1, 3\)"):
                        assert_close(*pair, **kwargs)


def test_close_scales_by_the_largest_finite_expected_entry():
    eps = torch.finfo(torch.float64).eps
    expected = np.array([1e6, -3e8, math.inf])
    assert_close(expected + 290 * eps * 3e8, expected)
    with pytest.raises(AssertionError, match="scale 3.000e"):
        assert_close(expected + 310 * eps * 3e8, expected)


def test_close_needs_a_scale_where_nothing_but_zero_is_expected():
    assert_close(torch.zeros(2), torch.zeros(2))
    with pytest.raises(AssertionError, match="not close"):
        assert_close(1e-300, 0.0)
    assert_close(1e-15, 0.0, scale=1)


def test_close_takes_arrays_numbers_sequences_and_sparse_tensors():
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    assert_close(dense.to_sparse(), dense)
    assert_close(dense.to_sparse_csr(), dense.numpy()[::-1][::-1])
    assert_close((dense[0], dense[1].numpy()), [[0, 2], [3, 0]])
    assert_close(torch.ones(2, requires_grad=True), (1, True))
    assert_close([mpmath.mpf(1) / 3, mpmath.mpf(2)], [1 / 3, 2.0], ops=1)
    # A list of numbers is double precision, whatever torch's default is.
    with pytest.raises(AssertionError, match="eps 2.220e-16"):
        assert_close([1.0 + 1e-10], [1.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_close_never_passes_what_is_not_finite_and_equal(bad):
    with pytest.raises(AssertionError, match=r"index \(1,\)"):
        assert_close([1.0, bad], [1.0, 2.0])
    with pytest.raises(AssertionError, match=r"index \(1,\)"):
        assert_close([1.0, 2.0], [1.0, bad])


def test_close_lets_equal_infinities_pass_but_no_nan():
    assert_close([math.inf, -math.inf, 1.0], [math.inf, -math.inf, 1.0])
    assert_close(torch.tensor([-math.inf]), [-math.inf])
    for a, b in ((math.nan, math.nan), (math.inf, -math.inf)):
        with pytest.raises(AssertionError, match="not close"):
            assert_close([a], [b])


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (1, 3), (2, 3)])
def test_close_does_not_broadcast(shape):
    with pytest.raises(AssertionError, match=r"shape must be \(3,\), got"):
        assert_close(torch.ones(shape), torch.ones(3))


def test_close_fails_where_nothing_is_compared():
    with pytest.raises(AssertionError, match="nothing to compare"):
        assert_close(torch.ones(0, 3), torch.ones(0, 3))


@pytest.mark.parametrize("name", ["ops", "scale", "condition"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_close_refuses_a_tolerance_without_meaning(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive and finite"):
        assert_close(1.0, 1.0, **{name: value})


@pytest.mark.parametrize("bad", ["one", None, [1.0, None], [[1.0], [1.0, 2.0]], {"a": 1.0}])
def test_close_refuses_what_is_not_numeric(bad):
    with pytest.raises(TypeError, match="actual must be numeric"):
        assert_close(bad, 1.0)
    with pytest.raises(TypeError, match="expected must be numeric"):
        assert_close(1.0, bad)


@pytest.mark.parametrize("order", [0.5, 1.0, 4.0])
def test_order_accepts_the_order_and_refuses_its_neighbours(order, rng):
    h = rng.permutation(0.3 * 0.5 ** np.arange(6))
    # A perturbation of the next order, as a real error has.
    error = 2.7 * h**order * (1 + 0.3 * h)
    assert_order(h, torch.as_tensor(error), order)
    assert_order(h, error, order - 1, at_least=True)
    for off in (-0.5, 0.5):
        with pytest.raises(AssertionError, match="order must be"):
            assert_order(h, error, order + off)
    with pytest.raises(AssertionError, match="at least"):
        assert_order(h, error, order + 0.5, at_least=True)


def test_order_holds_its_tolerance():
    h = 0.5 ** np.arange(4.0)
    for sign in (-1, 1):
        assert_order(h, h ** (2 + sign * 0.09), 2, tol=0.1)
        with pytest.raises(AssertionError, match=r"order must be 2 within 0\.1"):
            assert_order(h, h ** (2 + sign * 0.11), 2, tol=0.1)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -1.0])
def test_order_fails_for_errors_without_a_logarithm(bad):
    for at_least in (False, True):
        with pytest.raises(AssertionError, match="errors must be positive and finite"):
            assert_order([1.0, 0.5, 0.25, 0.125], [1.0, 0.5, 0.25, bad], 1, at_least=at_least)


@pytest.mark.parametrize(
    ("steps", "errors", "tol", "message"),
    [
        ([1.0, 0.5, 0.25], [1.0, 0.5, 0.25], 0.15, "at least 4 points"),
        ([1.0, 0.5, 0.25, 0.1], [1.0, 0.5, 0.25], 0.15, "one length"),
        ([[1.0, 0.5, 0.25, 0.1]], [[1.0, 0.5, 0.25, 0.1]], 0.15, "one length"),
        ([1.0, 0.5, 0.25, 0.25], [1.0, 0.5, 0.25, 0.2], 0.15, "distinct"),
        ([1.0, 0.5, 0.25, 0.0], [1.0, 0.5, 0.25, 0.2], 0.15, "positive"),
        ([1.0, 0.5, 0.25, math.nan], [1.0, 0.5, 0.25, 0.2], 0.15, "finite"),
        ([1.0, 0.5, 0.25, 0.1], [1.0, 0.5, 0.25, 0.2], 0.0, "tol must be positive"),
    ],
)
def test_order_refuses_what_has_no_slope(steps, errors, tol, message):
    with pytest.raises(ValueError, match=message):
        assert_order(steps, errors, 1, tol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
def test_mean_accepts_the_expectation_and_refuses_a_shift(dtype, generator):
    scale = torch.tensor([[1e-3, 1.0], [50.0, 1e4]], dtype=dtype)
    expected = torch.tensor([[2.0, -1.0], [0.0, 3.0]], dtype=dtype)
    x = expected + scale * torch.randn(4000, 2, 2, generator=generator, dtype=dtype)
    assert_mean(x, expected)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        off = expected.clone()
        off[i, j] += 10 * scale[i, j].abs() / math.sqrt(4000)
        with pytest.raises(AssertionError, match=rf"index \({i}, {j}\)"):
            assert_mean(x, off)


def test_mean_counts_standard_errors():
    x = np.array([-1.0, 1.0, -1.0, 1.0])
    one = 1 / math.sqrt(3)
    assert_mean(x, 2.4 * one, sigmas=2.5)
    with pytest.raises(AssertionError, match="off by 2.600 standard errors"):
        assert_mean(x, 2.6 * one, sigmas=2.5)


def test_mean_of_what_does_not_vary_is_exact_up_to_rounding():
    x = torch.full((1000, 2), 0.1, dtype=torch.float32)
    assert_mean(x, [0.1, 0.1])
    with pytest.raises(AssertionError, match="off by inf standard errors"):
        assert_mean(x, [0.1, 0.1 + 1e-6])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_mean_never_passes_what_is_not_finite(bad):
    for samples, expected in (([0.0, 1.0, bad], 0.5), ([0.0, 1.0], bad)):
        with pytest.raises(AssertionError, match="must be finite"):
            assert_mean(samples, expected)


def test_mean_does_not_broadcast():
    x = torch.ones(10, 3)
    for expected in (1.0, torch.ones(1), torch.ones(10, 3)):
        with pytest.raises(AssertionError, match=r"must have shape \(3,\)"):
            assert_mean(x, expected)
    with pytest.raises(AssertionError, match="nothing to compare"):
        assert_mean(torch.ones(10, 0), torch.ones(0))


@pytest.mark.parametrize(
    ("samples", "sigmas", "message"),
    [
        (1.0, 4, "at least 2"),
        ([1.0], 4, "at least 2"),
        ([1.0, 2.0], 0, "sigmas must be positive"),
        ([1.0, 2.0], math.nan, "sigmas must be positive"),
    ],
)
def test_mean_refuses_what_has_no_standard_error(samples, sigmas, message):
    with pytest.raises(ValueError, match=message):
        assert_mean(samples, 1.0, sigmas)


def test_fixtures_are_seeded_by_the_test_name_alone(generator, rng, request):
    again = torch.Generator().manual_seed(generator.initial_seed())
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=again))
    assert request.node.name == "test_fixtures_are_seeded_by_the_test_name_alone"
    # crc32 of that name: the same on every machine and in every run.
    assert generator.initial_seed() == 1264223843
    assert rng.random() == np.random.default_rng(generator.initial_seed()).random()
