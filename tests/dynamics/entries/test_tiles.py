"""The compiled pass against dense matrices, and where it is not used."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import forward_ad

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.dynamics.entries import Tiles, is_compiled, library
from dln_geometry.testing import assert_close

pytestmark = pytest.mark.skipif(library(torch.float64, 1) is None, reason="needs a C compiler")

TILES = "dln_geometry.dynamics.entries.tiles"


@pytest.fixture
def many_tiles(monkeypatch):
    """Cut small problems into tiles, and give them to as many threads as are asked for."""
    monkeypatch.setattr("dln_geometry.dynamics.losses.completion.DENSE", 0)
    monkeypatch.setattr(f"{TILES}.SMALL", 1)
    monkeypatch.setattr(f"{TILES}.SHORTEST", 2)
    monkeypatch.setattr(f"{TILES}.WORK_OF_A_THREAD", 1)
    monkeypatch.setattr(f"{TILES}.LEAST_WORK", 1)


@pytest.fixture
def calls(monkeypatch):
    """The names of the passes that run."""
    made = []
    run = Tiles._run
    monkeypatch.setattr(
        f"{TILES}.Tiles._run",
        lambda self, task, *a, **k: (made.append(task), run(self, task, *a, **k)),
    )
    return made


def problem(g, m, n, k, rank, dtype=torch.float64, batch=(), data=(), weighted=False):
    """Return entries that leave some rows and columns empty, and factors."""
    like = {"generator": g, "dtype": dtype}
    places = torch.randperm(m * n, generator=g)[:k]
    rows, cols = (places // n).clamp_max(max(m - 3, 0)), places % n
    key = torch.unique(rows * n + cols)
    key = key[torch.randperm(len(key), generator=g)]
    weights = torch.rand(len(key), **like) if weighted else None
    values = torch.randn(*data, len(key), **like)
    loss = losses.Completion(key // n, key % n, values, (m, n), weights=weights)
    left, right = (torch.randn(*batch, size, rank, **like) for size in (m, n))
    return loss, left, right


def dense(loss, left, right):
    """Return E, G R and G^T L by matrices in double precision."""
    left, right = left.double(), right.double()
    batch = torch.broadcast_shapes(left.shape[:-2], loss.values.shape[:-1])
    gap = torch.zeros(*batch, *loss.shape, dtype=torch.float64)
    gap[..., loss.rows, loss.cols] = loss.values.double()
    gap = (left @ right.mT - gap) * loss.mask
    slope = gap.clone()
    if loss.weights is not None:
        slope[..., loss.rows, loss.cols] *= loss.weights.double()
    return 0.5 * (gap * slope).sum((-2, -1)), slope @ right, slope.mT @ left


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [1, 7, 65])
@pytest.mark.parametrize("weighted", [False, True])
def test_shifts_and_sums_are_those_of_dense_matrices(
    rank, dtype, weighted, generator, many_tiles, calls
):
    """Of two matrices below one another: shifts are two more columns of the factors."""
    loss, left, right = problem(generator, 37, 23, 200, rank, dtype, (2,), (2,), weighted)
    a, b = (torch.randn(2, k, 1, generator=generator, dtype=dtype) for k in loss.shape)
    ones, others = (torch.ones(2, k, 1, dtype=dtype) for k in loss.shape)
    placed = loss._placed(torch.Size((2,)))[1]
    flat = left.flatten(0, 1), right.flatten(0, 1)
    by_row, by_col = placed.sums(*flat)
    value, g_right, g_left = placed.contract(*flat, (a.flatten(), b.flatten()))
    energy, gr, gl = dense(loss, torch.cat((left, a, ones), -1), torch.cat((right, others, b), -1))
    # Columns of ones against columns of zeros leave X as it is, and sum its residuals.
    rows = dense(loss, torch.cat((left, 0 * ones), -1), torch.cat((right, others), -1))[1][..., -1]
    cols = dense(loss, torch.cat((left, ones), -1), torch.cat((right, 0 * others), -1))[2][..., -1]
    pairs = [(value, energy), (by_row, rows), (by_col, cols)]
    pairs += [(g_right, gr[..., :rank]), (g_left, gl[..., :rank])]
    for found, one in pairs:
        assert_close(
            found, one.to(dtype).reshape(found.shape), ops=1000, scale=float(one.abs().max())
        )
    assert calls == ["sums", "contract"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [1, 3, 8, 21, 65])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_pass_is_that_of_dense_matrices(rank, dtype, weighted, generator, many_tiles, calls):
    for batch, data in [((), ()), ((3,), ()), ((2, 1), (2, 2)), ((), (2,))]:
        loss, left, right = problem(generator, 37, 23, 200, rank, dtype, batch, data, weighted)
        got, want = losses.contract(loss, left, right), dense(loss, left, right)
        for a, b in zip(got, want, strict=True):
            assert_close(a, b.to(dtype), ops=1000, scale=float(b.abs().max()))
    assert calls == ["contract"] * 4


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (5, 1, 3), (1, 40, 7), (300, 2, 250)])
def test_shapes_at_the_edge(m, n, k, generator, many_tiles, calls):
    loss, left, right = problem(generator, m, n, k, 4)
    for a, b in zip(losses.contract(loss, left, right), dense(loss, left, right), strict=True):
        assert_close(a, b, ops=1000)
    assert calls == ["contract"]


def test_any_number_of_threads_gives_the_same_bits(generator, many_tiles, threads):
    loss, left, right = problem(generator, 500, 400, 30_000, 5, torch.float32)
    link = losses.Logistic(loss.rows, loss.cols, loss.values.sigmoid(), loss.shape)
    results = []
    for count in (1, 2, 5):
        threads(count)
        for _ in range(5):
            results.append([*loss.contract(left, right), *link.contract(left, right)])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [losses.Logistic, losses.Poisson])
def test_other_losses_take_two_passes(kind, generator, many_tiles, calls):
    loss, left, right = problem(generator, 60, 50, 700, 6, batch=(2,))
    left = 0.3 * left
    link = kind(loss.rows, loss.cols, loss.values.sigmoid(), loss.shape)
    x = left @ right.mT
    got, gradient = link.contract(left, right), link.gradient(x).to_dense()
    assert calls == ["sample", "spread"]
    want = link.value(x), gradient @ right, gradient.mT @ left
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, ops=1000, scale=float(b.abs().max()))


def test_nan_and_infinity_stay(generator, many_tiles):
    loss, left, right = problem(generator, 30, 20, 200, 3)
    for bad in (math.nan, math.inf):
        spoilt = left.clone()
        spoilt[int(loss.rows[5])] = bad
        value, gr, gl = loss.contract(spoilt, right)
        assert not value.isfinite()
        assert not gr[loss.rows[5]].isfinite().any()
        assert not gl[loss.cols[5]].isfinite().any()


def test_values_beyond_the_type_are_infinite(many_tiles):
    """In silence: trial steps of a flow may go there."""
    places = torch.arange(9)
    loss = losses.Completion(places, places, torch.ones(9), (9, 9))
    far = torch.full((9, 2), 1e15)
    assert loss.contract(far, far)[0] == math.inf


def test_derivatives_do_not_pass_through(generator, many_tiles, calls):
    loss, left, right = problem(generator, 20, 15, 100, 3)
    x = left.clone().requires_grad_()
    value, gr, _ = loss.contract(x, right)
    (slope,) = torch.autograd.grad(value, x)
    assert_close(slope, gr.detach(), ops=1000)
    direction = torch.randn(left.shape, generator=generator, dtype=left.dtype)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(left, direction)
        assert not is_compiled(10**6, dual, right)
        assert is_compiled(10**6, left, right)
    seen = torch.func.vmap(lambda w: w.sum() * is_compiled(10**6, w, right))
    assert not seen(left.expand(2, -1, -1)).any()
    assert calls == []


def test_a_flow_is_the_same_by_either_way(generator, monkeypatch):
    loss, _, _ = problem(generator, 60, 50, 1500, 1)
    start = dln.Collapsed.random(
        (60, 50), 4, 3, scale=0.3, generator=generator, dtype=torch.float64
    )
    run = lambda: dln.gradient_flow(loss, start, t_end=0.05)  # noqa: E731
    compiled = run()
    monkeypatch.setattr(f"{TILES}.library", lambda *_: None)
    assert_close(compiled.final.matrix, run().final.matrix, ops=10**6)
