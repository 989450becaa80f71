"""Volumes over the real, complex and quaternion numbers against Gram determinants."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close
from tests.geometry.realified import (
    C128,
    as_vector,
    complex_normal,
    generators,
    quaternions,
    symplectic_generators,
)


def orbit_gram(layers, basis):
    """Return the Gram matrix of hidden rotations by generators, of layers of one width."""
    rows = []
    for k in range(len(layers) - 1):
        for g in basis:
            v = [torch.zeros_like(w) for w in layers]
            v[k], v[k + 1] = g @ layers[k], -layers[k + 1] @ g
            rows.append(as_vector(*v))
    rows = torch.stack(rows)
    return rows @ rows.T


@pytest.mark.parametrize(("d", "depth"), [(2, 2), (3, 2), (2, 4), (3, 3)])
def test_orbits_of_unitary_groups(d, depth, generator):
    x = complex_normal(generator, d, d)
    p = dln.EndToEnd.of(x, depth)
    layers = dln.balanced_factors(p, gauge="haar", generator=generator)
    gram = orbit_gram(layers, list(generators(d)))
    volume = 0.5 * torch.logdet(gram) + (depth - 1) * dln.log_stiefel_volume(d, d, "complex")
    for value in (dln.entropy(p), dln.entropy(x, depth=depth), dln.entropy(dln.Collapsed.of(p))):
        assert abs(value - volume) < 1e-12 * (1.0 + abs(volume))
    # A real matrix is one over every field.
    real = dln.EndToEnd.of(torch.diag(p.s), depth)
    assert_close(dln.entropy(real, field="complex"), volume, ops=1e3)
    assert_close(dln.entropy(torch.diag(p.s), depth=depth, field="complex"), volume, ops=1e3)


@pytest.mark.parametrize(("d", "depth"), [(1, 3), (2, 3), (3, 2)])
def test_orbits_of_symplectic_groups(d, depth, generator):
    basis = list(symplectic_generators(d))
    normal = torch.randn(depth + 1, len(basis), generator=generator, dtype=torch.float64)
    gauges = [torch.linalg.matrix_exp(sum(c * g for c, g in zip(row, basis, strict=True)))
              for row in normal.to(C128)]  # fmt: skip
    lam = torch.linspace(1.4, 0.6, d, dtype=torch.float64)
    spectrum = torch.diag(lam.repeat(2)).to(C128)
    layers = [gauges[k + 1] @ spectrum @ gauges[k].mH for k in range(depth)]
    gram = 0.5 * orbit_gram(layers, basis)
    volume = 0.5 * torch.logdet(gram) + (depth - 1) * dln.log_stiefel_volume(d, d, "quaternion")
    p = dln.EndToEnd.of(dln.end_to_end(layers), depth)
    for value in (
        dln.entropy(p, field="quaternion"),
        dln.entropy(dln.EndToEnd.of(torch.diag(lam**depth), depth), field="quaternion"),
    ):
        assert abs(value - volume) < 1e-12 * (1.0 + abs(volume))
    a, b, h = complex_normal(generator, d, d), complex_normal(generator, d, d), 1e-5
    move = quaternions(a, b)
    high, low = (
        dln.entropy(dln.EndToEnd.of(p.matrix + step * move, depth), field="quaternion")
        for step in (h, -h)
    )
    slope = dln.entropy_gradient(p, field="quaternion")
    along = 0.5 * (slope.conj() * move).real.sum()
    assert abs((high - low) / (2 * h) - along) < 1e-7 * (1.0 + abs(along))
    density = dln.log_volume_density(dln.EndToEnd.of(torch.diag(lam**depth), depth))
    assert_close(dln.log_volume_density(p, field="quaternion"), 4.0 * density, ops=1e3)


def test_wide_hidden_layers_below_full_rank(generator):
    network = dln.random_balanced(
        (4, 5, 4, 3), rank=2, spectrum=[2.0, 0.7], generator=generator, dtype=C128
    )
    frames, lam = network.balanced_parts()
    rows, turns = [], []
    for k in (1, 2):
        d = frames[k].shape[0]
        rest = complex_normal(generator, d, d - 2)
        full = torch.linalg.qr(torch.cat((frames[k], rest), 1))[0]
        full[:, :2] = frames[k]
        for g in generators(d):
            if float(g[:, :2].abs().max()) == 0.0:
                continue
            turn = full @ g[:, :2]
            v = [torch.zeros_like(w) for w in network]
            v[k - 1] = turn * lam @ frames[k - 1].mH
            v[k] = frames[k + 1] * lam @ turn.mH
            rows.append(as_vector(*v))
            moved = [torch.zeros_like(q) for q in frames]
            moved[k] = turn
            turns.append(as_vector(*moved))
    rows, turns = torch.stack(rows), torch.stack(turns)
    volume = 0.5 * (torch.logdet(rows @ rows.T) - torch.logdet(turns @ turns.T))
    volume = volume + sum(dln.log_stiefel_volume(d, 2, "complex") for d in (5, 4))
    value = dln.entropy(network.point(), widths=(4, 5, 4, 3))
    assert abs(value - volume) < 1e-12 * abs(volume)


@pytest.mark.parametrize("depth", [1, 2, 3.5])
def test_volume_density_is_a_determinant(depth, generator):
    x = complex_normal(generator, 3, 2)
    p = dln.EndToEnd.of(x, depth)
    units = torch.eye(12, dtype=torch.float64).view(12, 3, 2, 2)
    images = torch.stack([as_vector(dln.cometric(p, torch.view_as_complex(e))) for e in units])
    assert_close(dln.log_volume_density(p), -0.5 * torch.logdet(images), ops=1e3, scale=10.0)


@pytest.mark.parametrize("field", ["real", "complex", "quaternion"])
def test_limit_of_infinite_depth(field):
    f = dln.support.FIELDS[field]
    x = torch.diag(torch.tensor([1.7, 1.1, 0.4], dtype=torch.float64))
    limit = dln.entropy(dln.EndToEnd.of(x, math.inf), field=field)
    for depth in (1e4, 1e6):
        value = dln.entropy(dln.EndToEnd.of(x, depth), field=field)
        value = value - (depth - 1) * dln.log_stiefel_volume(3, 3, field)
        value = value - (f * 1.5 + (f - 1) * 1.5) * math.log(depth)
        assert abs(value - limit) < 30.0 / depth + 1e-13 * depth * 40


def test_spheres_are_frames():
    for f, field in ((1, "real"), (2, "complex"), (4, "quaternion")):
        for d in (1, 3):
            sphere = 2 * math.pi ** (0.5 * f * d) / math.gamma(0.5 * f * d)
            assert_close(math.exp(dln.log_stiefel_volume(d, 1, field)), sphere)


def test_wrong_fields(generator):
    x = complex_normal(generator, 4, 4)
    p = dln.EndToEnd.of(x, 2)
    with pytest.raises(ValueError, match="complex representation"):
        dln.entropy(p, field="quaternion")
    with pytest.raises(ValueError, match=r'"complex" or "quaternion"'):
        dln.entropy(p, field="real")
    with pytest.raises(ValueError, match="field must be one of"):
        dln.log_volume_density(p, field="octonion")
    y = quaternions(x, x).requires_grad_()
    with pytest.raises(ValueError, match="must be detached"):
        dln.entropy(dln.EndToEnd.of(y, 2), field="quaternion")
