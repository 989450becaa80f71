from __future__ import annotations

import math

import mpmath
import pytest
import torch

from dln_geometry.geometry.kernel import geometric_sum, power_divided_difference
from dln_geometry.testing import assert_close

# Relative gaps from below the rounding of a double to one half.
GAPS = [0.0, *(10.0**-k for k in range(16, 0, -1)), 0.5]


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 0.35, 0.5, 1.0, 2.0, 3.5, 31.0])
def test_power_divided_difference_against_fifty_digits(exponent):
    pairs = [(b, b * (1 + g)) for b in (1e-3, 0.6, 2.0) for g in GAPS]
    pairs += [(1e-12, 0.5), (1e-8, 3.0), (2.0, 0.7)]
    c = torch.tensor(pairs, dtype=torch.float64)
    differences = power_divided_difference(c, exponent)
    for (a, b), v in zip(c.tolist(), differences, strict=True):
        e, x, y = mpmath.mpf(exponent), mpmath.mpf(a), mpmath.mpf(b)
        with mpmath.workdps(120):
            exact = e * x ** (e - 1) if x == y else (x**e - y**e) / (x - y)
        # A power of x loses as many roundings as its logarithm is large.
        condition = 1 + abs(exponent * math.log(a))
        assert_close(v[0, 1], v[1, 0], condition=condition)
        for value, want in ((v[0, 1], exact), (v[0, 0], e * x ** (e - 1))):
            scale = max(abs(float(want)), 1e-300)
            assert_close(value, float(want), ops=100, scale=scale, condition=condition)


def test_power_divided_difference_with_zeros():
    c = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    expected = [[2.5 * 2**1.5, 2**1.5, 2**1.5], [2**1.5, 0, 0], [2**1.5, 0, 0]]
    assert_close(power_divided_difference(c, 2.5), expected)
    assert_close(power_divided_difference(c, 0.5)[0, 1], 2**-0.5)


@pytest.mark.parametrize("terms", [0, 1, 2, 3, 6, 13, 62])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_geometric_sum_is_the_explicit_sum(terms, dtype, generator):
    def draw():
        return 0.5 * torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)

    left, middle, right = draw(), draw(), draw()
    power = torch.linalg.matrix_power
    exact = sum(
        (power(left, terms - 1 - q) @ middle @ power(right, q) for q in range(terms)),
        start=torch.zeros_like(middle),
    )
    norms = [float(torch.linalg.matrix_norm(a, 2).max()) for a in (left, middle, right)]
    scale = max(1, terms) * max(norms[0], norms[2]) ** max(0, terms - 1) * norms[1]
    total = geometric_sum(left.to(dtype), middle.to(dtype), right.to(dtype), terms)
    assert_close(total, exact.to(dtype), ops=1000, scale=scale)


@pytest.mark.parametrize("exponent", [-0.5, 0.35, 2.5, 31.0])
@pytest.mark.parametrize("zeros", [0, 2])
def test_large_tables_of_differences_are_those_of_single_pairs(exponent, zeros, generator):
    """Made in strips, of eigenvalues in any order, equal ones and zeros among them."""
    c = torch.rand(199, generator=generator, dtype=torch.float64)
    c[5], c[100] = c[150], c[101] * (1 + 1e-13)
    if zeros:
        c[7] = c[130] = 0.0
    table = power_divided_difference(c, exponent)
    pairs = torch.randint(len(c), (400, 2), generator=generator)
    pairs = torch.cat((pairs, torch.tensor([(5, 150), (100, 101), (7, 130), (130, 7), (9, 9)])))
    single = power_divided_difference(c[pairs], exponent)[:, 0, 1]
    assert torch.equal(table[pairs[:, 0], pairs[:, 1]], single)
    assert torch.equal(table, table.mT)
