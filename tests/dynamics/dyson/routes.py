"""Exact moments of Dyson Brownian motion, and many particles after some steps."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import combinations

import numpy as np
import torch

F64 = torch.float64
START = (-0.3, 0.1, 0.9)
POWERS = [(2,), (4,), (2, 2), (3, 3), (2, 4), (6,)]


def expected(powers, start, t, index, excess=None):
    """E prod_k p_k at time t, exactly: the generator lowers the degree of symmetric polynomials.

    Power sums p_k of the positions; with `excess`, of the squares of singular values.
    """
    n = len(start)
    values = np.array(start) if excess is None else np.array(start) ** 2

    def add(out, c, degrees):
        out[tuple(sorted(k for k in degrees if k))] += c * float(n) ** degrees.count(0)

    def applied(poly):
        out = defaultdict(float)
        for mono, c in poly.items():
            for i, k in enumerate(mono):
                rest = list(mono[:i] + mono[i + 1 :])
                if excess is None and k >= 2:
                    add(out, c * k * (k - 1) * (1 / index - 0.5), [*rest, k - 2])
                    for a in range(k - 1):
                        add(out, c * k / 2, [*rest, a, k - 2 - a])
                elif excess is not None:
                    alone = k * (excess + 1) + 2 / index * k * (k - 1) - k * k
                    add(out, c * alone, [*rest, k - 1])
                    for a in range(k):
                        add(out, c * k, [*rest, a, k - 1 - a])
            for i, j in combinations(range(len(mono)), 2):
                rest = [k for q, k in enumerate(mono) if q not in (i, j)]
                k, other = mono[i], mono[j]
                if excess is None:
                    add(out, c * 2 / index * k * other, [*rest, k + other - 2])
                else:
                    add(out, c * 4 / index * k * other, [*rest, k + other - 1])
        return {mono: c for mono, c in out.items() if c}

    poly, total, order, factor = {tuple(sorted(powers)): 1.0}, 0.0, 0, 1.0
    while poly:
        for mono, c in poly.items():
            total += factor * c * math.prod(float((values**k).sum()) for k in mono)
        poly, order = applied(poly), order + 1
        factor *= t / order
    return total


def power_sums(x, powers):
    return torch.stack([(x**k).sum(-1) for k in powers]).prod(0)


def after(step, start, t, steps, count):
    x = torch.tensor(start, dtype=F64).repeat(count, 1)
    for _ in range(steps):
        x = step(x, t / steps)
        assert (x.diff(dim=-1) >= 0).all()
    return x
