"""Derivatives of the distance."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.geodesics import distance, exponential, logarithm
from dln_geometry.testing import assert_close, assert_order
from tests.geometry.geodesics.routes import draw, gaussian, tangent

RTOL_OPS = 3e4


@pytest.mark.parametrize(
    ("shape", "spectrum"),
    [((3, 3), (1.2, 0.7, 0.4)), ((3, 3), (0.8, 0.8, 0.8)), ((4, 2), (0.9, 0.5))],
)
@pytest.mark.parametrize("depth", [1, 2.7, 3, math.inf])
def test_the_derivative_of_the_distance(shape, spectrum, depth, generator):
    """Of both ends at once, against differences along tangent vectors."""
    if shape != (3, 3) and math.isinf(depth):
        # Range and corange do not move: square instead.
        shape = (2, 2)
    p = draw(shape, spectrum, depth, generator)
    q = exponential(p, tangent(p, generator, 0.6))
    moves = [tangent(x, generator, 0.5) for x in (p, q)]
    x, y = (point.matrix.clone().requires_grad_() for point in (p, q))
    value = distance(dln.EndToEnd.of(x, depth), dln.EndToEnd.of(y, depth))
    assert_close(value, distance(p, q), ops=RTOL_OPS)
    slopes = torch.autograd.grad(value, (x, y))
    found = sum((slope * move).sum() for slope, move in zip(slopes, moves, strict=True))
    steps, errors = [0.2, 0.1, 0.05, 0.025], []
    for h in steps:
        ahead, behind = (
            distance(
                dln.EndToEnd.of(p.matrix + t * moves[0], depth),
                dln.EndToEnd.of(q.matrix + t * moves[1], depth),
            )
            for t in (h, -h)
        )
        errors.append(float(((ahead - behind) / (2 * h) - found).abs()))
    assert_order(steps, errors, 2, tol=0.15)


def test_the_derivative_in_batches_and_at_the_point_itself(generator):
    p = draw((3, 3), (1.2, 0.7, 0.4), 3, generator)
    ends = exponential(p, torch.stack((0.0 * p.matrix, tangent(p, generator, 0.4))))
    x = p.matrix.clone().requires_grad_()
    lengths = distance(dln.EndToEnd.of(x, 3), ends)
    (slope,) = torch.autograd.grad(lengths[0], x, retain_graph=True)
    assert_close(slope, torch.zeros(3, 3), scale=1.0)
    (slope,) = torch.autograd.grad(lengths.sum(), x)
    lowered = dln.metric(p, logarithm(p, ends[1]))
    assert_close(slope, -lowered / 0.4, ops=RTOL_OPS)


@pytest.mark.parametrize("depth", [1, 3, 2.7, math.inf])
@pytest.mark.parametrize("spectrum", [(1.2, 0.5, 0.0), (1.1, 1.1, 0.2)])
def test_the_derivative_through_the_nearest_matrix_of_smaller_rank(spectrum, depth, generator):
    """Central differences in the matrices, the kept values equal, others dropped."""
    point = draw((3, 3), spectrum, 3, generator)
    x = point.matrix.clone().requires_grad_()
    y = point.matrix + 0.0
    if math.isfinite(depth):
        y = y @ torch.linalg.matrix_exp(0.3 * gaussian((3, 3), generator))
    else:
        y = 1.4 * y
    move = gaussian((3, 3), generator)

    def length(x):
        p, q = (dln.EndToEnd.of(v, depth, rank=2) for v in (x, y))
        return distance(p, q)

    if math.isinf(depth):
        # The spaces must stay as they are.
        u, vh = point.u[:, :2], point.vh[:2]
        move = u @ (u.mT @ move @ vh.mT) @ vh
    (slope,) = torch.autograd.grad(length(x), x)
    steps = [0.02 / 2**k for k in range(4)]
    with torch.no_grad():
        numbers = [float(length(x + t * move) - length(x - t * move)) / (2 * t) for t in steps]
    assert_order(steps, [abs(v - float((slope * move).sum())) for v in numbers], 2)
