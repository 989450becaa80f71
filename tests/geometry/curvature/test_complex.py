"""Ricci and scalar curvature of complex points, as sums of sectional curvatures."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close
from tests.geometry.realified import C128, complex_normal, of_rank

CASES = [
    ((2, 2), 2, 3), ((3, 2), 2, 2.7), ((1, 3), 1, 4), ((2, 2), 2, math.inf),
    ((3, 3), 3, 1.5), ((4, 2), 1, 3),
]  # fmt: skip


def orthonormal(p):
    """Return an orthonormal basis of the tangent space by Gram and Schmidt, without the frames."""
    m, n = p.shape
    units = torch.eye(m * n, dtype=C128).reshape(-1, m, n)
    basis = []
    for e in torch.cat((units, 1j * units)):
        v = dln.cometric(p, e)
        for _ in range(2):
            for b in basis:
                v = v - dln.inner(p, v, b) * b
        size = dln.inner(p, v, v).sqrt()
        if size > 1e-6:
            basis.append(v / size)
    return torch.stack(basis)


@pytest.mark.parametrize(("shape", "rank", "depth"), CASES, ids=str)
def test_ricci_and_scalar_are_sums_of_planes(shape, rank, depth, generator):
    p = dln.EndToEnd.of(of_rank(generator, *shape, rank), depth, rank=rank)
    basis = orthonormal(p)
    count = rank if math.isinf(depth) else sum(shape) - rank
    assert len(basis) == 2 * rank * count
    z = dln.cometric(p, complex_normal(generator, *shape))
    w = dln.cometric(p, complex_normal(generator, *shape))
    own = dln.riemann_curvature(p, basis, z, w, basis)
    ricci = dln.ricci_curvature(p, z, w)
    scale = float(own.abs().max())
    assert ricci.dtype == torch.float64
    assert_close(ricci, own.sum(0), ops=1e6, scale=scale)
    total = dln.scalar_curvature(p)
    assert_close(
        total, dln.ricci_curvature(p, basis).sum(0), ops=1e6, scale=1.0 + float(abs(total))
    )


def test_phases_and_batches(generator):
    x = complex_normal(generator, 2, 3, 3)
    p = dln.EndToEnd.of(x, 3)
    turned = dln.EndToEnd.of(1j * x, 3)
    assert_close(dln.scalar_curvature(turned), dln.scalar_curvature(p), ops=1e6)
    each = torch.stack([dln.scalar_curvature(dln.EndToEnd.of(y, 3)) for y in x])
    assert_close(dln.scalar_curvature(p), each, ops=1e5)
    one = dln.EndToEnd.of(torch.tensor([[0.7 + 0.2j]], dtype=C128), 5)
    assert_close(dln.scalar_curvature(one), 0.0)  # a cone, flat beside its tip
    flat = dln.EndToEnd.of(x, 1)
    assert float(dln.ricci_curvature(flat, x).abs().max()) == 0.0
