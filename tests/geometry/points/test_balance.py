from __future__ import annotations

import itertools
import math

import pytest
import scipy.optimize
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close

DTYPES = [torch.float64, torch.float32]


def gaussian(widths, generator, dtype=torch.float64, batch=()):
    return tuple(
        torch.randn(*batch, b, a, generator=generator, dtype=torch.float64).to(dtype)
        for a, b in itertools.pairwise(widths)
    )


def square_norm(factors):
    return sum(w.square().sum((-2, -1)) for w in factors)


def distance(factors, others):
    return square_norm([a - b for a, b in zip(factors, others, strict=True)]).sqrt()


def minimise(f, size, generator):
    """Minimise a function of a vector by BFGS with gradients by autograd."""

    def both(theta):
        t = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        value = f(t)
        value.backward()
        return value.item(), t.grad.numpy()

    start = 0.1 * torch.randn(size, generator=generator, dtype=torch.float64)
    return scipy.optimize.minimize(both, start.numpy(), jac=True, method="BFGS", tol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(
    "widths", [(3, 4), (4, 3, 5), (3, 3, 3, 3), (3, 5, 4, 6), (4, 3, 3, 4, 3, 5)]
)
def test_balance_keeps_the_product_and_balances(widths, rank, dtype, generator):
    factors = list(gaussian(widths, generator, dtype, batch=(2,)))
    if rank is not None:
        u, s, vh = torch.linalg.svd(factors[0], full_matrices=False)
        factors[0] = (u[..., :rank] * s[..., :rank].unsqueeze(-2)) @ vh[..., :rank, :]
    x = dln.end_to_end(factors)
    scale = float(math.prod(torch.linalg.matrix_norm(w, 2).max() for w in factors))
    out = dln.balance(factors)
    assert [w.shape for w in out] == [w.shape for w in factors]
    assert_close(dln.end_to_end(out), x, scale=scale)
    assert dln.is_balanced(out).all()
    depth = len(factors)
    assert_close(
        square_norm(out),
        depth * (torch.linalg.svdvals(x)[..., : rank or 3] ** (2 / depth)).sum(-1),
        ops=1000,
    )
    again = dln.balance(out)
    for a, b in zip(again, out, strict=True):
        # A root of what is left of X brings its relative error, s_max/s_min roundings.
        ratio = float(
            (torch.linalg.svdvals(x)[..., 0] / torch.linalg.svdvals(x)[..., (rank or 3) - 1]).max()
        )
        assert_close(a, b, scale=float(b.abs().max()), condition=ratio)


@pytest.mark.parametrize(
    "widths", [(3, 3, 3), (2, 3, 2), (3, 3, 3, 3), (2, 3, 4, 3), (2, 2, 2, 2, 2)]
)
def test_balance_has_the_smallest_norm_of_the_fibre(widths, generator):
    factors = gaussian(widths, generator)
    x = dln.end_to_end(factors)
    shapes = [w.shape for w in factors[:-1]]

    def norm(theta):
        # All layers but the last are free; the last is the smallest that restores X.
        layers, start = [], 0
        for shape, w in zip(shapes, factors[:-1], strict=True):
            size = shape[0] * shape[1]
            layers.append(w + theta[start : start + size].reshape(shape))
            start += size
        rest = layers[0]
        for w in layers[1:]:
            rest = w @ rest
        return square_norm([*layers, x @ torch.linalg.pinv(rest)])

    best = minimise(norm, sum(a * b for a, b in shapes), generator)
    assert_close(square_norm(dln.balance(factors)), best.fun, ops=1000)


@pytest.mark.parametrize("widths", [(3, 3, 3), (3, 5, 4), (4, 2, 3)])
def test_balance_is_the_nearest_point_at_depth_two(widths, generator):
    factors = gaussian(widths, generator)
    out = dln.balance(factors)
    nearest = distance(out, factors)
    d = widths[1]
    best = math.inf
    for start in (torch.eye(d), torch.diag(torch.tensor([-1.0] + [1.0] * (d - 1)))):
        # Both components of O(d).
        start = start.double()

        def moved(theta, start=start):
            a = theta.reshape(d, d)
            turn = torch.linalg.matrix_exp(a - a.mT) @ start
            return distance((turn @ out[0], out[1] @ turn.mT), factors).square()

        best = min(best, minimise(moved, d * d, generator).fun)
    assert_close(nearest.square(), best, ops=1000)


@pytest.mark.parametrize("widths", [(3, 3, 3, 3), (3, 5, 4, 4), (3, 2, 4, 3, 3)])
def test_no_rotation_brings_balanced_factors_nearer(widths, generator):
    base = dln.random_balanced(widths, spectrum=2.0, generator=generator, dtype=torch.float64)
    factors = [
        w + 0.1 * torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in base
    ]
    out = dln.balance(factors)
    nearest = distance(out, factors)
    # Nearer than the base in its own gauge is at most its distance plus that of the fibres.
    hidden = widths[1:-1]
    for scale in (1.0, 0.1, 1e-2, 1e-4):
        for _ in range(20):
            turns = []
            for d in hidden:
                a = scale * torch.randn(d, d, generator=generator, dtype=torch.float64)
                turns.append(torch.linalg.matrix_exp(a - a.mT))
            moved = dln.gauge_action(out, turns)
            assert distance(moved, factors) >= nearest * (1 - 1e-14)

    # Stationary: the gradient of the squared distance along every rotation vanishes.
    def squared(*generators):
        turns = [torch.linalg.matrix_exp(a - a.mT) for a in generators]
        return distance(dln.gauge_action(out, turns), factors).square()

    zeros = tuple(torch.zeros(d, d, dtype=torch.float64) for d in hidden)
    for slope in torch.autograd.functional.jacobian(squared, zeros):
        # Sweeps stop when no frame moves by more than ten roundings.
        assert_close(slope, torch.zeros_like(slope), ops=1000, scale=square_norm(out))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("widths", "rank"), [((3, 4), 2), ((3, 3, 3), 3), ((4, 3, 5, 4), 2), ((3, 3, 4, 3, 3, 3), 2)]
)
def test_balanced_factors_stay_where_they_are(widths, rank, dtype, generator):
    spectrum = torch.linspace(1.5, 0.3, rank)
    factors = dln.random_balanced(
        widths, rank=rank, spectrum=spectrum, batch=(2,), generator=generator, dtype=dtype
    )
    for a, b in zip(dln.balance(factors), factors, strict=True):
        assert_close(a, b, ops=1)
    # Also where the input is balanced only up to more than rounding.
    near = [w * (1 + 1e3 * torch.finfo(dtype).eps * p) for p, w in enumerate(factors)]
    for a, b in zip(dln.balance(near), factors, strict=True):
        assert_close(a, b, ops=1e3 * len(factors) ** 2)


def test_balanced_deep_factors_with_spread_spectra_stay_where_they_are(generator):
    # In the product the second singular value is below the rounding of the first.
    spectrum = (1.0, 0.1**30)
    factors = dln.random_balanced(
        (3,) * 31, rank=2, spectrum=spectrum, generator=generator, dtype=torch.float64
    )
    for a, b in zip(dln.balance(factors), factors, strict=True):
        assert_close(a, b, ops=1000)


def test_balance_reaches_back_over_small_perturbations(generator):
    """The gauge is the nearest one: a small step off the manifold comes back to its start."""
    base = dln.random_balanced(
        (3, 4, 3, 3), spectrum=(2.0, 1.0, 0.5), generator=generator, dtype=torch.float64
    )
    noise = gaussian((3, 4, 3, 3), generator)
    for size in (1e-3, 1e-5):
        off = [w + size * e for w, e in zip(base, noise, strict=True)]
        # The nearest balanced factors of a nearby X are at most a multiple of the step away.
        assert distance(dln.balance(off), base) < 30 * size * float(square_norm(noise).sqrt())


@pytest.mark.parametrize("depth", [1, 2, 30])
def test_collapsing_balanced_layers_keeps_what_their_product_loses(depth, generator):
    """Singular values of X below its rounding live on in the layers."""
    low = torch.tensor([1.0, 0.1], dtype=torch.float64)
    layers = dln.random_balanced(
        (4,) * (depth + 1), rank=2, spectrum=low**depth, generator=generator, dtype=torch.float64
    )
    pair = dln.Collapsed.of(layers)
    assert pair.rank == 2
    roots = pair.singular_values() ** (1 / depth)
    assert_close(roots, low, ops=1000)
    assert_close(pair.matrix, dln.end_to_end(layers), ops=1000)
    assert_close(pair.L @ pair.L.mT, layers[-1] @ layers[-1].mT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("depth", [2, 8, 24, 64])
def test_long_products_keep_x(depth, dtype, generator):
    """The product of the norms outgrows the norm of the product."""
    layers = [
        (torch.randn(20, 20, generator=generator, dtype=torch.float64) / 20**0.5).to(dtype)
        for _ in range(depth)
    ]
    x = dln.end_to_end(layers)
    for other in (dln.end_to_end(dln.balance(layers)), dln.Collapsed.of(layers).matrix):
        assert_close(other, x, ops=300, scale=float(torch.linalg.matrix_norm(x)))


def test_moments_know_no_scale():
    one = torch.eye(2)
    for scale in (1e-30, 1.0, 1e30):
        assert bool(dln.is_balanced([scale * one] * 3))
        assert not bool(dln.is_balanced([scale * one, scale * torch.ones(2, 2)]))
