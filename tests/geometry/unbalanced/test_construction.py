from __future__ import annotations

import itertools

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close

F64 = torch.float64


def gaussian(widths, generator, dtype=F64, batch=()):
    return tuple(
        torch.randn(*batch, b, a, generator=generator, dtype=F64).to(dtype)
        for a, b in itertools.pairwise(widths)
    )


def ranked(m, n, r, generator):
    a, b = gaussian((n, r, m), generator)
    return b @ a


def assert_layers(network, x, moments, widths, ops=3000):
    assert network.widths == tuple(widths)
    assert network[0].dtype == x.dtype
    size = max(float(w.abs().max()) for w in network) * max(widths)
    assert_close(
        network.matrix, x.expand(network.matrix.shape), ops=ops, scale=size ** len(network)
    )
    for got, g in zip(dln.moments(network), moments, strict=True):
        assert_close(got, g.expand(got.shape).to(x.dtype), ops=ops, scale=size**2)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize(
    ("widths", "rank", "lam"),
    [
        ((5, 3, 4), 2, 1.3),
        ((5, 3, 4), 3, -0.7),
        ((4, 4, 4), 4, 0.0),
        ((2, 3, 5), 2, 1e6),
        ((2, 7, 3), 1, 0.0),
        ((3, 3, 4, 4), 2, 0.4),
        ((3, 3, 4, 4), 3, [0.4, 1.1]),
        ((2, 3, 3, 4, 4), 2, [1.0, -1.0, 2.0]),
        ((1, 2, 2, 1), 1, [0.5, -0.5]),
        ((3, 2, 3), 0, -2.0),
        ((3, 4), 3, []),
    ],
)
def test_multiples_of_the_identity(widths, rank, lam, dtype, generator):
    m, n = widths[-1], widths[0]
    x = ranked(m, n, rank, generator) if rank else torch.zeros(m, n, dtype=F64)
    x = x.to(dtype)
    network = dln.lambda_balanced(x, lam, widths)
    values = lam if isinstance(lam, list) else [lam] * (len(widths) - 2)
    moments = [k * torch.eye(d, dtype=F64) for k, d in zip(values, widths[1:-1], strict=True)]
    assert_layers(network, x, moments, widths)


@pytest.mark.parametrize(
    ("widths", "lam", "inequality"),
    [
        ((5, 4, 3), 1.0, "d_1 - d_2 <= 0, got 1"),
        ((3, 4, 5), -1.0, "d_1 - d_0 <= 0, got 1"),
        ((3, 3, 3, 2), [1.0, 0.5], "<="),
        ((4, 4, 2, 4), [0.0, 0.0], None),
        ((4, 3, 4, 4), [1.0, -2.0], "<="),
    ],
)
def test_the_inequality_that_fails_is_named(widths, lam, inequality, generator):
    x = ranked(widths[-1], widths[0], 1, generator)
    if inequality is None:
        assert bool(dln.is_balanced(dln.lambda_balanced(x, lam, widths), rtol=1e-12))
        return
    with pytest.raises(ValueError, match="need widths") as error:
        dln.lambda_balanced(x, lam, widths)
    assert inequality in str(error.value)


def test_scalar_existence_is_that_of_moments_drawn_from_chains(generator):
    # [1, 2] holds a closed chain: squares 2 on the middle layer, 0 on the outer ones.
    network = dln.lambda_balanced(torch.zeros(1, 1, dtype=F64), [2.0, -2.0], (1, 1, 1, 1))
    assert torch.stack([w.square().flatten()[0] for w in network]).tolist() == pytest.approx(
        [0, 2, 0]
    )


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize(
    "widths", [(3, 3, 3), (4, 4, 4, 4), (2, 5, 3), (3, 5, 2), (5, 2, 4), (1, 2, 1), (3, 5, 4, 2)]
)
def test_moments_of_random_layers_have_layers(widths, dtype, generator):
    factors = gaussian(widths, generator)
    x = dln.end_to_end(factors).to(dtype)
    moments = dln.moments(factors)
    assert_layers(dln.with_moments(x, moments, widths), x, moments, widths, ops=3e4)


def test_every_moment_has_layers_where_x_is_invertible(generator):
    x = torch.randn(2, 3, 3, generator=generator, dtype=F64)
    raw = torch.randn(3, 1, 3, 3, generator=generator, dtype=F64) * 5
    moments = [raw + raw.mT, torch.diag(torch.tensor([1.0, 0.0, -4.0], dtype=F64))]
    network = dln.with_moments(x, moments)
    assert network.matrix.shape == (3, 2, 3, 3)
    assert_layers(network, x, moments, (3, 3, 3, 3))


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("signs", [(1, 1, 0, 0), (1, 1, -1, -1), (1, -1, -1, 0), (-1, -1, 0, 0)])
def test_existence_at_depth_two_is_the_count_of_signs(rank, signs, generator):
    x = ranked(2, 2, rank, generator) if rank else torch.zeros(2, 2, dtype=F64)
    q = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=F64))[0]
    g = q @ torch.diag(torch.tensor([s * (1.0 + k) for k, s in enumerate(signs)], dtype=F64)) @ q.mT
    assert_layers(dln.with_moments(x, [g]), x, [g], (2, 4, 2), ops=1e5)


@pytest.mark.parametrize("sign", [1, -1])
def test_too_many_eigenvalues_of_one_sign_are_refused(sign, generator):
    x = ranked(2, 2, 2, generator)
    with pytest.raises(ValueError, match="at most d_" + ("2" if sign > 0 else "0") + " = 2"):
        dln.with_moments(x, [sign * torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=F64))])


def test_wrong_arguments_say_what_came():
    x = torch.ones(2, 2)
    with pytest.raises(ValueError, match="symmetric"):
        dln.with_moments(x, [torch.tensor([[0.0, 1.0], [0.0, 0.0]])])
    with pytest.raises(ValueError, match="depth - 1 = 2"):
        dln.with_moments(x, [torch.eye(2)], (2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 3, 3\)"):
        dln.with_moments(x, [torch.eye(2)], (2, 3, 2))
    with pytest.raises(TypeError, match="sequence of matrices"):
        dln.with_moments(x, torch.eye(2))
    with pytest.raises(ValueError, match="start with 2"):
        dln.lambda_balanced(x, 1.0, (3, 2, 2))
    with pytest.raises(ValueError, match="depth - 1 = 1"):
        dln.lambda_balanced(x, [1.0, 2.0], (2, 2, 2))
    with pytest.raises(ValueError, match="at least the rank 2"):
        dln.lambda_balanced(torch.eye(2), 1.0, (2, 1, 2))


def test_a_small_matrix_that_is_not_symmetric_is_seen_beside_a_large_one():
    both = torch.stack([1e20 * torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 0.0]])])
    with pytest.raises(ValueError, match="symmetric, got an asymmetry of 1"):
        dln.with_moments(torch.ones(2, 2), [both])


@pytest.mark.parametrize("widths", [(2, 2, 2), (3, 2, 4), (2, 3, 2, 2)])
def test_complex_layers_have_their_hermitian_moments(widths, generator):
    """Pairs of modes and eigenvectors, and the iteration where there are none."""
    C128 = torch.complex128
    layers = [
        torch.randn(b, a, generator=generator, dtype=C128) for a, b in itertools.pairwise(widths)
    ]
    x, moments = dln.end_to_end(layers), dln.moments(layers)
    assert_layers(dln.with_moments(x, moments, widths), x, moments, widths, ops=1e6)
    scalar = dln.lambda_balanced(
        x[None].to(torch.complex64), 0.3, (widths[0], widths[0], widths[-1])
    )
    assert scalar.dtype == torch.complex64
    with pytest.raises(ValueError, match="must be symmetric"):
        dln.with_moments(x, [1j * g for g in moments], widths)
