"""Noise on all entries of all layers, held near balance, against motion of the balanced layers."""

from __future__ import annotations

import math

import torch

import dln_geometry as dln
from dln_geometry.testing import assert_mean

F64 = torch.float64


def test_confined_layers_move_like_balanced_ones_with_isotropic_noise(generator):
    """``dW = -grad(f + k R) dt + sqrt(2/beta) dB``, R the squares of W above the least over X.

    As k grows X moves as by Langevin dynamics with entropy at kappa = 1; without entropy the mean
    would be lower by a tenth.
    """
    beta, end, strength, chains = 1.3, 0.4, 20.0, 3000
    goal = torch.tensor([[1.2, 0.3], [-0.2, 0.8]], dtype=F64)
    start = dln.EndToEnd.of(torch.tensor([[1.0, 0.4], [0.1, 0.9]], dtype=F64), 2)
    steps = math.ceil(10 * end * strength)
    h = end / steps
    first, second = (w.expand(chains, 2, 2) for w in dln.balanced_factors(start))
    for _ in range(steps):
        x = second @ first
        u, _, vh = torch.linalg.svd(x)
        # Over X the least of |W|^2/2 is the sum of the singular values.
        g = x - goal - strength * (u @ vh)
        moves = second.mT @ g + strength * first, g @ first.mT + strength * second
        noise = (2 * h / beta) ** 0.5 * torch.randn(2, chains, 2, 2, generator=generator, dtype=F64)
        first, second = first - h * moves[0] + noise[0], second - h * moves[1] + noise[1]
    squares = (second @ first).square().sum((-2, -1))
    means = []
    for entropy in (True, False):
        path = dln.langevin(
            dln.losses.Quadratic(goal), start, beta=beta, entropy=entropy, t_end=end, dt=0.02,
            chains=chains, generator=generator, save_at=[end],
        )  # fmt: skip
        means.append(path.singular_values[-1].square().sum(-1))
    assert_mean(squares - means[0], torch.tensor(0.0, dtype=F64))
    # Expected to differ by a tenth, six standard errors.
    assert (squares.mean() - means[0].mean()).abs() < (squares.mean() - means[1].mean()).abs()
