"""Second divided differences and their ratios against high precision."""

from __future__ import annotations

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch

from dln_geometry.geometry.kernel import (
    log_second_difference,
    mixed_ratios,
    outer_ratios,
    ratios,
    slice_of_ratios,
)
from dln_geometry.support import Depth
from dln_geometry.testing import assert_close

SPECTRUM = (0.9, 2.3, 0.9 + 1e-9, 0.31, 0.9, 1e-4)
depths = pytest.mark.parametrize("depth", [1.0, 1.3, 2.0, 2.7, 3.0, 7.0, 16.0, 40.0, math.inf])
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def difference(nodes, depth):
    """Return the divided difference of p(l) at singular values, the metric divided by N.

    Zeros are far below the others, equal values moved apart: both by powers of the precision.
    """
    nodes = sorted(nodes)
    for k in range(1, len(nodes)):
        nodes[k] = max(nodes[k], nodes[k - 1] * (1 + mpmath.mpf(10) ** -30))
    infinite = math.isinf(depth)
    places = [2 * mpmath.log(s) if infinite else depth * s ** (2 / depth) for s in nodes]
    table = [s**2 for s in nodes]
    for order in range(1, len(nodes)):
        table = [
            (table[i + 1] - table[i]) / (places[i + order] - places[i])
            for i in range(len(table) - 1)
        ]
    return table[0]


@depths
@dtypes
def test_ratios_meet_high_precision(depth, dtype):
    s = torch.tensor(SPECTRUM, dtype=dtype)
    x = s.log()
    r = len(s)
    with mpmath.workdps(120):
        nodes = [mpmath.exp(mpmath.mpf(float(value))) for value in x]
        n = depth if math.isinf(depth) else mpmath.mpf(depth)
        expected = [
            [
                [float(difference([a, b, c], n) / difference([a, b], n)) for c in nodes]
                for b in nodes
            ]
            for a in nodes
        ]
    expected = torch.tensor(expected, dtype=torch.float64)
    assert expected.shape == (r, r, r)
    actual = ratios(x, Depth(depth))
    # Up to 4 logarithms of size |x| go into an exponential.
    size = 10.0 * expected.clamp_min(1e-30)
    assert actual.dtype == dtype
    assert_close((actual.double() - expected) / size, torch.zeros_like(expected).to(dtype),
                 ops=100, scale=1.0)  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):
        assert_close(ratios(x.numpy(), Depth(depth)), actual)
    for i in range(r):
        assert_close((slice_of_ratios(x, i, Depth(depth)) - actual[i]) / size[i],
                     torch.zeros_like(actual[i]), ops=100, scale=1.0)  # fmt: skip


@depths
def test_single_precision_stays_single_in_numpy(depth):
    """Some numpy operations take a subclass of float for a number in double precision."""
    x, depth = np.log(np.array(SPECTRUM, np.float32)), Depth(depth)
    with np.errstate(divide="ignore", invalid="ignore"):
        tables = [table(x, depth) for table in (ratios, mixed_ratios, outer_ratios)]
        tables.append(slice_of_ratios(x, 1, depth))
        tables.append(log_second_difference(x[0], x[1], x, depth))
    assert {table.dtype for table in tables} == {np.dtype(np.float32)}


@pytest.mark.parametrize("depth", [1.0, 1.3, 2.0, 2.7, 3.0, 16.0, 40.0])
@dtypes
def test_ratios_against_zeros_meet_high_precision(depth, dtype):
    x = torch.tensor(SPECTRUM, dtype=dtype).log()
    with mpmath.workdps(400):
        nodes = [mpmath.exp(mpmath.mpf(float(value))) for value in x]
        # The number in the place of zero: its s^{2/N} is below every rounding.
        zero, n = mpmath.mpf(10) ** (-25 * max(int(depth), 2)), mpmath.mpf(depth)
        third = [difference([a, b, zero], n) for a in nodes for b in nodes]
        over = (
            [difference([a, b], n) for a in nodes for b in nodes],
            [difference([a, zero], n) for a in nodes for _ in nodes],
        )
        mixed, outer = (
            torch.tensor(
                [float(a / b) for a, b in zip(third, lower, strict=True)], dtype=torch.float64
            ).view(6, 6)
            for lower in over
        )
    for actual, expected in (
        (mixed_ratios(x, Depth(depth)), mixed),
        (outer_ratios(x, Depth(depth)), outer),
    ):
        size = 10.0 * expected.clamp_min(1e-30)
        assert_close((actual.double() - expected) / size, torch.zeros_like(expected).to(dtype),
                     ops=100, scale=1.0)  # fmt: skip


def test_outer_ratios_have_a_limit_at_infinite_depth():
    x = torch.tensor(SPECTRUM, dtype=torch.float64).log()
    depths, limit = [1e3, 1e4, 1e5], outer_ratios(x, Depth(math.inf))
    errors = [float(((outer_ratios(x, Depth(n)) - limit) / limit).abs().max()) for n in depths]
    assert errors[0] < 0.05
    for one, two in pairwise(errors):
        assert one / two == pytest.approx(10.0, rel=0.05)
    assert bool((mixed_ratios(x, Depth(math.inf)) == 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("depth", [1.0, 1.001, 1.5, 1.99, 2.0, 3.0, 40.0, 1e4, math.inf])
def test_second_difference_meets_high_precision(depth, dtype, rng):
    gaps = [0.0, 1e-12, 1e-4, 0.1, 0.2499, 0.2501, 0.49, 0.51, 1.0, 3.0, 30.0]
    nodes = [(m, m + u, m - w) for m in (0.3, -2.0) for u in gaps for w in gaps]
    x = torch.tensor(rng.permuted(nodes, axis=1), dtype=dtype)
    actual = log_second_difference(*x.unbind(-1), Depth(depth))
    if depth == 1.0:
        assert bool(torch.isneginf(actual).all())
        return
    with mpmath.workdps(90):
        expected = [
            float(log_of_reference([mpmath.mpf(float(v)) for v in row], depth)) for row in x
        ]
    # Two logarithms of size |x| go in: the error is absolute, and relative in the exponential.
    assert_close(actual, torch.tensor(expected, dtype=dtype), ops=100, scale=10.0)


def log_of_reference(logs, depth):
    """Log of minus the second divided difference; equal nodes moved apart by 1e-25."""
    a = 0 if math.isinf(depth) else 1 / mpmath.mpf(depth)
    logs = sorted(logs)
    for k in (1, 2):
        logs[k] = max(logs[k], logs[k - 1] + mpmath.mpf(10) ** -25)
    p = [mpmath.exp(v) for v in logs]
    g = [v if a == 0 else mpmath.expm1(a * v) / a for v in logs]
    slopes = [(g[k + 1] - g[k]) / (p[k + 1] - p[k]) for k in (0, 1)]
    return mpmath.log((slopes[0] - slopes[1]) / (p[2] - p[0]))
