from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.metric import ProductFrame, entropy_slope, layers_of_step, thin_svd
from dln_geometry.support import Depth
from dln_geometry.testing import assert_close, assert_order

F64 = torch.float64
SPECTRUM = (1.7, 1.0, 0.99, 0.4)
SHAPES = [((4, 4), 4), ((6, 4), 4), ((4, 7), 4), ((6, 5), 2), ((5, 7), 1)]


def _point(shape, rank, depth, generator, dtype=F64, spectrum=SPECTRUM):
    options = {"spectrum": spectrum[:rank], "generator": generator, "dtype": dtype}
    return dln.Collapsed.random(shape, rank, depth, **options).point()


def _parts(p, z):
    """The parts of a matrix in orthonormal coordinates that a step from a point takes."""
    (m, n), r = p.shape, p.rank
    zv = z @ p.vh.mT
    right = p.u.mT @ z if n > r else None
    return p.u.mT @ zv, zv if m > r else None, right


def _moved(p, z, **options):
    last, first = ProductFrame(p, **options).move(*_parts(p, z))
    return last @ first


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("depth", [2, 3, 5, 8])
@pytest.mark.parametrize(("shape", "rank"), SHAPES, ids=str)
def test_it_is_the_product_of_the_layers_moved_along_the_lift(shape, rank, depth, dtype, generator):
    p = _point(shape, rank, depth, generator, dtype)
    z = 0.3 * torch.randn(*shape, generator=generator, dtype=dtype)
    layers = dln.balanced_factors(p)
    # Orthonormal coordinates to tangent vectors to covectors to horizontal vectors.
    up = dln.lift(layers, dln.metric(p, dln.cometric_sqrt(p, z)))
    expected = dln.end_to_end([w + v for w, v in zip(layers, up, strict=True)])
    assert_close(_moved(p, z), expected, condition=SPECTRUM[0] / SPECTRUM[rank - 1])


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_closed_form_of_square_matrices(depth, generator):
    p = _point((4, 4), 4, depth, generator)
    z = 0.3 * torch.randn(4, 4, generator=generator, dtype=F64)
    x = p.matrix
    covector = dln.metric(p, dln.cometric_sqrt(p, z))
    root = (p.u * p.s ** (2 / depth)) @ p.u.mT
    power = torch.linalg.matrix_power(root + covector @ x.mT, depth)
    assert_close(_moved(p, z), power @ torch.linalg.inv(x).mT, ops=1000, condition=20)


@pytest.mark.parametrize("depth", [1.5, 2.7, 3, 17, 40.5, math.inf])
@pytest.mark.parametrize(("shape", "rank"), [((4, 4), 4), ((6, 5), 2), ((4, 7), 4)], ids=str)
def test_it_moves_along_the_root_of_the_cometric(shape, rank, depth, generator):
    p = _point(shape, rank, depth, generator)
    z = torch.randn(*shape, generator=generator, dtype=F64)
    velocity = dln.cometric_sqrt(p, z)
    steps = [1e-2 / 2**k for k in range(5)]
    errors = [float((_moved(p, h * z) - p.matrix - h * velocity).norm()) for h in steps]
    assert_order(steps, errors, 2)


def _laplacian(p, size, **options):
    """Half the sum of second derivatives over an orthonormal frame, by central differences."""
    (m, n), r = p.shape, p.rank
    basis = torch.eye(m * n, dtype=F64).reshape(m * n, m, n)
    u = torch.linalg.qr(p.u, mode="complete").Q
    v = torch.linalg.qr(p.vh.mT, mode="complete").Q
    u, v = torch.cat((p.u, u[:, r:]), 1), torch.cat((p.vh.mT, v[:, r:]), 1)
    frame = u @ basis @ v.mT
    points = p.expand((m * n,))
    both = _moved(points, size * frame, **options) + _moved(points, -size * frame, **options)
    return (both - 2 * p.matrix).sum(0) / (2 * size**2)


@pytest.mark.parametrize("depth", [1.5, 2, 2.7, 3, 4, 8, 17, 40.5, math.inf])
@pytest.mark.parametrize(("shape", "rank"), [((4, 4), 4), ((6, 4), 4), ((5, 6), 2)], ids=str)
def test_its_second_order_is_the_drift_of_brownian_motion(shape, rank, depth, generator):
    """``1/2 (N-1) U Sigma^{1-2/N} V^T``, normalised at infinite depth, in every rank and shape."""
    p = _point(shape, rank, depth, generator)
    size = 0.02
    coarse, fine = _laplacian(p, size), _laplacian(p, size / 2)
    layers = 1.0 if math.isinf(depth) else depth - 1.0
    expected = 0.5 * layers * (p.u * p.s ** (1 - 2 / depth)) @ p.vh
    extrapolated = (4 * fine - coarse) / 3
    # The error left is of fourth order in the size of the differences.
    bound = float((fine - coarse).abs().max()) * size + 1e-9
    assert float((extrapolated - expected).abs().max()) < bound


@pytest.mark.parametrize("depth", [2.7, 3])
def test_normalized_metric_moves_with_its_own_size(depth, generator):
    p = _point((5, 4), 3, depth, generator)
    q = p.replace(normalized=True)
    z = 0.2 * torch.randn(5, 4, generator=generator, dtype=F64)
    assert_close(_moved(q, math.sqrt(depth) * z), _moved(p, z))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("depth", [1.5, 2, 2.7, 5, 17, math.inf])
def test_kernel_of_the_frame(depth, normalized, generator):
    s = torch.tensor(SPECTRUM, dtype=F64)
    eye = torch.eye(4, dtype=F64)
    normalized = normalized or math.isinf(depth)
    frame = ProductFrame(dln.EndToEnd(eye, s, eye, float(depth), normalized))
    kernel = dln.depth_kernel(s, depth, normalized=normalized)
    assert_close(frame.root_kernel**2, kernel)
    mixed = dln.depth_kernel(torch.cat((s, s.new_zeros(1))), depth, normalized=normalized)[:-1, -1]
    assert_close(frame.root_mixed**2, mixed, scale=float(kernel.max()))
    assert_close(frame.entropy_pull(3.0), s * entropy_slope(s, Depth(depth), excess=3.0))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("depth", [4, 6, 8, 16])
def test_pairs_of_layers_have_the_same_kernel_and_entropy(depth, normalized, generator):
    s = torch.tensor(SPECTRUM, dtype=F64)
    eye = torch.eye(4, dtype=F64)
    frame = ProductFrame(dln.EndToEnd(eye, s, eye, float(depth), normalized), layers=depth // 2)
    assert_close(frame.root_kernel**2, dln.depth_kernel(s, depth, normalized=normalized))
    assert_close(frame.entropy_pull(3.0), s * entropy_slope(s, Depth(depth), excess=3.0))
    p = _point((6, 5), 4, depth, generator)
    z = torch.randn(6, 5, generator=generator, dtype=F64)
    velocity = dln.cometric_sqrt(p, z)
    steps = [1e-2 / 2**k for k in range(5)]
    errors = [
        float((_moved(p, h * z, layers=depth // 2) - p.matrix - h * velocity).norm()) for h in steps
    ]
    assert_order(steps, errors, 2)


@pytest.mark.parametrize("depth", [2, 3, 2.7])
def test_entropy_pull_is_bounded_where_values_vanish_and_collide(depth):
    s = torch.tensor([1.0, 1.0, 0.3, 0.0], dtype=F64)
    eye = torch.eye(4, dtype=F64)
    pull = ProductFrame(dln.EndToEnd(eye, s, eye, float(depth), False)).entropy_pull()
    # s dS/ds of the pair (1, 1) is (1 - 1/N)/2; a zero is not pulled.
    assert float(pull[3]) == pytest.approx(0.0, abs=1e-12)
    assert bool(((pull >= 0) & (pull <= 3 * (1 - 1 / depth))).all())
    pair = dln.EndToEnd(eye[:2, :2], s[:2], eye[:2, :2], float(depth), False)
    assert_close(
        ProductFrame(pair).entropy_pull(), torch.full((2,), 0.5 * (1 - 1 / depth), dtype=F64)
    )


@pytest.mark.parametrize(("depth", "sign"), [(2, 1), (3, -1), (4, 1), (2.7, -1)])
def test_a_smallest_value_that_is_pushed_through_zero(depth, sign):
    """Odd depths let the determinant change its sign; even ones cannot, like their layers."""
    eye = torch.eye(2, dtype=F64)
    p = dln.EndToEnd(eye, torch.tensor([1.0, 1e-6], dtype=F64), eye, float(depth), False)
    push = torch.diag(torch.tensor([0.0, -0.3], dtype=F64))
    moved = _moved(p, push)
    lam = 1e-6 ** (1 / depth) - 0.3 / math.sqrt(depth)
    assert_close(torch.linalg.det(moved), sign * abs(lam) ** depth)


@pytest.mark.parametrize("depth", [1.5, 2, 3, 2.7, 17, 40.5])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(
    "spectrum", [(1.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1e12, 1.0, 1e-12)], ids=str
)
def test_steps_from_singular_matrices_are_finite(spectrum, dtype, depth, generator):
    p = _point((3, 4), 3, depth, generator, dtype, spectrum)
    z = torch.randn(3, 4, generator=generator, dtype=dtype)
    moved = _moved(p, z)
    assert bool(torch.isfinite(moved).all())


def test_rank_is_kept(generator):
    p = _point((6, 5), 2, 3, generator)
    s = torch.linalg.svdvals(_moved(p, torch.randn(6, 5, generator=generator, dtype=F64)))
    assert_close(s[2:], torch.zeros(3, dtype=F64), scale=float(s[0]))


def test_infinite_depth_keeps_range_and_corange(generator):
    p = _point((6, 5), 2, math.inf, generator)
    moved = _moved(p, torch.randn(6, 5, generator=generator, dtype=F64))
    assert_close(moved, p.u @ (p.u.mT @ moved @ p.vh.mT) @ p.vh)
    assert not torch.allclose(moved, p.matrix)


@pytest.mark.parametrize(("depth", "layers"), [(2, 2), (16, 16), (17, 4), (1.5, 2), (3.5, 3)])
def test_number_of_factors(depth, layers):
    assert layers_of_step(float(depth)) == layers
    assert layers_of_step(math.inf) == 4


@pytest.mark.parametrize("shape", [(6, 2, 5), (3, 4, 3), (4, 4, 4)], ids=str)
def test_thin_svd(shape, generator):
    m, k, n = shape
    last = torch.randn(3, m, k, generator=generator, dtype=F64)
    first = torch.randn(3, k, n, generator=generator, dtype=F64)
    u, s, vh = thin_svd(last, first)
    assert_close((u * s.unsqueeze(-2)) @ vh, last @ first, scale=float(s.max()))
    assert_close(u.mT @ u, torch.eye(s.shape[-1], dtype=F64).expand(3, -1, -1))
    assert_close(thin_svd(last, first, 1)[1], s[..., :1])
