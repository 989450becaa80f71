"""Geodesics of complex balanced networks."""

from __future__ import annotations

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close
from tests.geometry.realified import C128, complex_normal


def length(layers):
    return sum(w.abs().square().sum() for w in layers).sqrt()


@pytest.mark.parametrize(("widths", "rank"), [((2, 2, 2), 2), ((3, 2, 4, 2), 1), ((2, 3, 2), 2)])
def test_they_are_geodesics(widths, rank, generator):
    """Balanced, of constant speed, and without a tangential part of the second derivative."""
    network = dln.random_balanced(
        widths, rank=rank, spectrum=[1.4, 0.8][:rank], generator=generator, dtype=C128
    )
    v = dln.tangent(network, [complex_normal(generator, *w.shape) for w in network])
    v = [0.3 * x / length(v) for x in v]
    h = 1e-3
    path = dln.balanced_geodesic(network, v, [0.5 - h, 0.5, 0.5 + h], rtol=1e-12)
    assert dln.is_balanced(path, rtol=1e-12).all()
    before, there, after = ([w[k] for w in path] for k in range(3))
    speed = [(c - a) / (2 * h) for a, c in zip(before, after, strict=True)]
    bend = [(a - 2 * b + c) / h**2 for a, b, c in zip(before, there, after, strict=True)]
    assert float(abs(length(speed) - 0.3)) < 1e-5
    assert float(length(dln.tangent(there, bend))) < 1e-4 * (1 + float(length(bend)))
    w = dln.tangent(network, [complex_normal(generator, *x.shape) for x in network])
    end, moved = dln.balanced_transport(network, v, w)
    assert_close(length(moved), length(w), ops=1e8)
    assert (
        float(length([a - b for a, b in zip(dln.tangent(end, moved), moved, strict=True)])) < 1e-7
    )
    back = dln.balanced_logarithm(network, end)
    assert float(length([a - b for a, b in zip(back, v, strict=True)])) < 1e-6
    assert_close(dln.balanced_distance(network, end), 0.3, ops=1e8)


def test_horizontal_geodesics_lie_above_those_of_matrices(generator):
    p = dln.EndToEnd.of(complex_normal(generator, 2, 2), 3)
    network = dln.balanced_factors(p, gauge="haar", generator=generator)
    z = 0.2 * dln.cometric(p, complex_normal(generator, 2, 2))
    above = dln.balanced_geodesic(network, dln.horizontal_lift(network, z))
    assert_close(dln.end_to_end(above), dln.exponential(p, z).matrix, ops=1e8)


def test_real_and_complex_networks_have_no_distance():
    real = [torch.eye(2)] * 2
    with pytest.raises(ValueError, match="factors and other must have the same"):
        dln.balanced_distance(real, [w.to(torch.complex64) for w in real])
