"""Points, costs and cases that the tests of the manifolds for pymanopt share."""

from __future__ import annotations

import math

import numpy as np
import pymanopt
import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.points import EndToEnd
from manifolds._pymanopt import FixedRankPoint

DEPTHS = [1, 1.4, 2, 2.7, 3, 8, 20, math.inf]

# Thin, square of full rank, rectangular of full rank either way, rank one.
SHAPES = [(5, 6, 2), (3, 3, 3), (4, 3, 3), (2, 4, 2), (4, 5, 1)]

STEPS = 0.04 * 2.0 ** -np.arange(5)

each_depth = pytest.mark.parametrize("depth", DEPTHS)

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)

each_spectrum = pytest.mark.parametrize("equal", [False, True], ids=["generic", "equal"])

CASES = [
    ((3, 3, 3), 3),
    ((3, 4), 2),
    ((4, 4), 4),
    ((3, 4, 5, 2), 2),
    ((4, 3, 4, 5, 3), 2),
    ((2, 2, 2, 2, 2, 2), 2),
    ((2, 3, 2, 3, 2, 2, 3, 2, 2), 1),
]

each_case = pytest.mark.parametrize(("widths", "rank"), CASES, ids=str)


def a_point(manifold, equal=False):
    x = manifold.random_point()
    return FixedRankPoint(x.u, np.full_like(x.s, 0.8), x.vt) if equal else x


def in_library(manifold, point):
    """Return the same point for the functions of the library, which know no rank at depth 1."""
    depth = math.nextafter(1.0, 2.0) if manifold.depth == 1 else manifold.depth
    u, s, vt = (torch.from_numpy(np.ascontiguousarray(part)) for part in point)
    return EndToEnd(u, s, vt, depth, math.isinf(depth))


def smooth(rng, m, n):
    """Return a cost of a matrix without symmetries, in torch, and what it needs."""
    a, b = (torch.from_numpy(rng.standard_normal((m, n))) for _ in range(2))

    def cost(x):
        return (torch.sin(x * b) + 0.3 * x.square() * a).sum() + 0.1 * (x @ a.mT).det()

    return cost


def problem_of(manifold, cost):
    @pymanopt.function.pytorch(manifold)
    def wrapped(u, s, vt):
        return cost((u * s) @ vt)

    return pymanopt.Problem(manifold, wrapped)


def in_matrices(manifold, point, cost, z):
    """Return Euclidean gradient and Hessian along z of a cost of matrices."""
    x = torch.from_numpy(manifold.matrix(point))
    gradient = torch.func.grad(cost)
    direction = torch.from_numpy(manifold.tangent_matrix(point, z))
    return torch.func.jvp(gradient, (x,), (direction,))


def listed(x):
    return list(x) if isinstance(x, tuple | list) else [x]


def closed(parts):
    return parts[0] if len(parts) == 1 else parts


def a_network(manifold, rng, spectrum=None):
    """Return a random point, all singular values equal if asked for."""
    if spectrum is None:
        return manifold.random_point()
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    factors = dln.random_balanced(
        manifold.widths, rank=manifold.rank, spectrum=np.full(manifold.rank, spectrum),
        generator=generator,
    )  # fmt: skip
    arrays = [w.numpy() for w in factors]
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def problem_of_layers(manifold, cost):
    @pymanopt.function.pytorch(manifold)
    def wrapped(*layers):
        return cost(*layers)

    return pymanopt.Problem(manifold, wrapped)
