from __future__ import annotations

import pytest
import torch

from dln_geometry.learning.functional import largest_eigenvalue
from dln_geometry.testing import assert_close

F64 = torch.float64


@pytest.mark.parametrize("k", [1, 4, 33, 120, 700])
@pytest.mark.parametrize("kind", ["generic", "multiple", "semidefinite", "indefinite", "zero"])
def test_the_iteration_meets_every_spectrum(kind, k, generator):
    q = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=F64)).Q
    values = torch.randn(k, generator=generator, dtype=F64).sort().values
    if kind == "multiple":
        values[-5:] = values[-1]
        values[:-5] = -values[:-5].abs() - 1
    elif kind == "semidefinite":
        values = -values.abs()
        values[: k // 2] = 0.0
    elif kind == "indefinite":
        # Far larger at the other end.
        values[0] = -1e3
    elif kind == "zero":
        values[:] = 0.0
    h = (q * values) @ q.mT
    value, vector = largest_eigenvalue(
        lambda v: h @ v, h[0], rtol=1e-8, max_products=2000, generator=generator
    )
    scale = max(float(values.abs().max()), 1.0)
    # The error of a Ritz value is at most the residual, and its square over the gap.
    assert abs(float(value - values.max())) < 1e-8 * scale
    assert_close(vector.norm(), 1.0)
    assert float((h @ vector - value * vector).norm()) < 1.1e-8 * scale


def test_a_dense_end_is_found_from_a_small_space(generator):
    values = 1 - torch.linspace(0, 1, 1000, dtype=F64)
    value, vector = largest_eigenvalue(
        lambda v: values * v, values, rtol=1e-6, subspace=12, generator=generator
    )
    assert abs(float(value) - 1) < 1e-6
    assert float((values * vector - value * vector).norm()) < 1.1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, F64], ids=str)
def test_precision_is_that_of_the_vectors(dtype, generator):
    values = torch.linspace(-2, 3, 200, dtype=dtype)
    wide = values.to(F64)
    value, vector = largest_eigenvalue(lambda v: values.to(v) * v, values, generator=generator)
    assert value.dtype == vector.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    assert abs(float(value) - float(wide.max())) < 5 * torch.finfo(value.dtype).eps ** (1 / 3)


def test_it_says_if_it_fails(generator):
    values = torch.linspace(0, 1, 3000, dtype=F64).square()
    with pytest.raises(RuntimeError, match="must be found to the relative residual .* in 70 prod"):
        largest_eigenvalue(
            lambda v: -values * v, values, rtol=1e-12, max_products=70, generator=generator
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rtol": -1.0}, ValueError, "rtol must be positive"),
        ({"max_products": 0}, ValueError, "max_products must be at least 1"),
        ({"subspace": 3}, ValueError, "subspace must be at least 4"),
        ({"subspace": 4.5}, TypeError, "subspace must be an integer"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        largest_eigenvalue(lambda v: v, torch.ones(5), **options)


def test_a_product_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="the operator must be finite"):
        largest_eigenvalue(lambda v: v / 0, torch.ones(5))
