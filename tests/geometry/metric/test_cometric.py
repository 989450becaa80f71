from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close
from tests.geometry.geodesics.routes import draw, gaussian

DTYPES = [torch.float64, torch.float32]
# Shape of X, its rank and spectrum.
POINTS = [
    ((3, 3), 3, (1.9, 0.8, 0.3)),
    ((3, 3), 3, (1.2, 1.2, 0.5)),
    ((4, 2), 2, (0.7, 0.7 - 1e-9)),
    ((3, 5), 3, (2.2, 1.0, 0.2)),
    ((4, 3), 2, (1.6, 0.4)),
    ((3, 4), 1, (0.6,)),
]
REAL_DEPTHS = [1, 1.5, 2, 2.7, 3, 8, 1000, math.inf]
points = pytest.mark.parametrize(
    ("shape", "rank", "spectrum"), POINTS, ids=[f"{m}x{n}-r{r}-{s[-1]}" for (m, n), r, s in POINTS]
)


def tangent_basis(point, core_only=False):
    """Return an orthonormal basis of the tangent space of the matrices of rank r."""
    u = torch.linalg.svd(point.u).U
    vh = torch.linalg.svd(point.vh).Vh
    u = torch.cat((point.u, u[:, point.rank :]), -1)
    vh = torch.cat((point.vh, vh[point.rank :]), -2)
    r = point.rank
    return torch.stack(
        [
            torch.outer(u[:, i], vh[j])
            for i in range(u.shape[1])
            for j in range(vh.shape[0])
            if (i < r and j < r) or (not core_only and (i < r or j < r))
        ]
    )


def project(point, z):
    """Project on the tangent space."""
    left = z - point.u @ (point.u.mT @ z)
    return z - (left - (left @ point.vh.mT) @ point.vh)


@points
@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("widths", [None, 4])
def test_cometric_is_the_differential_times_its_adjoint(
    shape, rank, spectrum, depth, widths, generator
):
    point = draw(shape, spectrum, depth, generator)
    factors = dln.balanced_factors(point, widths=widths, gauge="haar", generator=generator)
    g = gaussian(shape, generator)

    def multiply(*layers):
        x = layers[0]
        for w in layers[1:]:
            x = w @ x
        return x

    _, pull = torch.func.vjp(multiply, *factors)
    _, expected = torch.func.jvp(multiply, tuple(factors), pull(g))
    assert_close(dln.cometric(point, g), expected)
    normalized = point.replace(normalized=True)
    assert_close(dln.cometric(normalized, g), expected / depth)


@points
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [2, 3, 6])
def test_cometric_is_the_sum_of_powers(shape, rank, spectrum, depth, dtype, generator):
    """The formula by fractional powers of X X^T and X^T X."""
    point = draw(shape, spectrum, depth, generator, dtype, batch=(2,))
    g = gaussian((2, *shape), generator, dtype)

    def power(basis, exponent):
        if exponent == 0:
            return torch.eye(basis.shape[-2], dtype=dtype)
        return (basis * point.s.unsqueeze(-2) ** (2 * exponent)) @ basis.mT

    expected = sum(
        power(point.u, (depth - p) / depth) @ g @ power(point.vh.mT, (p - 1) / depth)
        for p in range(1, depth + 1)
    )
    assert_close(dln.cometric(point, g), expected)
    assert dln.cometric(point, g).dtype == dtype


@points
@pytest.mark.parametrize("depth", REAL_DEPTHS)
@pytest.mark.parametrize("normalized", [True, False])
def test_metric_inverts_and_the_root_squares(shape, rank, spectrum, depth, normalized, generator):
    if math.isinf(depth):
        normalized = True
    point = draw(shape, spectrum, depth, generator, normalized=normalized)
    g, h = gaussian((5, *shape), generator), gaussian((5, *shape), generator)
    image = dln.cometric(point, g)
    assert_close(dln.cometric_sqrt(point, dln.cometric_sqrt(point, g)), image)
    size = float(g.norm() * dln.cometric(point, h).norm())
    # Self-adjoint.
    overlap = (g * dln.cometric(point, h)).sum()
    assert_close(overlap, (h * image).sum(), scale=size)
    overlap = (g * dln.cometric_sqrt(point, h)).sum()
    assert_close(overlap, (h * dln.cometric_sqrt(point, g)).sum(), scale=size)
    # The largest over the smallest kernel; outside the range it has one term instead of N.
    condition = (spectrum[0] / spectrum[-1]) ** 2
    if math.isfinite(depth) and shape != (rank, rank):
        condition *= depth
    tangent = project(point, g)
    if math.isinf(depth):
        tangent = point.u @ (point.u.mT @ g @ point.vh.mT) @ point.vh
    if depth > 1:
        back = dln.metric(point, image)
        assert_close(back, tangent, condition=condition)
        assert_close(dln.cometric(point, dln.metric(point, tangent)), tangent, condition=condition)
    length = dln.inner(point, image, image)
    assert_close(length, (g * image).sum((-2, -1)), condition=condition)
    other = dln.cometric(point, h)
    cross = dln.inner(point, image, other)
    scale = float((length * dln.inner(point, other, other)).max().sqrt())
    assert_close(cross, (g * other).sum((-2, -1)), scale=scale, condition=condition)


def test_collapsed_points_are_accepted(generator):
    pair = dln.Collapsed.random((4, 3), 2, 2.7, scale=0.6, generator=generator, dtype=torch.float64)
    point, g = pair.point(), gaussian((4, 3), generator)
    assert_close(dln.cometric(pair, g), dln.cometric(point, g))
    assert_close(dln.log_volume_density(pair), dln.log_volume_density(point))


@pytest.mark.parametrize("depth", [1, 2.7, 3, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_batches(depth, dtype, generator):
    x = gaussian((2, 3, 4, 5), generator, dtype)
    g = gaussian((2, 3, 4, 5), generator, dtype)
    point = dln.EndToEnd.of(x, depth)
    whole = dln.cometric(point, g)
    assert whole.dtype == dtype
    single = dln.EndToEnd.of(x[1, 2], depth)
    # Gaps between singular values of a Gaussian matrix are no less than a hundredth of it here,
    # and do not matter: A is a smooth function of X.
    assert_close(whole[1, 2], dln.cometric(single, g[1, 2]))
    assert_close(dln.log_volume_density(point)[1, 2], dln.log_volume_density(single), scale=10)
    assert dln.cometric(point, g[0, 0]).shape == (2, 3, 4, 5)
    assert dln.cometric(single, g).shape == (2, 3, 4, 5)


@points
@pytest.mark.parametrize("depth", [1, 2, 2.7, 3, 5, math.inf])
@pytest.mark.parametrize("normalized", [True, False])
def test_volume_density_is_the_determinant_of_the_metric(
    shape, rank, spectrum, depth, normalized, generator
):
    if math.isinf(depth):
        normalized = True
    point = draw(shape, spectrum, depth, generator, normalized=normalized)
    basis = tangent_basis(point, core_only=math.isinf(depth))
    gram = torch.stack([dln.inner(point, basis, b.expand_as(basis)) for b in basis])
    expected = 0.5 * torch.linalg.slogdet(gram).logabsdet
    scale = float(basis.shape[0])
    assert_close(dln.log_volume_density(point), expected, ops=1000, scale=scale, condition=10)


@points
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_volume_density_from_the_layers(shape, rank, spectrum, depth, generator):
    """The metric is the inverse of dphi dphi*, by autodiff of the product."""
    point = draw(shape, spectrum, depth, generator)
    factors = dln.balanced_factors(point, gauge="haar", generator=generator)
    jacobians = torch.autograd.functional.jacobian(lambda *w: dln.end_to_end(w), tuple(factors))
    basis = tangent_basis(point).flatten(1)
    rows = [basis @ j.flatten(2).flatten(0, 1) for j in jacobians]
    dphi = torch.cat(rows, -1)
    expected = -0.5 * torch.linalg.slogdet(dphi @ dphi.mT).logabsdet
    scale = float(basis.shape[0])
    assert_close(dln.log_volume_density(point), expected, ops=1000, scale=scale, condition=10)


@pytest.mark.parametrize(("shape", "rank"), [((4, 4), 4), ((5, 3), 3), ((5, 4), 2)])
@pytest.mark.parametrize("depth", [1.5, 2, 3, 7.3])
def test_volume_density_is_flat_in_the_radial_coordinate(shape, rank, depth, generator):
    """sqrt(det g) dX = prod d rho prod |lam_i^2 - lam_j^2| prod lam^{m+n-2r} dU dV."""
    s = torch.linspace(1.8, 0.2, rank, dtype=torch.float64)
    point = draw(shape, tuple(s.tolist()), depth, generator)
    lam = s ** (1 / depth)
    i, j = torch.triu_indices(rank, rank, 1)
    # rho = sqrt(N) lam, and dX = prod ds prod |s_i^2 - s_j^2| prod s^{m+n-2r} dU dV.
    radial = (lam / s / math.sqrt(depth)).log().sum()
    angular = ((lam[i] ** 2 - lam[j] ** 2) / (s[i] ** 2 - s[j] ** 2)).log().sum()
    outside = (sum(shape) - 2 * rank) * (lam / s).log().sum()
    assert_close(dln.log_volume_density(point), radial + angular + outside, scale=10)


@pytest.mark.parametrize("depth", [1.5, 2, 3, math.inf])
@pytest.mark.parametrize("s", [(1.4, 0.8), (0.9, 0.9), (1.0, 1.0 + 1e-9)])
def test_gradcheck_in_the_spectrum_and_the_covector(s, depth, generator):
    """At equal singular values too, as long as the singular vectors stand still."""
    point = draw((4, 3), (1.0, 0.5), depth, generator)
    g = gaussian((4, 3), generator).requires_grad_()
    s = torch.tensor(s, dtype=torch.float64, requires_grad=True)

    def apply(operator):
        return lambda s, g: operator(point.replace(s=s, check=False), g)

    assert torch.autograd.gradcheck(apply(dln.cometric), (s, g))
    assert torch.autograd.gradcheck(apply(dln.cometric_sqrt), (s, g))


@pytest.mark.parametrize("depth", [1, 1.5, 2, 3, math.inf])
@pytest.mark.parametrize("shape", [(3, 3), (4, 2)])
def test_gradcheck_in_the_matrix(shape, depth, generator):
    x = gaussian(shape, generator).requires_grad_()
    g = gaussian(shape, generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, g: dln.cometric(dln.EndToEnd.of(x, depth), g), (x, g))


def test_gradcheck_of_the_volume_density(generator):
    u, vh = torch.eye(4, 2, dtype=torch.float64), torch.eye(2, 3, dtype=torch.float64)
    for s in ((1.3, 0.4), (0.8, 0.8)):
        s = torch.tensor(s, dtype=torch.float64, requires_grad=True)
        for depth in (1.5, 3, math.inf):
            assert torch.autograd.gradcheck(
                lambda s, n=depth: dln.log_volume_density(dln.EndToEnd(u, s, vh, n, check=False)),
                s,
            )


@pytest.mark.parametrize("depth", [2, 2.7, 3])
def test_zero_singular_values(depth, generator):
    """The cometric is continuous where the rank drops; the metric is infinite there."""
    g = gaussian((3, 3), generator)
    u = torch.linalg.svd(gaussian((3, 3), generator)).U
    at = dln.EndToEnd(u, torch.tensor([1.5, 0.0, 0.0]).double(), u.mT, depth, False)
    thin = dln.EndToEnd(u[:, :1], torch.tensor([1.5]).double(), u[:, :1].mT, depth, False)
    assert_close(dln.cometric(at, g), dln.cometric(thin, g))
    assert_close(dln.cometric_sqrt(at, g), dln.cometric_sqrt(thin, g))
    with pytest.raises(ValueError, match="point must have positive singular values for the metric"):
        dln.metric(at, dln.cometric(at, g))
    assert bool(torch.isposinf(dln.log_volume_density(at)))


@pytest.mark.parametrize(
    ("g", "error", "message"),
    [
        (torch.ones(3, 4), ValueError, r"must have shape \(\.\.\., 4, 3\) like the point"),
        (torch.ones(3), ValueError, r"must have shape \(\.\.\., m, n\)"),
        (torch.full((4, 3), math.nan), ValueError, "must be finite"),
        (torch.ones(4, 3) * 1j, TypeError, "must be real"),
        ("g", TypeError, "must be a real array"),
        (None, TypeError, "must be a real array"),
    ],
)
def test_bad_covectors(g, error, message):
    point = dln.EndToEnd.of(torch.eye(4, 3), 3)
    for operator in (dln.cometric, dln.cometric_sqrt, dln.metric):
        with pytest.raises(error, match=message):
            operator(point, g)
    with pytest.raises(error, match=message):
        dln.inner(point, torch.eye(4, 3), g)
    with pytest.raises(error, match=message):
        dln.inner(point, g, torch.eye(4, 3))


@pytest.mark.parametrize("depth", [2, 3.5])
def test_metric_refuses_what_is_not_tangent(depth):
    point = dln.EndToEnd.of(torch.diag(torch.tensor([2.0, 0.0, 0.0])), depth, rank=1)
    with pytest.raises(
        ValueError, match="z must be tangent to the matrices of rank 1 at the point"
    ):
        dln.metric(point, torch.eye(3))
    tangent = torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="z1 must be tangent"):
        dln.inner(point, torch.eye(3), tangent)
    with pytest.raises(ValueError, match="z2 must be tangent"):
        dln.inner(point, tangent, torch.eye(3))


def test_metric_at_infinite_depth_refuses_turning_frames():
    point = dln.EndToEnd.of(torch.diag(torch.tensor([2.0, 0.0])), math.inf, rank=1)
    assert_close(dln.metric(point, [[8.0, 0.0], [0.0, 0.0]]), [[2.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="z must be tangent"):
        dln.metric(point, [[0.0, 1.0], [0.0, 0.0]])


@pytest.mark.parametrize("by", [-1040, -990, 500, 990])
@pytest.mark.parametrize("depth", [1.5, 2.0, 2.5, 3.0, 10.0, math.inf])
def test_inner_products_are_right_wherever_they_are_numbers(depth, by):
    """Of a number s with vectors of its size: ``z^2 / (N s^{2-2/N})``, in logarithms."""
    s, z = 0.75 * 2.0**by, 1.25 * 2.0**by
    exponent, share = (2.0, 0.0) if depth == math.inf else (2 - 2 / depth, math.log2(depth))
    wanted = 2 * math.log2(1.25) - exponent * math.log2(0.75) - share + (2 - exponent) * by
    one = torch.ones(1, 1, dtype=torch.float64)
    point = dln.EndToEnd(one, torch.tensor([s], dtype=torch.float64), one, depth)
    found = float(dln.inner(point, z * one, z * one))
    if -1022 < wanted < 1023:
        # Denormal sizes hold 34 bits of their own.
        assert abs(math.log2(found) - wanted) < 1e-9
    elif wanted > 0:
        assert found == math.inf
    else:
        assert 0 <= found < 2.0**-1022
