from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dln_geometry.geometry.kernel import log_kernel_of_log
from dln_geometry.support import Depth
from dln_geometry.testing import assert_close
from manifolds._pymanopt import inner_christoffel, outer_christoffel


@pytest.mark.parametrize("depth", [2, 3, 7, 16])
def test_tables_of_integer_depths_are_those_of_real_ones(depth, rng):
    """Sums over pairs of layers against divided differences."""
    s = np.sort(np.concatenate((rng.uniform(0.5, 1.5, 4), [0.9, 0.9, 1e-3, 1e-8])))[::-1].copy()
    x = np.log(s)
    kernel = log_kernel_of_log(torch.from_numpy(x), Depth(depth), True).numpy()
    sums, differences = (
        (inner_christoffel(x, n, kernel), outer_christoffel(x, n))
        for n in (Depth(depth), Depth(math.nextafter(depth, 20)))
    )
    for got, expected in zip(sums, differences, strict=True):
        assert_close(got / expected, np.ones_like(got), ops=1000)


@pytest.mark.parametrize("depth", [1.2, 1.5, 3.0, 8.0, 17.0, math.inf])
@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_tables_scale(depth, size):
    """The Christoffel symbols are of degree -1 in the point."""
    s, depth = np.array([1.9, 0.8, 0.8, 0.3]), Depth(depth)

    def tables(s):
        x = np.log(s)
        kernel = log_kernel_of_log(torch.from_numpy(x), depth, True).numpy()
        return inner_christoffel(x, depth, kernel), outer_christoffel(x, depth)

    for got, expected in zip(tables(size * s), tables(s), strict=True):
        # A logarithm of size 460 goes in.
        assert_close(size * got, expected, ops=5000)
