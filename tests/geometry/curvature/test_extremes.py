"""Curvatures in single precision, at extreme scales and spectra, and of empty batches."""

from __future__ import annotations

import math

import pytest
import torch

from dln_geometry.geometry.curvature import (
    ricci_curvature,
    riemann_curvature,
    scalar_curvature,
    sectional_curvature,
)
from dln_geometry.geometry.metric import cometric
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.testing import assert_close

# The power of the scale with which each changes if X and all vectors are scaled.
DEGREES = {"sectional": -2.0, "riemann": 2.0, "ricci": 0.0, "scalar": -2.0}


def curvatures(p, z, w):
    return {
        "sectional": sectional_curvature(p, z, w),
        "riemann": riemann_curvature(p, z, w, w, z),
        "ricci": ricci_curvature(p, z, w),
        "scalar": scalar_curvature(p),
    }


def drawn(generator, shape, count, batch=()):
    return [
        torch.randn(*batch, *shape, generator=generator, dtype=torch.float64) for _ in range(count)
    ]


@pytest.mark.parametrize("depth", [1.0, 1.5, 3.0, 20.0, 1e6, math.inf])
@pytest.mark.parametrize(("shape", "rank"), [((2, 2), 2), ((3, 2), 2), ((3, 3), 2)])
def test_scales(depth, shape, rank, generator):
    if math.isinf(depth):
        shape, rank = (2, 2), 2
    x, g, h = drawn(generator, shape, 3)
    p = EndToEnd.of(x, depth, rank=rank)
    z, w = cometric(p, g), cometric(p, h)
    reference = curvatures(p, z, w)
    for scale in (1e80, 1e-80):
        scaled = curvatures(p.replace(s=scale * p.s), scale * z, scale * w)
        for name, got in scaled.items():
            power = scale ** (DEGREES[name] / depth)
            assert_close(got / power, reference[name], ops=1000, condition=1e5)


@pytest.mark.parametrize("depth", [2.0, 2.7, 30.0])
def test_single_precision_is_as_good_as_its_data(depth, generator):
    for ratio in (1e-1, 1e-3, 1e-5):
        u, _, vh = torch.linalg.svd(drawn(generator, (3, 3), 1)[0])
        s = torch.tensor([1.0, 0.6, ratio]).double()
        p = EndToEnd(u, s, vh, depth)
        z, w = (cometric(p, g) for g in drawn(generator, (3, 3), 2))
        single = curvatures(p.to(torch.float32), z.float(), w.float())
        for name, expected in curvatures(p, z, w).items():
            assert single[name].dtype == torch.float32
            # Vectors in single precision have parts of their rounding over the small value.
            condition = 10.0 if name == "scalar" else 100.0 / ratio**2
            assert_close(single[name], expected, condition=condition)


@pytest.mark.parametrize("depth", [2.0, 5.0, math.inf])
def test_equal_denormal_singular_values(depth, generator):
    s = torch.full((2,), 1e-310, dtype=torch.float64)
    tiny, one = (
        EndToEnd(torch.eye(2).double(), x, torch.eye(2).double(), depth)
        for x in (s, torch.ones(2).double())
    )
    expected = scalar_curvature(one) * s[0] ** (-2.0 / depth)
    if bool(torch.isfinite(expected)):
        assert_close(scalar_curvature(tiny), expected, ops=1000)
    else:
        assert bool(torch.isinf(scalar_curvature(tiny)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [1e-9, 1e-30])
def test_too_wide_spectra_are_refused(dtype, ratio, generator):
    z, w = drawn(generator, (2, 2), 2)
    p = EndToEnd(torch.eye(2), torch.tensor([1.0, ratio]), torch.eye(2), 3).to(dtype)
    for curvature in (
        lambda: sectional_curvature(p, z, w),
        lambda: riemann_curvature(p, z, w, w, z),
        lambda: ricci_curvature(p, z),
        lambda: scalar_curvature(p),
    ):
        with pytest.raises(ValueError, match="within a factor of 1e"):
            curvature()


@pytest.mark.parametrize("depth", [1.0, 3.0, 2.7, math.inf])
@pytest.mark.parametrize("shape", [(2, 2), (3, 2)])
def test_empty_batches(depth, shape, generator):
    if math.isinf(depth):
        shape = (2, 2)
    z, w = drawn(generator, shape, 2, (0,))
    p = EndToEnd.of(torch.zeros(0, *shape), depth).to(torch.float64)
    for value in curvatures(p, z, w).values():
        assert value.shape == (0,)


def test_vectors_of_very_different_sizes(generator):
    x, z, w = drawn(generator, (3, 3), 3)
    p = EndToEnd.of(x, 3)
    assert_close(
        sectional_curvature(p, 1e-200 * z, 1e200 * w), sectional_curvature(p, z, w), condition=1e4
    )
    value = riemann_curvature(p, z, w, w, z)
    assert_close(riemann_curvature(p, 1e-100 * z, w, w, 1e100 * z), value, condition=1e4)
    assert_close(ricci_curvature(p, 1e-12 * z, 1e12 * w), ricci_curvature(p, z, w), condition=1e4)
