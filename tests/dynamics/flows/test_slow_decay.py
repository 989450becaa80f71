"""The slow flow of a small decay: along the minimisers of the loss, as the balancing flow."""

from __future__ import annotations

import torch

import dln_geometry as dln
from dln_geometry.testing import assert_order


def test_small_decay_balances_along_the_minimisers(generator):
    """At time ``tau/k`` the flow of ``E + (k/2)|W|^2`` is within O(k) of balancing at time tau."""
    layers = [torch.randn(2, 2, generator=generator, dtype=torch.float64) for _ in range(2)]
    layers = [w + 1.5 * torch.eye(2, dtype=torch.float64) for w in layers]
    loss, tau = dln.losses.Quadratic(dln.end_to_end(layers)), 0.4
    limit = dln.balancing_flow(layers, tau)
    decays, errors = [0.04, 0.02, 0.01, 0.005], []
    for k in decays:
        path = dln.gradient_flow(loss, layers, t_end=tau / k, decay=k, rtol=1e-9, save_at=2)
        gaps = [(a - b).norm() for a, b in zip(path.final, limit, strict=True)]
        errors.append(float(torch.stack(gaps).norm()))
    assert_order(decays, errors, 1)
