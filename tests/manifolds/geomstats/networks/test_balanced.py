"""Dimensions, tangent spaces and doors of networks. Runs on both backends."""

from __future__ import annotations

from itertools import pairwise

import geomstats.backend as gs
import numpy as np
import pytest
import torch

from dln_geometry.testing import assert_close
from manifolds._geomstats.arrays import as_tensor, to_backend, to_padded
from manifolds.geomstats_dln import BalancedNetworks, HiddenRotations, LayeredNetworks
from tests.manifolds.geomstats.routes import NETWORKS, balanced_layers, equipped, normal, rank_of


@pytest.mark.parametrize(("widths", "rank"), NETWORKS)
def test_dimension_of_networks_is_the_rank_of_a_jacobian(widths, rank, generator):
    """Of the frames and singular values that parametrise them, by autodiff."""
    space = BalancedNetworks(widths, rank)
    frames = [normal(generator, d, rank) for d in widths]
    lam = torch.tensor([1.3, 0.9, 0.6], dtype=torch.float64)[:rank]

    def embed(*parameters):
        *free, lam = parameters
        # The Gram-Schmidt frames of free matrices: every frame, and every move of one.
        q = [torch.linalg.qr(a).Q for a in free]
        layers = [(after * lam) @ before.mT for before, after in pairwise(q)]
        return to_padded(layers, max(widths)).flatten()

    parts = torch.autograd.functional.jacobian(embed, (*frames, lam))
    assert space.dim == rank_of(torch.cat([p.flatten(1) for p in parts], 1))


@pytest.mark.parametrize(("widths", "rank"), NETWORKS)
def test_kernel_of_the_tangent_submersion_is_the_tangent_space(widths, rank, generator):
    space = BalancedNetworks(widths, rank)
    point = space.stack([to_backend(w) for w in balanced_layers(widths, rank, generator)])
    basis = space.embedding_space.basis
    differential = as_tensor(space.tangent_submersion(basis, point)).flatten(1)
    constraints = rank_of(differential) if float(differential.abs().max()) > 0 else 0
    assert len(basis) - constraints == space.dim
    assert rank_of(as_tensor(space.to_tangent(basis, point)).flatten(1)) == space.dim


@pytest.mark.parametrize(("widths", "rank"), [((3, 4, 3, 5), 2), ((3, 3, 3), 2), ((2, 3), 1)])
def test_tangent_submersion_is_the_differential_away_from_the_variety_too(widths, rank, generator):
    space = BalancedNetworks(widths, rank)
    basis = as_tensor(space.embedding_space.basis)
    x, v = (torch.einsum("k,k...->...", normal(generator, len(basis)), basis) for _ in range(2))
    h = 1e-5
    ahead, behind = (as_tensor(space.submersion(to_backend(x + s * v))) for s in (h, -h))
    exact = as_tensor(space.tangent_submersion(to_backend(v), to_backend(x)))
    # Error of the quotient h^2 / 6 times third derivatives.
    assert float((exact - (ahead - behind) / (2 * h)).abs().max()) < 1e-7 * float(exact.abs().max())


def test_global_generators_are_the_hosts(generator):
    """Random points follow geomstats' seed; the library's own draws do not touch it."""
    gs.random.seed(3)
    space = BalancedNetworks((2, 3, 2))
    one = as_tensor(space.random_point(2))
    gs.random.seed(3)
    assert_close(as_tensor(space.random_point(2)), one)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    state = torch.get_rng_state()
    space.belongs(to_backend(one), atol=1e-9)
    space.to_tangent(to_backend(one), to_backend(one))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BalancedNetworks((3, 3, 3), 2, True), "positive_det must be False below"),
        (lambda: BalancedNetworks((3, 2, 3), 3), "rank must lie between 1 and 2"),
        (lambda: LayeredNetworks((3,)), "widths must hold at least two"),
        (lambda: HiddenRotations((3, 0, 2)), "widths must be positive"),
        (lambda: LayeredNetworks((2, 3)).stack([gs.ones((2, 3))]), "layers must have the shapes"),
        (lambda: LayeredNetworks((2, 3)).layers(gs.ones((2, 3))), "point must have shape"),
        (
            lambda: BalancedNetworks((2, 2, 2)).projection(gs.zeros((2, 2, 2))),
            "point must have end-to-end matrices of rank 2",
        ),
        (
            lambda: equipped((2, 2, 2)).fiber_bundle.horizontal_lift(gs.ones((2, 2))),
            "base_point or fiber_point must be given",
        ),
    ],
)
def test_doors_say_what_they_want(make, message):
    with pytest.raises(ValueError, match=message):
        make()
