"""Second and third differences with zeros among the nodes, against high precision."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from dln_geometry.geometry.kernel import second_difference, third_difference
from dln_geometry.support import Depth
from dln_geometry.testing import assert_close


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("depth", [1.3, 2.0, 2.7, 3.0, 40.0, math.inf])
def test_third_differences_meet_high_precision(depth, dtype, rng):
    gaps = [0.0, 1e-9, 0.02, 0.12, 0.13, 0.4, 2.0]
    rows = [(0.3, 0.3 + u, 0.3 + u + v, 0.3 - u) for u in gaps for v in gaps]
    rows += [(0.3, 0.3 - u, -0.8, -math.inf) for u in gaps]
    rows += [(0.3, 0.3 - u, -math.inf, -math.inf) for u in gaps]
    x = torch.tensor(rng.permuted(rows, axis=1), dtype=dtype)
    normalized = math.isinf(depth)
    actual = third_difference(x.unbind(-1), Depth(depth), normalized)
    second = second_difference(x[:, :3].unbind(-1), Depth(depth), normalized)
    with mpmath.workdps(80):
        pairs = [_reference([float(v) for v in row], depth) for row in x]
        low = [float(_reference([float(v) for v in row[:3]], depth)[0]) for row in x]
    for a, (e, scale) in zip(actual, pairs, strict=True):
        size = max(float(scale), abs(float(e)))
        assert_close(a, torch.tensor(float(e), dtype=dtype), ops=300, scale=size)
    for a, e in zip(second, low, strict=True):
        assert_close(a, torch.tensor(e, dtype=dtype), ops=300, scale=abs(e) + 1e-30)


def _reference(logs, depth):
    """Return the divided difference of p(l) at l(e^x), and its natural scale p / l^order."""
    infinite = math.isinf(depth)
    if infinite and any(math.isinf(v) for v in logs):
        return 0.0, 1.0
    if infinite:
        nodes = [2 * mpmath.mpf(v) for v in logs]
    else:
        n = mpmath.mpf(depth)
        nodes = [mpmath.mpf(0) if math.isinf(v) else mpmath.exp(2 * v / n) for v in logs]
    nodes = sorted(nodes, reverse=True)
    zeros = sum(v == 0 for v in nodes) if not infinite else 0

    def value(v, power):
        return mpmath.exp(v) if infinite else v**power

    # A zero divides: p(l)/l has the lower differences.
    positive = [v for v in nodes if v != 0 or infinite]
    power = None if infinite else mpmath.mpf(depth) - zeros
    # Equal nodes are moved apart.
    for i in range(1, len(positive)):
        if positive[i - 1] - positive[i] < mpmath.mpf(10) ** -18:
            positive[i] = positive[i - 1] - mpmath.mpf(10) ** -18
    table = [value(v, power) for v in positive]
    for order in range(1, len(positive)):
        table = [
            (table[i] - table[i + 1]) / (positive[i] - positive[i + order])
            for i in range(len(table) - 1)
        ]
    order = len(nodes) - 1
    top = value(nodes[0], None if infinite else mpmath.mpf(depth))
    return table[0], top / (1 if infinite else nodes[0] ** order) * 10
