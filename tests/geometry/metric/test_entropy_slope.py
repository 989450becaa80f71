"""The derivatives of the entropy in the singular values and in the matrix."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.metric import entropy_pull, entropy_slope
from dln_geometry.support import Depth
from dln_geometry.testing import assert_close
from tests.geometry.metric.routes import diagonal_point


def test_every_singular_value_raises_the_entropy(generator):
    for depth in (1.5, 2, 4, math.inf):
        s = torch.rand(20, 5, generator=generator, dtype=torch.float64)
        assert bool((entropy_slope(s, Depth(depth)) > 0).all())


@pytest.mark.parametrize("depth", [1.5, 2, 2.7, 3, 8, math.inf])
@pytest.mark.parametrize(
    "s", [(1.5, 0.8, 0.3), (1.2, 1.2, 0.4), (0.7, 0.7, 0.7), (1.0 + 1e-9, 1.0, 0.2)]
)
def test_gradient_in_the_spectrum(s, depth):
    s = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    value = lambda s: dln.entropy(diagonal_point(s, depth))  # noqa: E731
    assert torch.autograd.gradcheck(value, s)
    assert torch.autograd.gradgradcheck(value, s)
    (by_autograd,) = torch.autograd.grad(value(s), s)
    slope = entropy_slope(s.detach(), Depth(depth))
    assert_close(slope, by_autograd)
    closed = dln.entropy_gradient(diagonal_point(s.detach(), depth))
    assert_close(closed, torch.diag(slope))
    assert torch.autograd.gradcheck(lambda s: entropy_slope(s, Depth(depth)), s)


@pytest.mark.parametrize("gap", [0.0, 1e-16, 1e-12, 1e-8, 1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("depth", [1.5, 2, 3, 64, math.inf])
def test_slope_is_accurate_at_every_gap(depth, gap):
    s = torch.tensor([1.3 * (1 + gap), 1.3, 0.2], dtype=torch.float64)
    slope = entropy_slope(s, Depth(depth))
    with mpmath.workdps(80):
        x = [mpmath.mpf(v) for v in s.tolist()]
        power = 0 if math.isinf(depth) else mpmath.mpf(2) / mpmath.mpf(depth)

        def term(a, b):
            if a == b:
                return (1 - power / 2) / (2 * a)
            if power == 0:
                return a / (a**2 - b**2) - 1 / (a * mpmath.log(a**2 / b**2))
            return a / (a**2 - b**2) - power / 2 * a ** (power - 1) / (a**power - b**power)

        exact = [sum(term(a, b) for k, b in enumerate(x) if k != i) for i, a in enumerate(x)]
    assert_close(slope, [float(v) for v in exact], ops=100)


@pytest.mark.parametrize("widths", [None, 3, 6])
@pytest.mark.parametrize("depth", [2, 3, 2.5])
def test_gradient_along_the_matrices(widths, depth, generator):
    x = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    value = dln.entropy(dln.EndToEnd.of(x, depth), widths=widths)
    (by_autograd,) = torch.autograd.grad(value.sum(), x)
    closed = dln.entropy_gradient(dln.EndToEnd.of(x.detach(), depth), widths=widths)
    assert_close(closed, by_autograd, condition=10)
    assert torch.autograd.gradcheck(
        lambda x: dln.entropy(dln.EndToEnd.of(x, depth), widths=widths), x
    )
    assert torch.autograd.gradcheck(
        lambda x: dln.entropy_gradient(dln.EndToEnd.of(x, depth), widths=widths), x
    )


def test_gradient_at_lower_rank_and_unequal_widths(generator):
    """Along the matrices of rank 2, by moving the thin factors of X."""
    left = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    right = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    widths = (3, 5, 2, 4)
    point = dln.EndToEnd.of(left @ right, 3, rank=2)
    gradient = dln.entropy_gradient(point, widths=widths)
    dl = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    dr = torch.randn(2, 3, generator=generator, dtype=torch.float64)

    def value(t):
        x = (left + t * dl) @ (right + t * dr)
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        # Only the spectrum enters.
        held = dln.EndToEnd(u[:, :2].detach(), s[:2], vh[:2].detach(), 3, False)
        return dln.entropy(held, widths=widths)

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(t), t)
    assert_close(slope, (gradient * (dl @ right + left @ dr)).sum(), condition=10)


@pytest.mark.parametrize("depth", [2, 2.7, 4])
def test_riemannian_gradient(depth):
    """grad S = U diag(N s^{2-2/N} dS/ds) V^T."""
    point = diagonal_point((1.6, 0.9, 0.9), depth)
    slope = entropy_slope(point.s, Depth(depth))
    expected = torch.diag(depth * point.s ** (2 - 2 / depth) * slope)
    assert_close(dln.cometric(point, dln.entropy_gradient(point)), expected)


def test_gradient_at_zero_singular_values():
    # At depth 2 the entropy is 1/2 sum log(s_i + s_j), smooth up to one zero.
    at = dln.entropy_gradient(diagonal_point((1.5, 0.0), 2))
    assert_close(at, [[0.5 / 1.5, 0.0], [0.0, 0.5 / 1.5]])
    # Below depth 2 the kernel starts with a power of s_i above 1.
    below = dln.entropy_gradient(diagonal_point((1.5, 0.0), 1.5))
    assert_close(below, [[(1 - 1 / 1.5) / 1.5, 0.0], [0.0, 0.0]])
    message = "point must have positive singular values for the entropy gradient, got a zero"
    for s, depth in (((1.5, 0.0), 3), ((1.5, 0.0), math.inf), ((1.5, 0.0, 0.0), 2)):
        with pytest.raises(ValueError, match=message):
            dln.entropy_gradient(diagonal_point(s, depth))
    with pytest.raises(ValueError, match=message):
        dln.entropy_gradient(diagonal_point((1.5, 0.0), 2), widths=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("depth", [1, 1.5, 2, 2.7, 3, 40, 1e4, math.inf])
def test_the_pull_of_pairs_is_the_slope(depth, dtype):
    """Values apart, nearly equal, equal, and far below the others."""
    s = torch.tensor([[3.0, 2.999, 2.0, 0.7, 0.7], [5.0, 1e-3, 1e-9, 1e-18, 1e-18]], dtype=dtype)
    for excess in (0.0, 3.0):
        pull = entropy_pull(s.log(), depth, excess=excess)
        assert_close(pull, s * entropy_slope(s, Depth(depth), excess=excess), ops=30)


@pytest.mark.parametrize("depth", [1.5, 2.7, 40, math.inf])
@pytest.mark.parametrize("r", [5, 16, 17, 60])
def test_pull_is_the_slope_times_the_value_at_few_and_at_many_values(r, depth, generator):
    s = torch.rand(3, r, generator=generator, dtype=torch.float64).sort(descending=True).values
    s = s + 0.1
    assert_close(
        entropy_pull(s.log(), depth, excess=3.0), s * entropy_slope(s, Depth(depth), excess=3.0)
    )
