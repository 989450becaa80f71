from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.metric import apply_kernel, cometric_of_matrix
from dln_geometry.geometry.points import haar_stiefel
from dln_geometry.support import Depth
from dln_geometry.testing import assert_close, assert_order

DEPTHS = [Depth(n) for n in (1.0, 1.5, 2.0, 3.0, 7.0, math.inf)]
SPECTRA = {
    "distinct": (1.9, 0.8, 0.3),
    "equal": (1.2, 1.2, 1.2),
    "pair": (1.2, 1.2, 0.5),
    "near": (1.2, 1.2 - 1e-9, 1.2 - 2e-9),
    "wide": (3.0, 0.05, 0.05 - 1e-9),
}
depths = pytest.mark.parametrize("depth", DEPTHS)
spectra = pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
shapes = pytest.mark.parametrize("shape", [(3, 3), (5, 3), (3, 4)], ids=str)


def gaussian(shape, generator, dtype=torch.float64):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def matrix(shape, spectrum, generator, batch=(), dtype=torch.float64):
    s = torch.tensor(spectrum, dtype=torch.float64)
    m, n = shape
    u = haar_stiefel(batch, m, len(s), generator=generator, dtype=s.dtype, device=s.device)
    v = haar_stiefel(batch, n, len(s), generator=generator, dtype=s.dtype, device=s.device)
    return ((u * s) @ v.mT).to(dtype)


def svd(x):
    return torch.linalg.svd(x, full_matrices=False)


def is_normalized(depth):
    return math.isinf(depth)


def integer_cometric(x, g, depth):
    """Return A(G) as the sum over the layers, fractional powers taken by eigh."""

    def power(c, exponent):
        values, q = torch.linalg.eigh(c)
        return (q * values.unsqueeze(-2) ** exponent) @ q.mT

    left, right = x @ x.mT, x.mT @ x
    return sum(
        power(left, (depth - p) / depth) @ g @ power(right, (p - 1) / depth)
        for p in range(1, depth + 1)
    )


@shapes
@depths
@spectra
def test_gradcheck_at_any_spectrum(spectrum, depth, shape, generator):
    x = matrix(shape, spectrum, generator).requires_grad_()
    g = gaussian(shape, generator).requires_grad_()

    def apply(x, g):
        return cometric_of_matrix(x, g, depth, is_normalized(depth))

    # The numerical side of gradcheck steps by 1e-6, and near a small singular value s its own
    # error is that of a step relative to s.
    step = 1e-6 * min(spectrum)
    assert torch.autograd.gradcheck(apply, (x, g), eps=step, check_forward_ad=depth != 1.0)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("normalized", [False, True])
def test_distinct_values_agree_with_autograd_through_matrix_powers(depth, normalized, generator):
    x = matrix((3, 3), (1.9, 0.8, 0.3), generator, batch=(2,)).requires_grad_()
    g, h = gaussian((2, 3, 3), generator).requires_grad_(), gaussian((2, 3, 3), generator)
    actual = cometric_of_matrix(x, g, Depth(depth), normalized)
    expected = integer_cometric(x, g, depth) / (depth if normalized else 1)
    assert_close(actual.detach(), expected.detach())
    for a, b in zip(
        torch.autograd.grad(actual, (x, g), h),
        torch.autograd.grad(expected, (x, g), h),
        strict=True,
    ):
        assert_close(a, b, condition=(1.9 / 0.3) ** 2)


def test_at_a_multiple_of_an_orthogonal_matrix_the_derivative_is_known(generator):
    # phi[c, c; c] = (1 - 1/N)/2 N c^{-1/N}, c = s^2: one number for all entries.
    depth, s = Depth(3), 1.7
    q = haar_stiefel((), 4, 4, generator=generator, dtype=torch.float64, device="cpu")
    x, (g, h, y) = (s * q).requires_grad_(), gaussian((3, 4, 4), generator)
    value = cometric_of_matrix(x, g, depth, False)
    (gradient,) = torch.autograd.grad(value, x, h)
    weight = 0.5 * (depth - 1.0) * s ** (-2.0 / depth)
    dp, dq = s * (y @ q.mT + q @ y.mT), s * (q.mT @ y + y.mT @ q)
    assert_close((gradient * y).sum(), (h * weight * (dp @ g + g @ dq)).sum())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("depth", [Depth(n) for n in (1.5, 2.0, 7.0, math.inf)])
def test_finite_where_autograd_through_the_decomposition_is_not(depth, dtype, generator):
    x = torch.eye(3, dtype=dtype).requires_grad_()
    g, h = gaussian((2, 3, 3), generator, dtype)
    normalized = is_normalized(depth)
    (through,) = torch.autograd.grad(apply_kernel(svd(x), g, depth, normalized), x, h)
    assert bool(torch.isnan(through).any())
    (gradient,) = torch.autograd.grad(cometric_of_matrix(x, g, depth, normalized), x, h)
    weight = 0.5 * (1.0 - 1.0 / depth) * (1.0 if normalized else depth)
    pairs = h @ g.mT + h.mT @ g
    assert_close(gradient, weight * (pairs + pairs.mT))


@pytest.mark.parametrize("shape", [(4, 4), (6, 4), (4, 5)], ids=str)
@pytest.mark.parametrize("depth", [Depth(n) for n in (1.5, 2.0, 3.0, 7.0, math.inf)])
def test_lost_rank_gives_the_derivative_along_the_matrices_of_that_rank(depth, shape, generator):
    # Curves X(t) = e^{tA} X e^{tB} keep the rank: central differences along one.
    x = matrix(shape, (1.4, 0.6, 0.0, 0.0), generator)
    u, s, vh = svd(x)
    s = torch.where(s > 1e-8, s, 0.0)
    g, h = gaussian((2, *shape), generator)
    a, b = gaussian((shape[0],) * 2, generator), gaussian((shape[1],) * 2, generator)
    frames, normalized = (u, s, vh), is_normalized(depth)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(cometric_of_matrix(x, g, depth, normalized, frames), x, h)
    slope = (gradient * (a @ x + x @ b).detach()).sum()

    def along(t):
        moved = torch.linalg.matrix_exp(t * a) @ x.detach() @ torch.linalg.matrix_exp(t * b)
        u, s, vh = svd(moved)
        return (h * apply_kernel((u[:, :2], s[:2], vh[:2]), g, depth, normalized)).sum()

    steps = [0.04 / 2**k for k in range(4)]
    errors = [float(abs((along(t) - along(-t)) / (2 * t) - slope)) for t in steps]
    assert_order(steps, errors, 2)


@pytest.mark.parametrize("depth", [Depth(n) for n in (1.5, 3.0, math.inf)])
def test_tiny_and_huge_values_keep_their_digits(depth, generator):
    # A(cX; G) = c^{2-2/N} A(X; G): the gradient scales by c^{1-2/N}.
    x, (g, h) = matrix((3, 3), (1.9, 0.8, 0.8), generator), gaussian((2, 3, 3), generator)
    normalized = is_normalized(depth)
    frames = svd(x)

    def gradient(c):
        u, s, vh = frames
        scaled = (c * x).requires_grad_()
        value = cometric_of_matrix(scaled, g, depth, normalized, (u, c * s, vh))
        return torch.autograd.grad(value, scaled, h)[0]

    for c in (2.0**-300, 2.0**300):
        assert_close(gradient(c) / c ** (1.0 - 2.0 / depth), gradient(1.0), ops=1000)


@pytest.mark.parametrize("depth", [Depth(n) for n in (1.1, 1.2, 1.5, 2.0, 8.0, 17.0, math.inf)])
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e15])
def test_float32_of_any_size(depth, size, generator):
    x, (g, h) = matrix((3, 3), (1.9, 0.8, 0.8), generator), gaussian((2, 3, 3), generator)

    def gradient(x):
        x = x.clone().requires_grad_()
        a, b = g.to(x.dtype), h.to(x.dtype)
        value = cometric_of_matrix(x, a, depth, is_normalized(depth))
        return torch.autograd.grad(value, x, b)[0]

    found = gradient((size * x).float()).double() / size ** (1.0 - 2.0 / depth)
    assert_close(found.float(), gradient(x).float(), ops=3000)


def test_batches_broadcast_both_ways(generator):
    x = matrix((4, 3), (1.2, 1.2, 0.5), generator, batch=(2, 1)).requires_grad_()
    g = gaussian((3, 4, 3), generator).requires_grad_()
    h = gaussian((2, 3, 4, 3), generator)
    value = cometric_of_matrix(x, g, Depth(3), False)
    in_x, in_g = torch.autograd.grad(value, (x, g), h)
    one_x, one_g = torch.zeros_like(x), torch.zeros_like(g)
    for i in range(2):
        for j in range(3):
            single = cometric_of_matrix(x[i, 0], g[j], Depth(3), False)
            assert_close(value[i, j].detach(), single.detach())
            gx, gg = torch.autograd.grad(single, (x, g), h[i, j])
            one_x, one_g = one_x + gx, one_g + gg
    assert_close(in_x, one_x)
    assert_close(in_g, one_g)


@pytest.mark.parametrize("shape", [(2, 2), (3, 2)], ids=str)
@pytest.mark.parametrize("depth", [Depth(n) for n in (1.5, 3.0, math.inf)])
def test_second_derivatives_at_distinct_values(depth, shape, generator):
    x = matrix(shape, (1.9, 0.7), generator).requires_grad_()
    g = gaussian(shape, generator).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x, g: cometric_of_matrix(x, g, depth, is_normalized(depth)), (x, g)
    )


def test_float32_agrees_with_float64(generator):
    x64 = matrix((5, 3), (1.2, 1.2, 0.5), generator)
    g64, h64 = gaussian((2, 5, 3), generator)

    def gradient(dtype):
        x, g, h = (part.to(dtype) for part in (x64, g64, h64))
        x.requires_grad_()
        return torch.autograd.grad(cometric_of_matrix(x, g, Depth(3), False), x, h)[0]

    single = gradient(torch.float32)
    assert single.dtype == torch.float32
    assert_close(single, gradient(torch.float64))


@pytest.mark.parametrize("depth", [1, 2, 2.7, 3, math.inf])
@pytest.mark.parametrize("shape", [(3, 3), (4, 3), (2, 4)])
def test_the_public_cometric_is_differentiable_at_equal_singular_values(depth, shape, generator):
    x = torch.eye(*shape, dtype=torch.float64).requires_grad_()
    g = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, g: dln.cometric(dln.EndToEnd.of(x, depth), g), (x, g))
