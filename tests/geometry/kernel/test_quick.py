"""Products and decompositions by numpy: those of torch to rounding, and torch where asked."""

from __future__ import annotations

import pytest
import torch

from dln_geometry.geometry.kernel import quick_product, quick_svd
from dln_geometry.testing import assert_close

SHAPES = [((7, 6, 5), (7, 5, 4)), ((2, 3, 4, 4), (4, 5)), ((32, 9), (9, 32)), ((3, 2, 2), (2, 2))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_products_are_those_of_torch(left, right, dtype, generator):
    a = torch.randn(left, generator=generator, dtype=dtype)
    b = torch.randn(right, generator=generator, dtype=dtype)
    with torch.no_grad():
        found = quick_product(a, b)
        turned = quick_product(b.mH, a.mH)
    assert found.dtype == dtype
    assert_close(found, a @ b, ops=100)
    assert_close(turned.mH, a @ b, ops=100)


@pytest.mark.parametrize("shape", [(5, 4, 4), (3, 7, 5), (2, 3, 5, 9), (4, 2, 2), (2, 40, 5)])
def test_decompositions_are_thin_and_whole(shape, generator):
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x[0] = 0.0
    with torch.no_grad():
        u, s, vh = quick_svd(x)
    assert u.shape[-1] == s.shape[-1] == vh.shape[-2] == min(shape[-2:])
    assert_close(u @ (s.unsqueeze(-1) * vh), x, ops=300)
    assert_close(s, torch.linalg.svdvals(x), ops=300)
    eye = torch.eye(s.shape[-1], dtype=x.dtype)
    for frame in (u, vh.mT):
        assert_close(frame.mT @ frame, eye.expand(*shape[:-2], *eye.shape), ops=300)


def test_derivatives_pass_and_views_of_any_kind_are_read(generator):
    a, b = torch.randn(2, 6, 5, 5, generator=generator, dtype=torch.float64)

    def total(x):
        return quick_product(x, b).sum() + quick_svd(x)[1].sum()

    def by_torch(x):
        return (x @ b).sum() + torch.linalg.svdvals(x).sum()

    assert_close(torch.func.grad(total)(a), torch.func.grad(by_torch)(a), ops=1000)
    a.requires_grad_()
    value = quick_product(a, b).sum()
    assert_close(torch.autograd.grad(value, a)[0], b.sum(-1).unsqueeze(-2).expand(a.shape), ops=100)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(b, a.detach())
        tangent = torch.autograd.forward_ad.unpack_dual(quick_product(dual, b)).tangent
        assert_close(tangent, a @ b, ops=100)
    with torch.no_grad():
        assert_close(quick_product(a, b), a @ b, ops=100)
        minus = torch.complex(b, b).conj().imag
        assert_close(quick_product(minus, b), -b @ b, ops=100)
        assert_close(torch.vmap(quick_product)(b, b), b @ b, ops=100)


def test_matrices_that_are_not_finite_end_as_those_of_torch(generator):
    x = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    x[1, 2, 3] = torch.nan
    with torch.no_grad(), pytest.raises(torch.linalg.LinAlgError):
        quick_svd(x)
