"""Losses on dense data: streaming, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from dln_geometry import losses
from dln_geometry.testing import assert_close
from tests.dynamics.losses.routes import SQUARE, N, case, thin

NAN = math.nan


def test_streamed_quadratic_is_the_quadratic(generator, monkeypatch):
    loss, _ = case("quadratic", generator)
    x = thin(generator, 3)
    whole = loss.contract(x.left, x.right)
    monkeypatch.setattr("dln_geometry.dynamics.losses.dense.LARGE", 0)
    for rows in (1, 2, 3, 7, 50):
        monkeypatch.setattr("dln_geometry.dynamics.losses.dense.BLOCK", rows * N * 8)
        for got, expected in zip(loss.contract(x.left, x.right), whole, strict=True):
            assert_close(got, expected)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: losses.Quadratic("abc"), TypeError, "target must be a real array"),
        (lambda: losses.Quadratic(None), TypeError, "target must be a real array"),
        (lambda: losses.Quadratic([1.0, 2.0]), ValueError, r"target .*got \(2,\)"),
        (lambda: losses.Quadratic([[]]), ValueError, "target must not be empty"),
        (lambda: losses.Quadratic([[1.0, NAN]]), ValueError, "target must be finite"),
        (lambda: losses.Huber([[1j, 0]]), TypeError, "target must be real"),
        (lambda: losses.Regression(SQUARE, [[1j], [0]]), TypeError, "outputs must be real"),
        (lambda: losses.Sensing(SQUARE, [1.0, 2.0]), ValueError, r"\(k, m, n\), got \(2, 2\)"),
        (lambda: losses.Sensing([SQUARE], [1.0, 2.0]), ValueError, r"values .*got \(2,\)"),
        (lambda: losses.Sensing([SQUARE], 1.0), ValueError, r"values .*got \(\)"),
        (lambda: losses.Sensing(torch.ones(0, 2, 2), []), ValueError, "operators must"),
        (lambda: losses.Sensing([SQUARE], [NAN]), ValueError, "values must be finite"),
        (lambda: losses.Regression(SQUARE, [[1.0]]), ValueError, "as inputs, 2, got 1"),
        (lambda: losses.Regression([1.0], [[1.0]]), ValueError, "inputs must have shape"),
        (lambda: losses.Regression(SQUARE, [[NAN], [1.0]]), ValueError, "outputs must be fin"),
    ],
)
def test_bad_data_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
