from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.dynamics.noise import excess_rates, rotated
from dln_geometry.geometry.points import orthonormalized
from dln_geometry.support import Depth
from dln_geometry.testing import assert_close, assert_order
from tests.dynamics.noise.routes import F64, start_at


def off_diagonal(x):
    return x - x.diagonal(dim1=-2, dim2=-1).diag_embed()


@pytest.mark.parametrize("depth", [1, 1.5, 2, 2.7, 3, 8, 40])
def test_rotations_make_up_what_flat_noise_lacks(depth):
    """The sum with flat rotations is ``2 a / (s_i -+ s_j)^2``, what ``sqrt(a_ij) dB_ij`` does."""
    rho = torch.tensor([3.0, 2.9, 2.0, 0.7, 0.02], dtype=F64)
    s = (rho / depth**0.5) ** depth
    variance = 0.3
    rates = excess_rates(rho, Depth(depth), variance, left=depth - 1.0, right=depth)
    kernel = dln.depth_kernel(s, depth)
    eye = torch.diag(torch.full((5,), math.inf, dtype=F64))

    def total(sign):
        return 2 * variance * kernel / (s[:, None] + sign * s + eye) ** 2

    def flat(sign):
        return 2 * variance / (rho[:, None] + sign * rho + eye) ** 2

    for got, sign in ((rates.plus, -1), (rates.minus, 1)):
        # The poles of neighbours cancel here, not in the rates.
        assert_close(got + flat(sign), off_diagonal(total(sign)), ops=1000, condition=1e3)
        assert bool((got >= -1e-12).all())
    assert_close(rates.left + variance / rho**2, variance * depth / rho**2)


def test_rates_are_smooth_where_values_collide():
    """``(N^2 - 1)/(6 rho^2)`` and ``(N^2 - 1)/(2 rho^2)`` times the variance, by the series."""
    rho, depth = torch.tensor([2.0, 2.0, 2.0 - 1e-9], dtype=F64), 3.0
    rates = excess_rates(rho, Depth(depth), 1.0)
    off = 1 - torch.eye(3, dtype=F64)
    assert float((rates.plus - off * 8 / 24).abs().max()) < 1e-6
    assert float((rates.minus - off * 8 / 8).abs().max()) < 1e-6


def test_infinite_depth_is_the_limit_of_rates():
    """Flat motion apart, which is one of symmetric matrices there: the sums are compared."""
    u, depth, variance = torch.tensor([0.9, 0.4, 0.37, -1.3], dtype=F64), 1e5, 0.3
    deep = excess_rates(u, Depth(math.inf), variance)
    rho = math.sqrt(depth) * (u / depth).exp()
    # In the metric without 1/N everything is N times as fast.
    near = excess_rates(rho, Depth(depth), variance / depth)
    inf = torch.diag(torch.full((4,), math.inf, dtype=F64))
    gap, sums = rho[:, None] - rho + inf, rho[:, None] + rho + inf
    plus = near.plus + 2 * variance / depth / gap**2
    minus = near.minus + 2 * variance / depth / sums**2
    symmetric = 2 * variance / (u[:, None] - u + inf) ** 2
    for a, b in ((deep.plus + symmetric, plus), (deep.minus, minus)):
        assert float((a - b).abs().max()) < 20 / depth * float(a.abs().max())


def test_the_sign_of_a_value_behind_zero_exchanges_flat_rotations():
    rho, depth, eps = torch.tensor([2.0, 1.0, -0.5], dtype=F64), Depth(4), 1e-7
    signed = excess_rates(rho, depth, 1.0, signed=True)
    plain = excess_rates(rho.abs(), depth, 1.0)
    gap = 2 / (2.0 - 0.5) ** 2 - 2 / (2.0 + 0.5) ** 2
    assert_close(signed.plus[0, 2] - plain.plus[0, 2], gap)
    assert_close(signed.plus[:2, :2], plain.plus[:2, :2])
    both = [
        excess_rates(torch.tensor([2.0, 1.0, x], dtype=F64), depth, 1.0, signed=True)
        for x in (-eps, eps)
    ]
    assert float((both[0].plus - both[1].plus).abs().max()) < 10 * eps


def _expected_turn(plus, minus, r):
    """E of ``P (x) Q`` exactly: the exponential of half the sum of squares of the generators."""
    eye = torch.eye(r, dtype=F64)
    total = torch.zeros(r * r, r * r, dtype=F64)
    for i in range(r):
        for j in range(i + 1, r):
            e = torch.zeros(r, r, dtype=F64)
            e[i, j], e[j, i] = 1.0, -1.0
            for rate, sign in ((plus[i, j], 1), (minus[i, j], -1)):
                # Half of the sum of angles each, or half of the difference with both signs.
                g = 0.5 * (torch.kron(e, eye) + sign * torch.kron(eye, e))
                total += 0.5 * rate * g @ g
    return torch.linalg.matrix_exp(total)


def test_rotations_have_weak_order_two(generator):
    """One step of a flow of constant rates against its exact expectation; order 3 in the rates."""
    r, count = 3, 200_000
    rho = torch.tensor([2.0, 1.4, 0.8], dtype=F64)
    eye = torch.eye(r, dtype=F64).expand(count, r, r)
    sizes, errors = [], []
    for variance in (0.32, 0.24, 0.16, 0.12):
        rates = excess_rates(rho, Depth(3), variance)
        p, q = rotated(eye, eye, rates, lambda d: torch.randn(d, generator=generator, dtype=F64))
        mean = torch.einsum("bij,bkl->ikjl", p, q).reshape(r * r, r * r) / count
        error = mean - _expected_turn(rates.plus, rates.minus, r)
        sizes.append(variance)
        errors.append(float(error.norm()))
    assert_order(sizes, errors, 3, tol=0.6)


@pytest.mark.parametrize(("shape", "rank"), [((3, 3), 3), ((6, 4), 3)])
def test_rotations_keep_frames_orthonormal_and_are_tamed(shape, rank, generator):
    p = start_at(shape, rank, 3, generator).point()
    rho = torch.tensor([2.0, 1e-3, 1e-9], dtype=F64)
    rates = excess_rates(rho, Depth(3), 0.1, left=2.0, right=3.0)
    draw = lambda d: torch.randn(d, generator=generator, dtype=F64)  # noqa: E731
    for frame in rotated(p.u, p.vh.mT, rates, draw):
        assert_close(frame.mT @ frame, torch.eye(rank, dtype=F64))
    rough = p.u + 1e-5 * torch.randn(p.u.shape, generator=generator, dtype=F64)
    better = orthonormalized(rough)
    assert float((better.mT @ better - torch.eye(rank, dtype=F64)).norm()) < 1e-8
