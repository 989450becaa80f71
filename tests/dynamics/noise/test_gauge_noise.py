"""Noise along the orbits of two layers."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close, assert_mean

F64 = torch.float64


def test_unbalanced_layers_keep_their_eigenvalues_and_do_not_balance(generator):
    start = [torch.randn(20, *s, generator=generator, dtype=F64) for s in ((3, 4), (3, 3))]
    path = dln.gauge_noise(start, beta=1.5, t_end=0.5, steps=50, generator=generator)
    before, after = (dln.gauge_eigenvalues(w) for w in (start, path.final))
    assert_close(after, before, ops=1e5)
    (g,), (h,) = dln.moments(start), dln.moments(path.final)
    grown = torch.linalg.det(h).abs() / torch.linalg.det(g).abs()
    assert bool((grown > 1.0).all())
    assert path.observed["moment"].shape == (51, 20)


def test_balanced_layers_follow_the_entropy(generator):
    """They stay balanced, and X moves by ``(1/beta) grad S`` in the limit of small steps."""
    s, beta = torch.tensor([1.3, 0.9, 0.4], dtype=F64), 2.0
    point = dln.EndToEnd.of(torch.diag(s), 2)
    loss = dln.losses.Quadratic(torch.zeros(3, 3, dtype=F64))
    layers = dln.balanced_factors(point)
    batch = [w.expand(400, 3, 3) for w in layers]
    path = dln.gauge_noise(batch, beta=beta, t_end=0.2, steps=100, generator=generator)
    assert float(path.observed["moment"].max()) < 1e-12
    x = path.final.matrix
    steps, h = 100, 0.002
    for _ in range(steps):  # an explicit method of the same order as the noise's
        slope = dln.cometric(dln.EndToEnd.of(point.matrix, 2), dln.entropy_gradient(point)) / beta
        point = dln.EndToEnd.of(point.matrix + h * slope, 2)
    assert loss.value(point.matrix) > loss.value(torch.diag(s))
    spread = x.std(0).max() / 20.0
    assert float((x.mean(0) - point.matrix).abs().max()) < 4.0 * float(spread) + 2.0 * h


def test_scalar_layers_have_the_known_drift_and_noise(generator):
    """Ito noise dB tangent to the fibre: ``dG = G/|w|^2 dt - 2 |w| dB``, by moments of a step."""
    w, h, count = torch.tensor([0.7, 1.6], dtype=F64), 1e-2, 200_000
    size = float(w.norm())
    g = float(w[1] ** 2 - w[0] ** 2)
    db = h**0.5 * torch.randn(count, generator=generator, dtype=F64)
    moved = w[0] + w[0] / size * db, w[1] - w[1] / size * db
    change = moved[1] ** 2 - moved[0] ** 2 - g
    assert_mean(change / h, g / size**2)
    centred = change - change.mean()
    assert_mean(centred * db / h, -2.0 * size)


def test_refusals():
    two = [torch.eye(2)] * 2
    with pytest.raises(ValueError, match="factors must be two layers"):
        dln.gauge_noise([torch.eye(2)] * 3, beta=1.0, t_end=1.0, steps=2)
    with pytest.raises(ValueError, match="beta must be positive"):
        dln.gauge_noise(two, beta=0.0, t_end=1.0, steps=2)
    assert math.isfinite(float(dln.gauge_noise(two, beta=1.0, t_end=1.0, steps=2).t[-1]))
