from __future__ import annotations

import math

import pytest
import torch

from dln_geometry.learning import sharpness
from dln_geometry.testing import assert_close
from tests.learning.motion.routes import F64, dense, network


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_sharpness_is_the_largest_eigenvalue(dtype, generator):
    loss, params = network(generator, dtype)
    _, h, _ = dense(loss, params)
    value = sharpness(loss, params, generator=generator)
    assert value.dtype == dtype
    # The error is the square of the residual over the gap.
    bound = torch.finfo(dtype).eps ** (2 / 3)
    values = torch.linalg.eigvalsh(h)
    assert abs(value - values[-1]) <= 4 * bound * values[-1] ** 2 / (values[-1] - values[-2])


@pytest.mark.parametrize(
    "spectrum",
    [[2.5], [-3.0, -1.0], [0.0, 0.0], [1.0, 1.0, 1.0, -7.0], [4.0, 4.0 - 1e-12, 1.0, -9.0]],
    ids=str,
)
def test_sharpness_of_degenerate_spectra(spectrum, generator):
    h = torch.tensor(spectrum, dtype=F64)
    value = sharpness(
        lambda p: (h * p["q"] ** 2).sum() / 2, {"q": torch.ones_like(h)}, generator=generator
    )
    assert_close(value, h.max(), ops=1000, scale=float(h.abs().max()) or 1.0)


def test_sharpness_restarts_in_a_bounded_space(generator):
    h = torch.linspace(-1, 1, 3000, dtype=F64) ** 3
    value = sharpness(
        lambda p: (h * p["q"] ** 2).sum() / 2, {"q": torch.ones_like(h)}, generator=generator
    )
    assert abs(value - 1) < 1e-7
    with pytest.raises(RuntimeError, match="must be found to the relative residual"):
        sharpness(
            lambda p: (h * p["q"] ** 2).sum() / 2, {"q": torch.ones_like(h)},
            generator=generator, max_products=10,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, q: sharpness(f, q, rtol=-1.0), ValueError, "rtol must be positive"),
        (
            lambda f, q: sharpness(lambda p: (p["q"] ** 2 * math.nan).sum(), q),
            ValueError,
            "must be finite",
        ),
    ],
)  # fmt: skip
def test_sharpness_that_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(lambda p: p["q"].square().sum(), {"q": torch.ones(2)})
