"""Strata of the fibres: patterns, dimensions, and layers of every pattern."""

from __future__ import annotations

import pytest
import torch

import dln_geometry as dln
from dln_geometry import landscape
from dln_geometry.testing import assert_close


def tangent_dimension(layers):
    """Return the dimension of the hidden and outer changes of basis that keep the product.

    The rank of ``(c_0, .., c_N) -> (c_p W_p - W_p c_{p-1})``, less that of ``c_N X - X c_0``.
    """
    widths, x = layers.widths, layers.matrix
    rows, products = [], []
    for p, d in enumerate(widths):
        for unit in torch.eye(d * d, dtype=torch.float64).view(-1, d, d):
            v = [torch.zeros_like(w) for w in layers]
            if p > 0:
                v[p - 1] = unit @ layers[p - 1]
            if p < len(layers):
                v[p] = -layers[p] @ unit
            rows.append(torch.cat([a.flatten() for a in v]))
            products.append(dln.pushforward(layers, v).flatten())
    assert x.shape == (widths[-1], widths[0])
    # Along one orbit the product has constant rank.
    return _rank(torch.stack(rows)) - _rank(torch.stack(products))


def _rank(a):
    return int((torch.linalg.svdvals(a) > 1e-9).sum())


@pytest.mark.parametrize(
    ("widths", "rank"), [((2, 2, 2), 1), ((2, 3, 2), 0), ((1, 2, 2, 1), 0), ((2, 1, 2, 2), 1)]
)
def test_dimensions_of_all_strata(widths, rank, generator):
    patterns = list(landscape.strata(widths, rank))
    assert len({tuple(sorted(p.intervals.items())) for p in patterns}) == len(patterns)
    for pattern in patterns:
        assert pattern.rank == rank
        layers = pattern.layers(generator=generator)
        assert landscape.RankPattern.of(layers) == pattern
        assert landscape.RankPattern.from_ranks(widths, pattern.ranks) == pattern
        assert pattern.dimension == tangent_dimension(layers)
    # On a stratum of the largest dimension the product has the fibre for its level set.
    largest = max(patterns, key=lambda p: p.dimension)
    layers = largest.layers(generator=generator)
    jacobian = torch.cat(
        [
            torch.einsum("ma,bn->abmn", a, b).flatten(2).flatten(0, 1)
            for a, b in zip(*_partial(layers), strict=True)
        ]
    )
    count = sum(w.numel() for w in layers)
    assert count - _rank(jacobian) == landscape.fibre_dimension(widths, rank)


def _partial(layers):
    n = len(layers)
    above, below = [], []
    for p in range(n):
        a = torch.eye(layers[-1].shape[0], dtype=torch.float64)
        for w in reversed(layers[p + 1 :]):
            a = a @ w
        b = torch.eye(layers[0].shape[1], dtype=torch.float64)
        for w in layers[:p]:
            b = w @ b
        above.append(a)
        below.append(b)
    return above, below


def test_layers_have_the_product_that_was_asked_for(generator):
    x = torch.randn(3, 1, generator=generator) @ torch.randn(1, 4, generator=generator)
    pattern = next(p for p in landscape.strata((4, 3, 2, 3), 1) if p.ranks[(2, 1)] == 2)
    layers = pattern.layers(x, generator=generator)
    assert layers.dtype == torch.float32
    assert_close(layers.matrix, x, ops=1e3)
    with pytest.raises(ValueError, match="x must have the rank 1"):
        pattern.layers(torch.zeros(3, 4))


def test_full_rank_fibres_are_orbits():
    # One GL orbit for every hidden layer.
    for widths in ((3, 3, 3), (3, 3, 3, 3)):
        assert landscape.fibre_dimension(widths, 3) == 9 * (len(widths) - 2)
        assert [p.dimension for p in landscape.strata(widths, 3)] == [9 * (len(widths) - 2)]


def test_impossible_ranks_are_refused():
    with pytest.raises(ValueError, match="ranks must be those of layers"):
        landscape.RankPattern.from_ranks(
            (2, 1, 2), {(0, 0): 2, (1, 1): 1, (2, 2): 2, (1, 0): 1, (2, 1): 1, (2, 0): 2}
        )
    with pytest.raises(ValueError, match="rank must lie between"):
        landscape.fibre_dimension((2, 1, 2), 2)


def test_complex_layers_have_their_pattern(generator):
    pattern = landscape.RankPattern(
        (3, 3, 2), {(0, 2): 1, (0, 1): 1, (0, 0): 1, (1, 1): 1, (2, 2): 1}
    )
    x = torch.randn(2, 1, generator=generator, dtype=torch.complex128)
    x = x @ torch.randn(1, 3, generator=generator, dtype=torch.complex128)
    layers = pattern.layers(x, generator=generator)
    assert layers.dtype == x.dtype
    assert_close(layers.matrix, x, ops=1e4)
    assert landscape.RankPattern.of(layers) == pattern


def test_strata_are_refused_at_the_call():
    with pytest.raises(ValueError, match="rank must lie between 0 and the smallest"):
        landscape.strata((2, 2, 2), rank=5)
