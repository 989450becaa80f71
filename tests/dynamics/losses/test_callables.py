"""Functions of the matrix as losses."""

from __future__ import annotations

import pytest
import torch

from dln_geometry import losses
from dln_geometry.testing import assert_close
from tests.dynamics.losses.routes import M, N, randn


def test_functions_are_differentiated_under_no_grad(generator):
    loss = losses.from_callable(lambda x: x.pow(3).sum())
    x = randn(generator, 2, M, N)
    with torch.no_grad():
        assert_close(loss.gradient(x), 3 * x.square())
        assert_close(loss.gradient(x[0]), 3 * x[0].square())


@pytest.mark.parametrize("method", ["value", "gradient"])
def test_functions_that_return_no_scalar_are_refused(method):
    for x in (torch.eye(2), torch.ones(3, 2, 2)):
        for f, error, message in (
            (lambda x: x.sum(0), ValueError, r"return a scalar .* got shape \(2,\)"),
            (lambda x: 1.0, TypeError, "return a tensor, got float"),
            (lambda x: (x > 0).sum(), TypeError, "real floating tensor, got torch.int64"),
        ):
            with pytest.raises(error, match=message):
                getattr(losses.from_callable(f), method)(x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: losses.from_callable(3), TypeError, "f must be a function .*got int"),
    ],
)
def test_what_is_no_function_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
