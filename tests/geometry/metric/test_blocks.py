"""Vectors in thin blocks are the matrices that they stand for."""

from __future__ import annotations

import math

import pytest

import dln_geometry as dln
from dln_geometry.geometry.kernel import Differences
from dln_geometry.geometry.metric import (
    apply,
    blocks_of,
    combine_blocks,
    pair_blocks,
    squared_length,
    tangent_matrix,
)
from dln_geometry.testing import assert_close
from tests.geometry.geodesics.routes import draw, tangent

SPECTRUM = (1.9, 0.8, 0.8)


@pytest.mark.parametrize("depth", [1.5, 2, 2.7, 5, math.inf])
@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (3, 4), (5, 6)], ids=str)
def test_metric_in_blocks(shape, depth, generator):
    """Powers of tables of the kernel against exponentials of its logarithm."""
    point = draw(shape, SPECTRUM, depth, generator)
    k = Differences(point.s, depth, point.normalized)
    z, w = tangent(point, generator), tangent(point, generator)
    zb, wb = (blocks_of(point.u, point.vh, v, point.depth.infinite) for v in (z, w))
    assert_close(tangent_matrix(point.u, point.vh, zb), z)
    lowered = apply(k, zb, -1.0)
    condition = (SPECTRUM[0] / SPECTRUM[-1]) ** 2
    expected = dln.metric(point, z)
    assert_close(tangent_matrix(point.u, point.vh, lowered), expected, condition=condition)
    assert_close(tangent_matrix(point.u, point.vh, apply(k, lowered)), z, condition=condition)
    length = dln.inner(point, z, z)
    assert_close(pair_blocks(lowered, zb), length, condition=condition)
    assert_close(squared_length(k, zb), length, condition=condition)
    scale = float(expected.norm() * w.norm())
    assert_close(pair_blocks(lowered, wb), (expected * w).sum(), scale=scale, condition=condition)


@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (3, 4), (5, 6)], ids=str)
def test_linear_combinations(shape, generator):
    point = draw(shape, SPECTRUM, 3, generator)
    z, w = tangent(point, generator), tangent(point, generator)
    parts = [blocks_of(point.u, point.vh, v) for v in (z, w)]
    combined = combine_blocks((0.3, parts[0]), (-1.7, parts[1]))
    expected = 0.3 * z - 1.7 * w
    assert_close(tangent_matrix(point.u, point.vh, combined), expected, scale=float(z.norm()) + 1)
    for part, own in zip(combined, parts[0], strict=True):
        assert (part is None) == (own is None)
