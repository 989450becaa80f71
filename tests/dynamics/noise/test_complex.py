"""Brownian motion and Langevin dynamics of complex matrices against exact moments."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_mean
from tests.geometry.realified import C128


class Ridge:
    """``E = (N/2) sum s^{2/N}``, the smallest ridge energy of the layers."""

    def __init__(self, depth):
        self.depth = depth

    def value(self, x):
        return 0.5 * self.depth * torch.linalg.svdvals(x).pow(2 / self.depth).sum(-1)

    def gradient(self, x):
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        return (u * s.pow(2 / self.depth - 1).unsqueeze(-2)) @ vh


def second_moments(depth, shape, rank, beta, entropy, generator):
    """Return ``|rho|^2 = N sum s^{2/N}`` of many chains near equilibrium."""
    start = dln.Collapsed.random(shape, rank, depth, dtype=C128, generator=generator)
    path = dln.langevin(
        Ridge(depth), start, beta=beta, entropy=entropy, t_end=5.0, dt=0.025, save_at=[5.0],
        chains=800, generator=generator,
    )  # fmt: skip
    return depth * path.singular_values[-1].pow(2 / depth).sum(-1)


@pytest.mark.parametrize("depth", [2, 3])
def test_equipartition(depth, generator):
    """``E|rho|^2`` is the dimension over beta: of the matrices, or of the balanced manifold."""
    beta = 1.3
    rho = second_moments(depth, (2, 2), 2, beta, False, generator)
    error = float(rho.std()) / math.sqrt(len(rho))
    assert abs(float(rho.mean()) - 8.0 / beta) < 4.0 * error + 0.03 * 8.0 / beta
    rho = second_moments(depth, (2, 2), 2, beta, True, generator)
    exact = (8.0 + 4.0 * (depth - 1)) / beta
    error = float(rho.std()) / math.sqrt(len(rho))
    assert abs(float(rho.mean()) - exact) < 4.0 * error + 0.03 * exact


def test_brownian_motion_of_a_complex_number_is_flat():
    """``rho e^{i theta/N}`` is plane Brownian motion: ``E rho^2 = rho_0^2 + 2 t``."""
    start = dln.EndToEnd.of(torch.tensor([[1.1 + 0.4j]], dtype=C128), 3)
    path = dln.brownian_motion(
        start.expand((4000,)), t_end=0.5, dt=0.05, save_at=[0.0, 0.5], generator=3
    )
    rho = 3 * path.singular_values[..., 0].pow(2 / 3)
    assert_mean(rho[1] - rho[0], 1.0)


def test_increments_and_depth_one(generator):
    dw = torch.randn(4, 2, 2, generator=generator, dtype=C128)
    start = dln.EndToEnd.of(torch.eye(2, dtype=C128), 1)
    path = dln.brownian_motion(start, t_end=1.0, increments=dw)
    assert float((path.final.matrix - start.matrix - dw.sum(0)).abs().max()) < 1e-12
    deep = dln.EndToEnd.of(torch.eye(2, dtype=C128), 4)
    path = dln.brownian_motion(deep, t_end=1.0, increments=0.1 * dw)
    assert path.final.dtype == C128
