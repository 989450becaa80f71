from __future__ import annotations

import math

import mpmath
import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.kernel import log_kernel_slope, log_mixed_kernel
from dln_geometry.support import Depth
from dln_geometry.testing import assert_close

DEPTHS = [1, 1.5, 2, 2.7, 3, 64, 10**6, math.inf]
DTYPES = [torch.float64, torch.float32]
# Relative gaps from below the rounding of a double to one half.
GAPS = [0.0, *(10.0**-k for k in range(16, 0, -1)), 0.5]


@pytest.fixture(autouse=True)
def _fifty_digits():
    with mpmath.workdps(50):
        yield


def exact_kernel(a: float, b: float, depth: float, normalized: bool) -> mpmath.mpf:
    """Evaluate (a^2 - b^2)/(a^{2/N} - b^{2/N}), or its limits, at 50 digits and more."""
    with mpmath.workdps(120):
        a, b = mpmath.mpf(a), mpmath.mpf(b)
        if depth == 1:
            return mpmath.mpf(1)
        if math.isinf(depth):
            if a == b:
                return a**2
            if a == 0 or b == 0:
                return mpmath.mpf(0)
            return (a**2 - b**2) / mpmath.log(a**2 / b**2)
        n = mpmath.mpf(depth)
        if a == b:
            value = n * a ** (2 - 2 / n)
        else:
            value = (a**2 - b**2) / (a ** (2 / n) - b ** (2 / n))
        return value / n if normalized else value


def exact_slope(a: float, b: float, depth: float) -> mpmath.mpf:
    """Differentiate the logarithm of the kernel in its first argument."""
    with mpmath.workdps(120):
        a, b = mpmath.mpf(a), mpmath.mpf(b)
        n = mpmath.mpf(depth) if math.isfinite(depth) else None
        if a == b:
            return (1 if n is None else 1 - 1 / n) / a
        first = 2 * a / (a**2 - b**2)
        if n is None:
            return first - 2 / a / mpmath.log(a**2 / b**2)
        return first - (2 / n) * a ** (2 / n - 1) / (a ** (2 / n) - b ** (2 / n))


def near_pairs(dtype: torch.dtype) -> torch.Tensor:
    pairs = [(base, base * (1 + gap)) for base in (0.37, 1.0, 12.5) for gap in GAPS]
    return torch.tensor(pairs, dtype=torch.float64).to(dtype)


def far_pairs(dtype: torch.dtype) -> torch.Tensor:
    big = 1e200 if dtype == torch.float64 else 1e18
    values = [1 / big, 3e-9, 0.2, 1.0, 7.0, 4e8, big]
    return torch.tensor([(a, b) for a in values for b in values], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("normalized", [True, False])
def test_log_kernel_against_fifty_digits(depth, normalized, dtype):
    if math.isinf(depth) and not normalized:
        normalized = None
    s = torch.cat((near_pairs(dtype), far_pairs(dtype)))
    logs = dln.log_depth_kernel(s, depth, normalized=normalized)
    over_n = normalized is not False
    for pair, value in zip(s.tolist(), logs, strict=True):
        for i, j in ((0, 0), (0, 1), (1, 0)):
            exact = mpmath.log(exact_kernel(pair[i], pair[j], depth, over_n))
            size = 1 + max(abs(math.log(x)) for x in pair) + abs(float(exact))
            assert_close(value[i, j], float(exact), ops=100, scale=size)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_of_nearly_equal_values_has_full_relative_accuracy(depth, dtype):
    s = near_pairs(dtype)
    over_n = math.isinf(depth)
    exact = [exact_kernel(a, b, depth, over_n) for a, b in s.tolist()]
    ratio = [
        float(mpmath.mpf(float(k)) / e)
        for k, e in zip(dln.depth_kernel(s, depth)[:, 0, 1], exact, strict=True)
    ]
    assert_close(torch.tensor(ratio, dtype=dtype), torch.ones(len(ratio), dtype=dtype), ops=100)


@pytest.mark.parametrize("depth", [2, 3, 7])
def test_kernel_is_the_explicit_sum(depth, generator):
    s = torch.rand(4, 5, generator=generator, dtype=torch.float64) * 2
    s[1, 0] = 0.0
    s[2, :2] = 0.0
    s[3, 1] = s[3, 0]
    x, y = s.unsqueeze(-1), s.unsqueeze(-2)
    terms = [
        x ** (2 * (depth - p) / depth) * y ** (2 * (p - 1) / depth) for p in range(1, depth + 1)
    ]
    assert_close(dln.depth_kernel(s, depth), sum(terms))
    assert_close(dln.depth_kernel(s, depth, normalized=True), sum(terms) / depth)


@pytest.mark.parametrize("depth", [1.5, 2, 2.7, 64, 10**6])
def test_zero_singular_values(depth):
    s = torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    log_kernel = dln.log_depth_kernel(s, depth)
    mixed = log_mixed_kernel(s, Depth(depth), False)
    assert_close(log_kernel[0, 1], 2 * (1 - 1 / depth) * math.log(3.0))
    assert_close(log_kernel[0, 1], log_kernel[1, 0])
    assert_close(
        math.log(3.0) * 2 * (1 - 1 / depth), log_mixed_kernel(s.log(), Depth(depth), False)[0]
    )
    assert torch.isneginf(log_kernel[1:, 1:]).all()
    assert mixed.shape == s.shape


def test_zero_singular_values_at_the_ends():
    s = torch.tensor([3.0, 0.0], dtype=torch.float64)
    assert_close(dln.depth_kernel(s, 1), torch.ones(2, 2, dtype=torch.float64))
    # The logarithmic mean of 9 and 0 is 0.
    assert_close(dln.depth_kernel(s, math.inf), [[9.0, 0.0], [0.0, 0.0]])
    assert torch.isneginf(log_mixed_kernel(s.log(), Depth(math.inf), True)).all()
    assert_close(log_mixed_kernel(s.log(), Depth(1), False), [0.0, 0.0], scale=1)


def test_large_depth_tends_to_infinite_depth():
    s = torch.tensor([2.0, 1.9999, 0.3, 1e-3], dtype=torch.float64)
    limit = dln.log_depth_kernel(s, math.inf)
    errors = [
        float((dln.log_depth_kernel(s, n, normalized=True) - limit).abs().max())
        for n in (10**3, 10**4, 10**5, 10**6)
    ]
    # The first term that depends on N is at most 2 |log s| / N.
    for n, error in zip((10**3, 10**4, 10**5, 10**6), errors, strict=True):
        assert error <= (1 + 1 / n) * 2 * math.log(1e3) / n


@pytest.mark.parametrize("depth", [1.5, 2, 2.7, 5, math.inf])
@pytest.mark.parametrize(
    "s", [(2.0, 1.1, 0.4), (1.3, 1.3, 0.7), (0.9, 0.9, 0.9), (1.0, 1.0 + 1e-9, 0.2)]
)
def test_gradients_of_the_kernel(depth, s):
    s = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dln.log_depth_kernel(x, depth), s)
    assert torch.autograd.gradcheck(lambda x: dln.depth_kernel(x, depth), s)
    assert torch.autograd.gradgradcheck(lambda x: dln.log_depth_kernel(x, depth), s)
    assert torch.autograd.gradcheck(lambda x: log_kernel_slope(x, Depth(depth)), s)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1.5, 2, 2.7, 3, 64, 10**6, math.inf])
def test_slope_against_fifty_digits(depth, dtype):
    s = torch.cat((near_pairs(dtype), far_pairs(dtype)))
    slopes = log_kernel_slope(s, Depth(depth))
    for pair, slope in zip(s.tolist(), slopes, strict=True):
        for i, j in ((0, 1), (1, 0)):
            exact = float(exact_slope(pair[i], pair[j], depth))
            # An exponential of log(s_i/s_j), which may underflow before it is divided by s_i.
            condition = 1 + abs(math.log(pair[i]) - math.log(pair[j]))
            smallest = torch.finfo(dtype).tiny / torch.finfo(dtype).eps / pair[i]
            scale = max(abs(exact), smallest)
            assert_close(slope[i, j], exact, ops=100, scale=scale, condition=condition)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1.5, 2, 2.7, 64, math.inf])
def test_autograd_of_the_kernel_is_the_slope_at_every_gap(depth, dtype):
    s = near_pairs(dtype).requires_grad_()
    (grad,) = torch.autograd.grad(dln.log_depth_kernel(s, depth)[:, 0, 1].sum(), s)
    for pair, g in zip(s.tolist(), grad, strict=True):
        exact = [float(exact_slope(*pair, depth)), float(exact_slope(*pair[::-1], depth))]
        assert_close(g, exact, ops=100)


@pytest.mark.parametrize("depth", [1, 1.5, 2, 2.7, 3, math.inf])
def test_slope_at_a_zero(depth):
    s = torch.tensor([0.0, 1.7], dtype=torch.float64)
    slope = log_kernel_slope(s, Depth(depth))
    tail = 0.0 if depth == 1 else 2 * (1 - 1 / depth) / 1.7
    assert_close(slope[1, 0], tail, scale=1)
    if depth > 2:
        assert torch.isposinf(slope[0, 1])
    else:
        # 1/(s_1 + s_2) at depth 2; below, s_1 enters with a power above 1.
        assert_close(slope[0, 1], 1 / 1.7 if depth == 2 else 0.0, scale=1)


def test_batches_and_dtypes(generator):
    s = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    batched = dln.depth_kernel(s, 3.5)
    assert batched.shape == (2, 3, 4, 4)
    assert_close(batched[1, 2], dln.depth_kernel(s[1, 2], 3.5), ops=1)
    assert dln.depth_kernel(s.float(), 3).dtype == torch.float32
    assert dln.depth_kernel(s.half(), 3).dtype == torch.float32
    assert dln.depth_kernel([2, 1], 3).dtype == torch.get_default_dtype()
    assert dln.depth_kernel(s.numpy(), 3).dtype == torch.float64


@pytest.mark.parametrize(
    ("s", "error", "message"),
    [
        ([1.0, -1.0], ValueError, "s must be non-negative"),
        ([1.0, math.nan], ValueError, "s must be finite"),
        (1.0, ValueError, "s must have shape"),
        ("12", TypeError, "s must be a real array"),
        (None, TypeError, "s must be a real array"),
        ([1j], TypeError, "s must be real"),
    ],
)
def test_bad_singular_values(s, error, message):
    with pytest.raises(error, match=message):
        dln.depth_kernel(s, 2)


@pytest.mark.parametrize(
    ("depth", "error"),
    [
        (0.5, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        ("2", TypeError),
        (True, TypeError),
    ],
)
def test_bad_depth(depth, error):
    with pytest.raises(error, match=r"depth must be a real number >= 1 or inf, got"):
        dln.depth_kernel([1.0], depth)


def test_bad_normalisation():
    with pytest.raises(ValueError, match="normalized must be True or None at infinite depth"):
        dln.log_depth_kernel([1.0], math.inf, normalized=False)
    with pytest.raises(TypeError, match="normalized must be True, False or None, got 1"):
        dln.log_depth_kernel([1.0], 2, normalized=1)
