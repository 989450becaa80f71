"""Networks and helpers that the tests of the manifolds for geomstats share."""

from __future__ import annotations

import torch

import dln_geometry as dln
from manifolds.geomstats_dln import BalancedNetworks, HiddenRotationAction

NETWORKS = [
    ((2, 2, 2), 2),
    ((3, 3, 3, 3), 3),
    ((2, 4, 3), 2),
    ((3, 4, 2, 5), 2),
    ((3, 3, 3), 2),
    ((3, 4, 3, 5), 2),
    ((2, 1, 3), 1),
    ((2, 3), 2),
    ((3, 4), 2),
]


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def balanced_layers(widths, rank, generator):
    """Return the factors of a balanced network with two equal singular values."""
    spectrum = torch.tensor([1.5, 1.5, 0.8], dtype=torch.float64)[:rank]
    return dln.random_balanced(widths, rank=rank, spectrum=spectrum, generator=generator)


def equipped(widths, rank=None, positive_det=False):
    space = BalancedNetworks(widths, rank, positive_det)
    space.equip_with_group_action(HiddenRotationAction(widths))
    space.equip_with_quotient()
    return space


def rank_of(jacobian):
    s = torch.linalg.svdvals(jacobian)
    return int((s > 1e-9 * s[0]).sum())
