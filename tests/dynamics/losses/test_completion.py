"""Completion: its sparse gradient, patterns of batches, and the work it avoids."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.testing import assert_close
from tests.dynamics.losses.routes import BATCHES, DTYPES, M, N, case, randn, thin


def test_sparse_gradient_is_the_masked_gradient(generator):
    loss, _ = case("completion", generator)
    x, batch = randn(generator, M, N), randn(generator, 2, 4, M, N)
    target = torch.zeros(M, N, dtype=torch.float64)
    target[loss.rows, loss.cols] = loss.values
    one, many = loss.gradient(x), loss.gradient(batch)
    assert one.layout == torch.sparse_csr
    assert many.layout == torch.sparse_coo
    assert many.sparse_dim() == 4
    assert_close(one, (x - target) * loss.mask)
    assert_close(many, (batch - target) * loss.mask)
    assert one.values().numel() == loss.values.numel() == 13
    # What claims to be ordered and without repetitions is.
    again = torch.sparse_coo_tensor(
        many.indices(), many.values(), many.shape, check_invariants=True
    ).coalesce()
    assert torch.equal(again.indices(), many.indices())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_completion_without_compressed_kernels(batch, dtype, generator, monkeypatch):
    loss, _ = case("completion", generator, dtype, batch)
    x = thin(generator, 3, dtype, batch)
    expected = (*loss.contract(x.left, x.right), loss.gradient(x.left @ x.right.mT).to_dense())
    absent = lambda *_: False  # noqa: E731
    for file in ("losses.completion", "entries.pattern"):
        monkeypatch.setattr(f"dln_geometry.dynamics.{file}.has_compressed_kernels", absent)
    got = (*loss.contract(x.left, x.right), loss.gradient(x.left @ x.right.mT).to_dense())
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_completion_never_forms_the_matrix(batch, generator):
    # A dense matrix of this shape has 80 GB.
    size, k = 100_000, 1000
    rows = torch.randint(size, (k,), generator=generator)
    cols = torch.randperm(size, generator=generator)[:k]
    loss = losses.Completion(rows, cols, randn(generator, k), (size, size))
    x = SimpleNamespace(
        left=randn(generator, *batch, size, 3),
        right=randn(generator, *batch, size, 3),
    )
    value, gr, gl = losses.contract(loss, x.left, x.right)
    left = x.left[..., loss.rows, :]
    residual = (left * x.right[..., loss.cols, :]).sum(-1) - loss.values
    assert_close(value, residual.square().sum(-1) / 2)
    expected = torch.zeros_like(gr).index_add_(
        -2, loss.rows, residual.unsqueeze(-1) * x.right[..., loss.cols, :]
    )
    assert_close(gr, expected)
    expected = torch.zeros_like(gl).index_add_(
        -2, loss.cols, residual.unsqueeze(-1) * x.left[..., loss.rows, :]
    )
    assert_close(gl, expected)
    point = dln.Collapsed(x.left, x.right, 2, check=False)
    assert loss.value(point).shape == batch
    assert loss.gradient(point).values().numel() == k * math.prod(batch)


def test_patterns_of_many_batches_are_not_all_kept(generator, monkeypatch):
    monkeypatch.setattr("dln_geometry.dynamics.losses.completion.KEPT", 3)
    # Small matrices are formed instead.
    monkeypatch.setattr("dln_geometry.dynamics.losses.completion.DENSE", 0)
    loss, _ = case("completion", generator)
    for count in [*range(1, 9), 1, 2]:
        x = thin(generator, 2, batch=(count,))
        matrix = x.left @ x.right.mT
        assert_close(losses.contract(loss, x.left, x.right)[0], loss.value(matrix))
    assert len(loss._kept) == 3


def test_completion_sorts_its_entries():
    loss = losses.Completion([2, 0, 2], np.array([1, 1, 0]), [5, 6, 7], (3, 2))
    assert loss.rows.tolist() == [0, 2, 2]
    assert loss.cols.tolist() == [1, 0, 1]
    assert loss.values.tolist() == [6.0, 7.0, 5.0]
    assert loss.values.dtype == torch.get_default_dtype()
    assert loss.mask.tolist() == [[False, True], [False, False], [True, True]]


def test_completion_from_a_matrix_with_holes(rng):
    x = rng.standard_normal((M, N))
    holes = rng.random((M, N)) < 0.4
    loss = losses.Completion.from_matrix(np.where(holes, np.nan, x))
    assert loss.dtype == torch.float64
    assert loss.shape == (M, N)
    assert np.array_equal(loss.mask.numpy(), ~holes)
    y = rng.standard_normal((M, N))
    assert_close(loss.value(y), ((x - y)[~holes] ** 2).sum() / 2)


def test_nothing_warns_in_a_fresh_process():
    code = """
import torch
from dln_geometry.dynamics import losses
loss = losses.Completion([0, 1], [0, 1], [1.0, 3.0], (2, 2))
one = torch.ones(2, 1)
losses.contract(loss, one, one)
loss.gradient(torch.eye(2)).to_dense()
"""
    # torch's own deprecations on import are not ours to hold.
    args = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "beta" not in done.stderr


NAN, INF = math.nan, math.inf


def completion(rows=(0, 1), cols=(0, 1), values=(1.0, 2.0), shape=(2, 2)):
    return losses.Completion(rows, cols, values, shape)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: completion(rows=[0, 2]), ValueError, "rows .* 0 and 1, got 2 at position 1"),
        (lambda: completion(cols=[-1, 1]), ValueError, "cols .* got -1 at position 0"),
        (lambda: completion(rows=[0, 0], cols=[1, 1]), ValueError, r"\(0, 1\) repeatedly"),
        (lambda: completion(rows=[0]), ValueError, r"got \(1,\), \(2,\) and \(2,\)"),
        (lambda: completion(values=[1.0]), ValueError, r"\(2,\), \(2,\) and \(1,\)"),
        (lambda: completion(values=1.0), ValueError, r"values must have shapes"),
        (lambda: completion(values=[1.0, NAN]), ValueError, "values must be finite"),
        (lambda: completion(values=[1.0, INF]), ValueError, "values must be finite"),
        (lambda: completion(values="ab"), TypeError, "values must be a real array"),
        (lambda: completion(rows=[0.0, 1.0]), TypeError, "rows must be integers, got torch.fl"),
        (lambda: completion(rows=[True, False]), TypeError, "rows must be integers"),
        (lambda: completion(rows="01"), TypeError, "rows must be a real array or tensor, got str"),
        (lambda: completion(cols=[[0], [1]]), ValueError, r"cols must have shape \(k,\)"),
        (
            lambda: completion(cols=["a", "b"]),
            TypeError,
            "cols must be a real array or tensor, got str",
        ),
        (lambda: completion([], [], []), ValueError, "rows must hold at least one place"),
        (lambda: completion(values=torch.ones(0, 2)), ValueError, "at least one entry"),
        (lambda: completion(shape=(2,)), TypeError, "shape must be a pair of integers"),
        (lambda: completion(shape=(2.0, 2)), TypeError, "shape must be a pair of integers"),
        (lambda: completion(shape=(2, 0)), ValueError, r"shape must be positive, got \(2, 0\)"),
        (lambda: completion(shape="ab"), TypeError, "shape must be a pair of integers"),
        (lambda: losses.Completion.from_matrix([[NAN, NAN]]), ValueError, "a known entry"),
        (lambda: losses.Completion.from_matrix([1.0]), ValueError, r"shape \(m, n\), got \(1,\)"),
        (lambda: losses.Completion.from_matrix([[INF, 1.0]]), ValueError, "must be finite"),
        (lambda: losses.Completion.from_matrix("x"), TypeError, "x must be a real array"),
        (lambda: losses.Logistic.from_matrix([[1j]]), TypeError, "x must be real, got torch.comp"),
    ],
)
def test_bad_data_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
