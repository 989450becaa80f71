from __future__ import annotations

import itertools
import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.submersion import lift
from dln_geometry.testing import assert_close, assert_mean

DTYPES = [torch.float64, torch.float32]


def gaussian(widths, generator, dtype=torch.float64, batch=()):
    return tuple(
        torch.randn(*batch, b, a, generator=generator, dtype=torch.float64).to(dtype)
        for a, b in itertools.pairwise(widths)
    )


def rotation(d, generator, dtype=torch.float64):
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.linalg.matrix_exp(a - a.mT).to(dtype)


def square_norm(factors):
    return sum(w.square().sum((-2, -1)) for w in factors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("widths", [(3, 4), (4, 2, 3), (2, 5, 1, 4, 3)])
def test_product_and_moments(widths, batch, dtype, generator):
    factors = gaussian(widths, generator, dtype, batch)
    exact = factors[0].double()
    for w in factors[1:]:
        exact = w.double() @ exact
    scale = float(math.prod(torch.linalg.matrix_norm(w).max() for w in factors))
    x = dln.end_to_end(factors)
    assert x.dtype == dtype
    assert_close(x, exact.to(dtype), scale=scale)
    g = dln.moments(factors)
    assert len(g) == len(factors) - 1
    for p, (d, moment) in enumerate(zip(widths[1:-1], g, strict=True)):
        assert moment.shape == (*batch, d, d)
        expected = torch.einsum("...ai,...aj->...ij", factors[p + 1], factors[p + 1])
        expected = expected - torch.einsum("...ia,...ja->...ij", factors[p], factors[p])
        assert_close(moment, expected, ops=100)


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_balanced_looks_at_every_moment_and_member(dtype, generator):
    factors = dln.random_balanced(
        (3, 4, 2, 3), spectrum=(2.0, 0.1), batch=(3,), generator=generator, dtype=dtype
    )
    assert dln.is_balanced(factors).tolist() == [True] * 3
    last = factors[2].clone()
    last[1] *= 1 + 1e-3
    off = (*factors[:2], last)
    assert dln.is_balanced(off).tolist() == [True, False, True]
    # |G| is (2.001e-3) |C| against (2.001 + 1e-6) tr C: below 1e-3 whatever C.
    assert dln.is_balanced(off, rtol=1e-3).tolist() == [True] * 3
    assert dln.is_balanced(factors[:1]).tolist() == [True] * 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "rank", "depth", "widths"),
    [
        ((3, 3), 3, 1, None),
        ((5, 3), 3, 2, None),
        ((3, 5), 2, 3, 4),
        ((4, 3), 2, 5, (3, 2, 6, 3, 2, 4)),
        ((3, 3), 3, 8, 3),
    ],
)
def test_balanced_factors_in_every_gauge(shape, rank, depth, widths, dtype, generator):
    m, n = shape
    left = torch.randn(2, m, rank, generator=generator, dtype=torch.float64).to(dtype)
    right = torch.randn(2, rank, n, generator=generator, dtype=torch.float64).to(dtype)
    x = left @ right
    point = dln.EndToEnd.of(x, depth, rank=rank)
    hidden = [w.shape[-2] for w in dln.balanced_factors(point, widths=widths)[:-1]]
    given = [rotation(d, generator, dtype)[:, : rank if p % 2 else d] for p, d in enumerate(hidden)]
    for gauge in (None, "haar", given):
        factors = dln.balanced_factors(point, widths=widths, gauge=gauge, generator=generator)
        assert len(factors) == depth
        assert_close(dln.end_to_end(factors), x)
        assert dln.is_balanced(factors).all()
        assert_close(square_norm(factors), depth * (point.s ** (2 / depth)).sum(-1), ops=300)
    if depth > 1:
        # The last call used the given gauge: W_1 = Q_1 Lam V^T.
        frame = given[0][:, :rank]
        lam = point.s ** (1 / depth)
        assert_close(factors[0], (frame * lam.unsqueeze(-2)) @ point.vh)
        canonical = dln.balanced_factors(point, widths=widths)
        eye = torch.eye(hidden[0], rank, dtype=dtype)
        assert_close(canonical[0], (eye * lam.unsqueeze(-2)) @ point.vh)


@pytest.mark.parametrize("depth", [10**3, 10**4])
def test_very_deep_factors(depth):
    x = torch.tensor([[2.0, 0.3], [0.1, 0.7]], dtype=torch.float64)
    factors = dln.balanced_factors(dln.EndToEnd.of(x, depth))
    assert len(factors) == depth
    # Every layer carries the rounding of one power.
    assert_close(dln.end_to_end(factors), x, ops=depth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gauge_action(dtype, generator):
    factors = gaussian((3, 4, 2, 3), generator, dtype, batch=(2,))
    gauges = [
        (torch.eye(d) + 0.3 * torch.randn(2, d, d, generator=generator)).to(dtype) for d in (4, 2)
    ]
    moved = dln.gauge_action(factors, gauges)
    assert_close(dln.end_to_end(moved), dln.end_to_end(factors), scale=50)
    inverse = [torch.linalg.inv(g) for g in gauges]
    assert_close(moved[0], gauges[0] @ factors[0])
    assert_close(moved[1], gauges[1] @ factors[1] @ inverse[0], condition=10)
    assert_close(moved[2], factors[2] @ inverse[1], condition=10)
    balanced = dln.random_balanced((3, 4, 2, 3), spectrum=(2.0, 1.0), generator=generator)
    turns = [rotation(d, generator).float() for d in (4, 2)]
    assert bool(dln.is_balanced(dln.gauge_action(balanced, turns)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(4, 3), (3, 5, 4), (3, 4, 2, 2, 3)])
def test_random_balanced(widths, dtype, generator):
    r = min(widths)
    spectrum = torch.tensor([[2.0, 0.5], [0.3, 0.3]], dtype=dtype)
    factors = dln.random_balanced(
        widths, rank=2, spectrum=spectrum, batch=(3, 2), generator=generator, dtype=dtype
    )
    assert [tuple(w.shape) for w in factors] == [
        (3, 2, b, a) for a, b in itertools.pairwise(widths)
    ]
    assert all(w.dtype == dtype for w in factors)
    assert dln.is_balanced(factors).all()
    values = torch.linalg.svdvals(dln.end_to_end(factors))
    assert_close(values[..., :2], spectrum.expand(3, 2, 2))
    full = dln.random_balanced(widths, scale=0.8, generator=generator, dtype=dtype)
    assert_close(torch.linalg.svdvals(dln.end_to_end(full))[:r], torch.full((r,), 0.8, dtype=dtype))


def test_random_balanced_is_haar(generator):
    d = 4
    factors = dln.random_balanced((d, d, d), batch=(20000,), generator=generator)
    q = factors[0]  # V^T against a Haar gauge: Haar in O(4), all singular values 1
    assert_mean(q, torch.zeros(d, d))
    assert_mean(q.square(), torch.full((d, d), 1 / d))
    assert_mean(q**4, torch.full((d, d), 3 / (d * (d + 2))))
    # Both components of O(d) alike, and no correlation between the layers.
    assert_mean(torch.linalg.det(q), 0.0)
    assert_mean(q * factors[1], torch.zeros(d, d))
    # E tr(Q^2) = 1 tells Haar from merely uniform columns.
    assert_mean((q * q.mT).sum((-2, -1)), 1.0)


def test_random_networks_repeat_with_their_generator():
    def draw(seed):
        return dln.random_balanced((3, 3, 3), generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1)[0], draw(1)[0])
    assert not torch.equal(draw(1)[0], draw(2)[0])


@pytest.mark.parametrize("widths", [(3, 4, 5), (4, 3, 3, 4), (2, 5, 1, 3), (3, 3, 3, 3, 3, 3)])
def test_moments_are_conserved_by_every_flow(widths, generator):
    factors = gaussian(widths, generator)
    a, b = (
        torch.randn(widths[-1], widths[0], generator=generator, dtype=torch.float64) for _ in "ab"
    )

    def loss(*layers):
        x = layers[0]
        for w in layers[1:]:
            x = w @ x
        return (torch.cosh(0.3 * x) * a).sum() + torch.atan(x * b).square().sum()

    x = dln.end_to_end(factors).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    velocity = tuple(-w for w in lift(factors, gradient))
    by_autograd = torch.autograd.grad(loss(*(w.requires_grad_() for w in factors)), factors)
    for v, g in zip(velocity, by_autograd, strict=True):
        assert_close(v, -g)
    factors = tuple(w.detach() for w in factors)
    _, rates = torch.func.jvp(lambda *w: dln.moments(w), factors, velocity)
    scale = float(
        sum(torch.linalg.matrix_norm(w) for w in factors)
        * sum(torch.linalg.matrix_norm(v) for v in velocity)
    )
    for rate in rates:
        assert_close(rate, torch.zeros_like(rate), scale=scale)


@pytest.mark.parametrize(
    ("widths", "rank"),
    [
        ((3, 4), 2),
        ((3, 3, 3), 3),
        ((2, 3, 2), 1),
        ((3, 4, 2, 3), 2),
        ((3, 3, 3, 3), 3),
        ((4, 2, 2, 5), 1),
        ((2, 2, 2, 2, 2), 2),
    ],
)
def test_dimension_by_jacobian_rank(widths, rank, generator):
    spectrum = torch.linspace(1.4, 0.6, rank)
    factors = dln.random_balanced(
        widths, rank=rank, spectrum=spectrum, generator=generator, dtype=torch.float64
    )
    lam = torch.linalg.svdvals(factors[0])[:rank]
    frames = [torch.linalg.svd(factors[0]).Vh[:rank].mT]
    for w in factors:
        frames.append(w @ frames[-1] / lam)

    def chart(theta):
        out, start = [], 0
        for q in frames:
            d = q.shape[0]
            a = theta[start : start + d * d].reshape(d, d)
            out.append(torch.linalg.matrix_exp(a - a.mT) @ q)
            start += d * d
        s = lam + theta[start:]
        return torch.cat([((b * s) @ a.mT).flatten() for a, b in itertools.pairwise(out)])

    zero = torch.zeros(sum(d * d for d in widths) + rank, dtype=torch.float64)
    values = torch.linalg.svdvals(torch.autograd.functional.jacobian(chart, zero))
    assert int((values > 1e-10 * values[0]).sum()) == dln.balanced_dimension(widths, rank)
    if rank == min(widths) == max(widths):
        # Full rank: the moment equations are independent, and cut out the manifold.
        def moments(flat):
            sizes = [w.numel() for w in factors]
            parts = flat.split(sizes)
            layers = [a.reshape(w.shape) for a, w in zip(parts, factors, strict=True)]
            return torch.cat([g.flatten() for g in dln.moments(layers)])

        flat = torch.cat([w.flatten() for w in factors])
        values = torch.linalg.svdvals(torch.autograd.functional.jacobian(moments, flat))
        codimension = int((values > 1e-10 * values[0]).sum())
        assert flat.numel() - codimension == dln.balanced_dimension(widths, rank)


def test_dimension_of_menon():
    for d, depth in itertools.product((1, 2, 5), (1, 2, 7)):
        expected = d**2 + (depth - 1) * d * (d - 1) // 2
        assert dln.balanced_dimension((d,) * (depth + 1), d) == expected


@pytest.mark.parametrize(
    ("gauge", "error", "message"),
    [
        ("random", ValueError, 'gauge must be None, "haar" or matrices'),
        (torch.eye(3), TypeError, 'gauge must be None, "haar" or a sequence'),
        ([torch.eye(3)], ValueError, "gauge must hold one matrix per hidden layer, 2, got 1"),
        ([torch.eye(3), torch.eye(4)], ValueError, r"gauge\[1\] must have shape"),
        ([torch.eye(3), 2 * torch.eye(3)], ValueError, r"gauge\[1\] must have orthonormal columns"),
        ([torch.eye(3), "eye"], TypeError, r"gauge\[1\] must be a real array"),
    ],
)
def test_bad_gauges(gauge, error, message):
    point = dln.EndToEnd.of(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 3)
    with pytest.raises(error, match=message):
        dln.balanced_factors(point, gauge=gauge)


@pytest.mark.parametrize(
    ("gauges", "message"),
    [
        ([torch.eye(2), torch.eye(2)], "gauges must hold one matrix per hidden layer, 1, got 2"),
        ([torch.eye(3)], r"gauges\[0\] must have shape \(\.\.\., 2, 2\)"),
        ([torch.zeros(2, 2)], r"gauges\[0\] must be invertible, got a singular matrix"),
        ([torch.full((2, 2), math.nan)], r"gauges\[0\] must be finite"),
    ],
)
def test_bad_gauge_actions(gauges, message):
    with pytest.raises(ValueError, match=message):
        dln.gauge_action((torch.eye(2), torch.eye(2)), gauges)


@pytest.mark.parametrize("rank", [0, 3])
def test_rank_must_fit_the_widths(rank):
    for door in (dln.balanced_dimension, lambda w, r: dln.random_balanced(w, rank=r)):
        with pytest.raises(ValueError, match=r"rank must lie between 1 and 2 \(the smallest width"):
            door((3, 2, 4), rank)


@pytest.mark.parametrize(
    "door",
    [dln.end_to_end, dln.moments, dln.is_balanced, dln.balance, dln.Collapsed.of],
)
def test_factors_must_chain_and_agree(door):
    with pytest.raises(ValueError, match="must chain: W_2 needs 2 columns"):
        door((torch.ones(2, 3), torch.ones(4, 3)))
    with pytest.raises(
        ValueError, match="must share one dtype, got torch.float32 and torch.float64"
    ):
        door((torch.ones(2, 3), torch.ones(4, 2).double()))
    with pytest.raises(ValueError, match="must hold at least one matrix"):
        door(())
    with pytest.raises(ValueError, match="must be finite"):
        door((torch.ones(2, 3), torch.full((4, 2), math.nan)))


def test_widths_must_hold_the_rank():
    point = dln.EndToEnd.of(torch.eye(3), 2)
    with pytest.raises(
        ValueError, match=r"widths must all be at least the rank 3, got \(3, 2, 3\)"
    ):
        dln.balanced_factors(point, widths=2)
